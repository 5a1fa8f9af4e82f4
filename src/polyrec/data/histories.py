"""What was visible to candidates, beyond what fits into their windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from polyrec.data.columns import FIRST
from polyrec.data.sequences import SequenceDataset

_ITEMS_AT_ONCE = 1 << 20  # items of histories that are written out together


class Histories(NamedTuple):
    """Histories that share their items: a user's candidates see more and more of the same events.

    Args:
        begin, end: int64 [R], where each history lies in `items`.
        items: int64 [E], rows of the item table, oldest first; each user's events stand there once.
    """

    begin: np.ndarray
    end: np.ndarray
    items: np.ndarray

    def ragged(self, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Some histories written out, one after the other: offsets, int64 [R + 1], and items.

        Example:
            >>> two = Histories(np.array([0, 0]), np.array([1, 3]), np.array([7, 8, 9]))
            >>> [values.tolist() for values in two.ragged()]
            [[0, 1, 4], [7, 7, 8, 9]]
        """
        begin, lengths = self.begin[rows], self.end[rows] - self.begin[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return offsets, self.items[_ranges(begin, lengths)]

    def blocks(self, most: int = _ITEMS_AT_ONCE) -> Iterator[slice]:
        """Stretches of rows whose histories hold at most so many items together (one row may hold more)."""
        total, first = np.cumsum(self.end - self.begin), 0
        while first < len(total):
            before = total[first - 1] if first else 0
            last = max(int(np.searchsorted(total, before + most, side="right")), first + 1)
            yield slice(first, last)
            first = last

    def scores(self, score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """Scores [R, N] of a recommender that takes histories written out (`evaluation.baselines.recommenders`)."""
        return np.concatenate([score(*self.ragged(rows)) for rows in self.blocks()])


def visible_history(dataset: SequenceDataset, rows: np.ndarray, counted: np.ndarray | None = None) -> Histories:
    """The events of the log that candidates may see, oldest first, without those of items that are not in the catalog.

    Memory grows with the rows and with the events of their users, not with the product of the two.

    Args:
        rows: int64 [R], candidates of the data set.
        counted: bool, events of the log that count; None: all.
    """
    position = dataset.candidates.position[rows]
    user, of_row = np.unique(dataset.log.user[dataset.candidates.event[rows]], return_inverse=True)
    most = np.zeros(len(user), dtype=np.int64)
    np.maximum.at(most, of_row, position)
    events = _ranges(dataset.log.offsets[user], most)
    seen = dataset.log.item[events]
    known = seen >= FIRST if counted is None else (seen >= FIRST) & counted[events]
    known_before = np.concatenate([[0], np.cumsum(known)])
    first = (np.cumsum(most) - most)[of_row]
    return Histories(known_before[first], known_before[first + position], seen[known])


def _ranges(begin: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """begin[0], begin[0] + 1, ..., then the same of the next, int64 [sum of lengths]."""
    return np.arange(lengths.sum()) + np.repeat(begin - (np.cumsum(lengths) - lengths), lengths)
