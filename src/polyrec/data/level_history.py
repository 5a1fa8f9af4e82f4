"""What the running baselines were at any earlier time, for residuals of events that a state has counted already.

Letters: T targets, S counted rows of a level, M examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from polyrec.data.growing import with_part


class LevelRows(NamedTuple):
    """Rows that one level of the bias model counted: packed keys [S], times [S], known residuals and ones [S, 2T]."""

    keys: np.ndarray
    time: np.ndarray
    values: np.ndarray


@dataclass
class _Block:
    """Rows of one level sorted by (key, time), and their running sums [S + 1, 2T]."""

    rows: LevelRows

    def __post_init__(self) -> None:
        order = np.lexsort((self.rows.time, self.rows.keys))
        self.rows = LevelRows(*(part[order] for part in self.rows))
        self.keys, group = np.unique(self.rows.keys, return_inverse=True)
        self.timestamps, rank = np.unique(self.rows.time, return_inverse=True)
        self.span = len(self.timestamps) + 1
        self.stamp = group * self.span + rank
        self.sums = np.concatenate([np.zeros((1, self.rows.values.shape[1])), np.cumsum(self.rows.values, axis=0)])

    def before(self, keys: np.ndarray, time: np.ndarray) -> np.ndarray:
        group = np.searchsorted(self.keys, keys)
        known = group < len(self.keys)
        known[known] = self.keys[group[known]] == keys[known]
        group = group[known]
        found = np.zeros((len(keys), self.sums.shape[1]))
        begin = np.searchsorted(self.stamp, group * self.span)
        end = np.searchsorted(self.stamp, group * self.span + np.searchsorted(self.timestamps, time[known]))
        found[known] = self.sums[end] - self.sums[begin]
        return found

    def __len__(self) -> int:
        return len(self.rows.time)


def _together(first: _Block, second: _Block) -> _Block:
    return _Block(LevelRows(*(np.concatenate(parts) for parts in zip(first.rows, second.rows, strict=True))))


class LevelHistory:
    """Sums of known residuals, and how many they were, of each key of each level strictly before a time.

    Memory grows with the log: 16 bytes per event and level and 32 per target. It knows no users.

    Example:
        >>> history = LevelHistory()
        >>> rows = LevelRows(np.array([7, 7]), np.array([1.0, 2.0]), np.array([[4.0, 1.0], [2.0, 1.0]]))
        >>> history.add({"item-context": rows})
        >>> history.before("item-context", np.array([7, 7, 8]), np.array([2.0, 9.0, 9.0]), targets=1).tolist()
        [[4.0, 1.0], [6.0, 2.0], [0.0, 0.0]]
    """

    def __init__(self) -> None:
        self._blocks: dict[str, list[_Block]] = {}

    def add(self, rows: Mapping[str, LevelRows]) -> None:
        """Remember rows of each level; they may be of any time."""
        self.prepared(rows)()

    def prepared(self, rows: Mapping[str, LevelRows]) -> Callable[[], None]:
        """What [`add`] has to compute; the call of the result is short and makes it known."""
        blocks = {name: with_part(self._blocks.get(name, []), _Block(new), _together) for name, new in rows.items()}
        return lambda: self._blocks.update(blocks)

    def before(self, name: str, keys: np.ndarray, time: np.ndarray, targets: int) -> np.ndarray:
        """Sums and counts of level `name`, float64 [M, 2T].

        Args:
            keys: int64 [M], packed.
            time: float64 [M], seconds.
            targets: T.
        """
        found = np.zeros((len(keys), 2 * targets))
        for block in self._blocks.get(name, []):
            found += block.before(keys, time)
        return found
