"""Batches of windows for whoever reads each of them once and in any order: evaluations, teachers.

Letters: W windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from polyrec.data.collator import PolyRecCollator
from polyrec.data.sequences import SequenceDataset

_LONGEST = 256  # padded length up to which a batch has as many windows as asked for


def window_loader(
    dataset: SequenceDataset, windows: np.ndarray, batch_size: int, workers: int = 0
) -> DataLoader[dict[str, Any]]:
    """Collated batches of some windows, those of like length together, short ones first.

    A batch is padded to its longest window, so that few users with thousands of candidates at one time would make
    `batch_size` windows of that many: such batches have fewer windows.

    Args:
        windows: int64 [W].
        batch_size: windows of a batch at most.
        workers: processes that read windows; 0: this one does.
    """
    lengths = np.asarray(dataset.lengths)[windows]
    order = np.argsort(lengths, kind="stable")
    cells = batch_size * max(dataset.max_history, _LONGEST)
    batches = [windows[order[rows]].tolist() for rows in padded_batches(lengths[order], batch_size, cells)]
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=PolyRecCollator(),
        num_workers=workers,
        generator=torch.Generator(),  # a loader draws a seed, which must not come out of the training's random state
    )


def padded_batches(lengths: np.ndarray, most: int, cells: int) -> Iterator[slice]:
    """Neighbouring windows, at most so many, that hold at most so many cells once padded; one window may hold more.

    Args:
        lengths: int64 [W], ascending.

    Example:
        >>> [(rows.start, rows.stop) for rows in padded_batches(np.array([1, 1, 1, 5, 9, 30]), most=2, cells=12)]
        [(0, 2), (2, 4), (4, 5), (5, 6)]
    """
    begin = 0
    while begin < len(lengths):
        end = min(begin + most, len(lengths))
        sizes = np.arange(1, end - begin + 1) * lengths[begin:end]
        fits = max(int(np.searchsorted(sizes, cells, side="right")), 1)
        yield slice(begin, begin + fits)
        begin += fits
