"""Blocks of a log counted side by side, by any number of processes that see the same files.

What a label says is measured against what the levels of the bias model knew at its time. So the state of a level can
be counted once those of the levels below it are known before each block. Level by level, then:

1. for each block, what its rows add to the states, given those of the levels below;
2. for each statistic, a scan over the blocks (Blelloch, 1990): the state before a block is that before the last one
   and what the last one added ([`KeyStates.followed_by`]), of the keys that occur in the block;

and at last the features of each block's rows. The work of a step is named by numbers. Whoever does one of them reads
files and writes a file as a whole, so that it may be done again.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from polyrec.core.progress import progress
from polyrec.data.block_files import BlockFiles, state_file
from polyrec.data.event_log import EventLog
from polyrec.data.key_states import KeyStates
from polyrec.data.log_passes import time_blocks
from polyrec.data.log_tables import LogTables
from polyrec.data.mapped_log import keep_log
from polyrec.data.statistics import RunningStatistics
from polyrec.data.statistics_pass import stateful
from polyrec.data.storage import Engine, Folder, Step


@dataclass(frozen=True)
class Added:
    """Step 1, by block: what its rows add to the states of a stage, see `BlockFiles.stages`."""

    files: BlockFiles
    stage: int

    def __call__(self, block: int) -> None:
        """Write what a block adds."""
        known = self.files.states(f"before.{block}", self.files.levels[: self.stage])
        over = self.files.over(self.files.rows(block), known, depth=self.stage)
        self.files.write_states(f"added.{block}", over.advanced(self.files.stages[self.stage]))


@dataclass(frozen=True)
class Scan:
    """Step 2, by statistic of a stage: its states before each block.

    Args:
        blocks: how many there are.
        end: the state before this block is written for all keys, too.
    """

    files: BlockFiles
    stage: int
    blocks: int
    end: int

    def __call__(self, number: int) -> None:
        """Write the states of a statistic."""
        config = self.files.stages[self.stage][number]
        known: KeyStates | None = None
        for block in range(self.blocks + 1):
            if block == self.end and known is not None and not config.personal:
                self.files.write_states(state_file("end", config), {config.name: known})
            if block == self.blocks:
                return
            added = self.files.read_state(f"added.{block}", config.name)
            before = KeyStates.empty(added.keys, added.sums.shape[1]) if known is None else known.at(added.keys)
            self.files.write_states(state_file(f"before.{block}", config), {config.name: before})
            after = before.followed_by(added, config)
            known = after if known is None else known.put(after)


@dataclass(frozen=True)
class Features:
    """Step 3, by block: features of its rows, those of the mask `wanted` alone if there is one."""

    files: BlockFiles

    def __call__(self, block: int) -> None:
        """Write the features of a block."""
        rows = self.files.rows(block)
        wanted = self.files.masked("wanted", rows)
        states = self.files.states(f"before.{block}", [c for stage in self.files.stages for c in stage])
        values = self.files.over(rows, states).features(wanted)
        self.files.write(f"features.{block}", {"rows": rows if wanted is None else rows[wanted], "values": values})


@dataclass
class BlockPasses:
    """What [`LogPasses`][polyrec.data.log_passes.LogPasses] finds, bit for bit, by an engine that shares the work.

    Args:
        statistics, source, kept, states, last_time: as of `LogPasses`. Up to a block rows that count are kept, in the
            block some of them may be, and after it none, as in a log that is cut by time.
        tables: what statistics read of the log.
        log: whose arrays lie in `storage`, or are put there.
        engine: does the steps.
    """

    statistics: RunningStatistics
    tables: LogTables
    log: EventLog
    storage: Folder
    engine: Engine
    source: np.ndarray | None
    kept: np.ndarray | None = None
    states: dict[str, KeyStates] = field(default_factory=dict, init=False)
    last_time: float = field(default=-np.inf, init=False)

    def features(self, wanted: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As of `LogPasses.features`."""
        files = self._files()
        shutil.rmtree(files.folder, ignore_errors=True)
        files.folder.mkdir()
        try:
            files.write_mask("source", self.source)
            files.write_mask("wanted", wanted)
            blocks, end = self._write_blocks(files)
            for stage, found in enumerate(files.stages):
                if not found or not blocks:
                    continue
                self._do(Added(files, stage), blocks, "Counting blocks")
                self._do(Scan(files, stage, blocks, end), len(found), "States before blocks")
                files.forget("added")
            if blocks:
                self._do(Features(files), blocks, "Features of blocks")
                self.states = self._states(files, end)
            for block in range(blocks):
                found_of = files.read(f"features.{block}")
                yield found_of["rows"], found_of["values"]
        finally:
            shutil.rmtree(files.folder, ignore_errors=True)

    def _files(self) -> BlockFiles:
        stateless, path = copy.copy(self.statistics), self.storage.path.resolve()  # others work elsewhere
        stateless.reset()
        tables, columns = self.tables.read_by(stateless), keep_log(self.log, self.storage)
        return BlockFiles(stateless, tables, path, columns, path.with_name(f"{path.name}-blocks"))

    def _do(self, step: Step, number: int, what: str) -> None:
        for _ in progress(self.engine(step, number), what, number):
            pass

    def _write_blocks(self, files: BlockFiles) -> tuple[int, int]:
        """How many blocks there are, and which is the first of which not all rows that count are kept."""
        block, end = -1, None
        for block, rows in enumerate(time_blocks(self.log.order, self.log.time, self.storage.block)):
            files.write(f"block.{block}", {"rows": rows})
            counted = np.ones(len(rows), dtype=bool) if self.source is None else self.source[rows]
            kept = counted if self.kept is None else self.kept[rows]
            self.last_time = float(self.log.time[rows[kept]].max(initial=self.last_time))
            if end is not None and kept.any():
                raise ValueError("rows are kept after some that only count: one process must count this log")
            if end is None and not np.array_equal(kept, counted):
                end = block
        return block + 1, block + 1 if end is None else end

    def _states(self, files: BlockFiles, end: int) -> dict[str, KeyStates]:
        """What was counted of the rows that are kept, but for that of users."""
        shared = stateful(self.statistics.statistics, self.statistics.context)
        found = files.states("end", shared)
        if self.kept is not None and (files.folder / f"block.{end}.npz").exists():
            rows = files.rows(end)
            rows = rows[self.kept[rows]]
            if len(rows):
                before = files.states(f"before.{end}", [c for stage in files.stages for c in stage])
                part = self.statistics.over(files.table(rows), before).advanced(shared)
                found = {name: found[name].put(own) if name in found else own for name, own in part.items()}
        return {name: own.counted() for name, own in found.items()}
