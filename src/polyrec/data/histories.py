"""What was visible to candidates, beyond what fits into their windows."""

from __future__ import annotations

import numpy as np

from polyrec.data.columns import FIRST
from polyrec.data.sequences import SequenceDataset


def visible_history(
    dataset: SequenceDataset, rows: np.ndarray, counted: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The events of the log that candidates may see, oldest first, without those of items that are not in the catalog.

    Args:
        rows: int64 [R], candidates of the data set.
        counted: bool, events of the log that count; None: all.

    Returns:
        offsets, int64 [R + 1], and items, rows of the item table: candidate r sees items[offsets[r]:offsets[r + 1]].
    """
    position = dataset.candidates.position[rows]
    begin = dataset.log.offsets[dataset.log.person[dataset.candidates.event[rows]]]
    index = np.repeat(np.arange(len(rows)), position)
    inside = np.arange(len(index)) - np.repeat(np.cumsum(position) - position, position)
    events = np.repeat(begin, position) + inside
    seen = dataset.log.item[events]
    known = seen >= FIRST if counted is None else (seen >= FIRST) & counted[events]
    lengths = np.bincount(index[known], minlength=len(rows))
    return np.concatenate([[0], np.cumsum(lengths)]), seen[known]
