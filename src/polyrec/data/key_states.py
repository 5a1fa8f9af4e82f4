"""What is kept per key of a running statistic.

Letters: G distinct keys, H wanted keys, T targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from polyrec.data.statistic_config import StatisticConfig

VALUES = ("sums", "counts", "rows", "last")  # of each key
FIELDS = ("keys", *VALUES)


@dataclass
class KeyStates:
    """What is kept per key of one statistic: packed keys [G], sums and counts [G, T], rows [G], last time [G].

    Faded sums and counts are those at the key's last row.
    """

    keys: np.ndarray
    sums: np.ndarray
    counts: np.ndarray
    rows: np.ndarray
    last: np.ndarray

    @classmethod
    def empty(cls, keys: np.ndarray, targets: int) -> KeyStates:
        """Keys about which nothing is known."""
        nothing = np.zeros((len(keys), targets))
        return cls(keys, nothing, nothing.copy(), np.zeros(len(keys)), np.full(len(keys), np.nan))

    def counted(self) -> KeyStates:
        """That of the keys of which rows were counted."""
        known = self.rows > 0
        if known.all():
            return self
        return KeyStates(*(getattr(self, name)[known] for name in FIELDS))

    def copy(self) -> KeyStates:
        """One that [`put`] can change without changing this one."""
        return KeyStates(*(getattr(self, name).copy() for name in FIELDS))

    def _find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        index = np.searchsorted(self.keys, keys)
        known = index < len(self.keys)
        known[known] = self.keys[index[known]] == keys[known]
        return index, known

    def at(self, keys: np.ndarray) -> KeyStates:
        """The state of given keys [H]."""
        index, known = self._find(keys)
        found = KeyStates.empty(keys, self.sums.shape[1])
        for name in VALUES:
            getattr(found, name)[known] = getattr(self, name)[index[known]]
        return found

    def put(self, new: KeyStates) -> KeyStates:
        """Overwrite the keys of `new`, in place where they are known, and insert the others."""
        index, known = self._find(new.keys)
        for name in VALUES:
            getattr(self, name)[index[known]] = getattr(new, name)[known]
        if known.all():
            return self
        fresh = {n: getattr(new, n)[~known] for n in FIELDS}
        return KeyStates(**{n: np.insert(getattr(self, n), index[~known], v, axis=0) for n, v in fresh.items()})

    def followed_by(self, later: KeyStates, config: StatisticConfig) -> KeyStates:
        """The state after an earlier and a later stretch of time, from this one's and the later one's; the same keys.

        What fades has faded until the last row of both, s = s_later + 2^-(elapsed / fade) s_earlier, where elapsed are
        the seconds between both last rows (`half_life`) or the rows of the later one (`recent`). Numbers of rows add
        up, and of two last times the later one stays. No time may be of both. The operation is associative, and a
        state of no rows changes nothing, so that the states of many blocks can be found side by side and combined in
        any grouping, but in their order (a scan; Blelloch, 1990).

        Example:
            >>> one, two, no = np.ones((1, 1)), np.array([2]), np.array([0.0])
            >>> earlier, later = KeyStates(two, 4 * one, 4 * one, two, no), KeyStates(two, one, one, two, no + 10)
            >>> earlier.followed_by(later, StatisticConfig(("item",), "none", half_life=5)).sums.tolist()
            [[2.0]]
        """
        kept = np.ones((len(self.keys), 1))
        if config.fade is not None:
            elapsed = later.rows if config.recent is not None else np.nan_to_num(later.last - self.last)
            kept = np.exp2(-elapsed / config.fade)[:, None]
        sums, counts = later.sums + kept * self.sums, later.counts + kept * self.counts
        return KeyStates(self.keys, sums, counts, self.rows + later.rows, np.fmax(self.last, later.last))

    def to_table(self) -> pa.Table:
        """One row per key: key, rows, last, and sum_0, count_0, ... of the targets."""
        columns: dict[str, Any] = {"key": self.keys, "rows": self.rows, "last": self.last}
        for j in range(self.sums.shape[1]):
            columns[f"sum_{j}"], columns[f"count_{j}"] = self.sums[:, j], self.counts[:, j]
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table) -> KeyStates:
        """Rebuild from [`to_table`]."""

        def read(name: str) -> np.ndarray:
            return table[name].to_numpy().copy()  # Arrow's memory is read-only and `put` writes

        def stacked(name: str) -> np.ndarray:
            width = (table.num_columns - 3) // 2
            return np.column_stack([np.empty((table.num_rows, 0)), *(read(f"{name}_{j}") for j in range(width))])

        return cls(read("key"), stacked("sum"), stacked("count"), read("rows"), read("last"))
