"""A log and what is known of its blocks, in files that any number of processes share.

Letters: R rows of a log.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import numpy as np

from polyrec.data.event_table import EventTable
from polyrec.data.key_states import FIELDS, KeyStates
from polyrec.data.log_tables import LogTables
from polyrec.data.mapped_log import map_log
from polyrec.data.statistic_config import StatisticConfig, levels, levels_of
from polyrec.data.statistics import RunningStatistics
from polyrec.data.statistics_pass import StatisticsPass, stateful
from polyrec.data.storage import Folder


@dataclass(frozen=True)
class BlockFiles:
    """What a process needs to work on a block of a log; little of it is not in files.

    Args:
        statistics: what is counted; their own state is not read.
        tables: what they read of a log.
        log: folder of the log's arrays.
        columns: names of these arrays, see `polyrec.data.mapped_log.keep_log`.
        folder: of the blocks, and of what is known of them.
    """

    statistics: RunningStatistics
    tables: LogTables
    log: Path
    columns: Mapping[str, Sequence[str]]
    folder: Path

    @property
    def levels(self) -> list[StatisticConfig]:
        """The levels of the bias model, each of which needs those before it."""
        return list(levels(self.statistics.context).values())

    @property
    def stages(self) -> list[list[StatisticConfig]]:
        """Statistics whose labels need no level, those that need the first one, the first two, and so on."""
        context, statistics = self.statistics.context, self.statistics.statistics
        order = list(levels(context))
        found: list[list[StatisticConfig]] = [[] for _ in range(len(order) + 1)]
        for config in [*stateful(statistics, context), *stateful(statistics, context, personal=True)]:
            found[max((order.index(n) + 1 for n in levels_of(config.baseline, len(context))), default=0)].append(config)
        return found

    # -------------------------------------------------------------- the log
    def rows(self, block: int) -> np.ndarray:
        """Rows of a block, int64 ascending."""
        return self.read(f"block.{block}")["rows"]

    def masked(self, name: str, rows: np.ndarray) -> np.ndarray | None:
        """What was written of a mask (bool [R]) in some rows; None: there is none."""
        path = self.folder / f"{name}.npy"
        return np.load(path, mmap_mode="r")[rows] if path.exists() else None

    def write_mask(self, name: str, mask: np.ndarray | None) -> None:
        """Write a mask, bool [R]; None: there is none."""
        if mask is not None:
            np.save(self.folder / f"{name}.npy", mask)

    def table(self, rows: np.ndarray) -> EventTable:
        """What statistics read of some rows."""
        return self.tables.of_log(self.statistics, map_log(Folder(self.log), self.columns), rows)

    def over(self, rows: np.ndarray, states: dict[str, KeyStates], depth: int | None = None) -> StatisticsPass:
        """A pass over a block's rows from the states before it; `depth` as of `StatisticsPass`."""
        return self.statistics.over(self.table(rows), states, source=self.masked("source", rows), depth=depth)

    # -------------------------------------------------------------- what is known
    def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays into a file that is there as a whole or not at all."""
        draft = self.folder / f".{name}.{uuid4().hex}"
        with draft.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(draft, self._file(name))  # it need not outlive a power cut: nothing waits for the disk

    def read(self, name: str) -> dict[str, np.ndarray]:
        """Arrays that were written."""
        with np.load(self._file(name)) as file:
            return dict(file)

    def write_states(self, name: str, states: Mapping[str, KeyStates]) -> None:
        """Write the states of some statistics into one file."""
        found = {f"{key}.{field}": getattr(own, field) for key, own in states.items() for field in FIELDS}
        self.write(name, found)

    def read_state(self, name: str, of: str) -> KeyStates:
        """One of the states in a file."""
        with np.load(self._file(name)) as file:
            return KeyStates(*(file[f"{of}.{field}"] for field in FIELDS))

    def states(self, name: str, of: Iterable[StatisticConfig]) -> dict[str, KeyStates]:
        """States that have a file each, by statistic; those without a file are left out."""
        names = {config.name: state_file(name, config) for config in of}
        return {key: self.read_state(file, key) for key, file in names.items() if self._file(file).exists()}

    def forget(self, name: str) -> None:
        """Remove files whose names begin so."""
        for path in self.folder.glob(f"{name}.*"):
            path.unlink()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npz"


def state_file(name: str, config: StatisticConfig) -> str:
    """The file of one statistic's state."""
    return f"{name}.{quote(config.name, safe='')}"
