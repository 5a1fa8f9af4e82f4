"""Ranked lists of anything that scores the catalog for candidates of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from polyrec.core.progress import progress
from polyrec.data.candidates import LeftOut, excluded_items
from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation import ranking
from polyrec.modules.encoders.item import FIRST_ITEM

_ROWS = 1024  # more gain nothing
_BYTES = 1 << 25  # of scores that are ranked at a time; a few copies of as much are made on the way


@dataclass
class Ranking:
    """Lists of a retrieval task.

    Args:
        rows: int64 [R], which candidates of the data set were ranked: those whose item is a positive.
        greater, ties: int64 [R], items that score higher than the item taken, and others that score the same; see
            `ranking.rank_targets` for items that no list can hold.
        top_ids: int64 [R, K], the best items, as rows of the catalog (item id - 2).
        excluded: bool [R], whether the item taken is none of the row's candidates (see `polyrec.data.candidates`).
    """

    rows: np.ndarray
    greater: np.ndarray
    ties: np.ndarray
    top_ids: np.ndarray
    excluded: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def __post_init__(self) -> None:
        if len(self.excluded) != len(self.rows):
            self.excluded = np.zeros(len(self.rows), dtype=bool)

    def of(self, chosen: np.ndarray) -> Ranking:
        """The lists of some rows; `chosen` is bool [R] or indices."""
        return Ranking(*(values[chosen] for values in vars(self).values()))


def rows_at_once(num_items: int) -> int:
    """How many rows of scores are ranked together, so that memory is bounded whatever the catalog's size."""
    return max(min(_BYTES // (4 * max(num_items, 1)), _ROWS), 1)


def ranked_rows(dataset: SequenceDataset, task: str) -> np.ndarray:
    """The candidates of a retrieval task: those whose item is a positive, unknown items included, int64 [R]."""
    return np.flatnonzero(dataset.labels()[:, dataset.task_names.index(task)] > 0)


def rank_scores(scores_RN: Tensor, dataset: SequenceDataset, rows: np.ndarray, what: LeftOut, k: int) -> Ranking:
    """Rank candidates of a data set by scores of the catalog; a target that no list can hold is a miss.

    Args:
        scores_RN: [R, N - 2], without padding and the unknown item, on any device; what is no candidate is set to -inf.
        rows: int64 [R], candidates of the data set.
        what: is left out of the lists, see `polyrec.data.candidates`.
        k: length of the lists; 0: ranks of the targets alone, which is quicker.
    """
    device = scores_RN.device
    targets_R = torch.from_numpy(dataset.log.item[dataset.candidates.event[rows]] - FIRST_ITEM).to(device)
    targets_R = targets_R.clamp(min=ranking.NO_ITEM)
    before_R = _of_targets(scores_RN, targets_R)
    for index, items in excluded_items(what, dataset, rows):
        at = torch.from_numpy(index).to(device), torch.from_numpy(items - FIRST_ITEM).to(device)
        scores_RN[at] = float("-inf")
    excluded_R = _of_targets(scores_RN, targets_R) != before_R
    greater, ties = ranking.rank_targets(scores_RN, targets_R)
    top = ranking.top_k(scores_RN, min(k, scores_RN.shape[1])) if k else targets_R.new_zeros(len(rows), 0)
    return Ranking(rows, *(values.cpu().numpy() for values in (greater, ties, top, excluded_R)))


def _of_targets(scores_RN: Tensor, targets_R: Tensor) -> Tensor:
    """Scores of the targets; 0 where one is not in the catalog."""
    found_R = scores_RN.gather(1, targets_R.clamp(min=0).unsqueeze(1)).squeeze(1)
    return found_R.masked_fill(targets_R == ranking.NO_ITEM, 0.0)


def rank_rows(
    score: Callable[[np.ndarray], np.ndarray],
    dataset: SequenceDataset,
    rows: np.ndarray,
    k: int = 10,
    what: LeftOut = "history",
    num_items: int | None = None,
) -> Ranking:
    """Rank the catalog for candidates whose item is a positive, as `polyrec.evaluation.evaluator.predict` ranks a
    model.

    Args:
        score: candidates of the data set, int64 [R] -> scores of the catalog without padding and the unknown item,
            float [R, N - 2].
        rows: int64 [R], candidates of the data set.
        k: length of the lists; 0: ranks alone.
        what: is left out of the lists, see `polyrec.data.candidates`.
        num_items: N - 2; None: the first row, ranked alone, tells.
    """
    parts: list[Ranking] = []
    first, size = 0, 1 if num_items is None else rows_at_once(num_items)
    bar = progress(None, "Ranking", len(rows), "row")
    while first < len(rows):
        chosen = rows[first : first + size]
        scores_RN = torch.from_numpy(np.array(score(chosen), order="C"))
        parts.append(rank_scores(scores_RN, dataset, chosen, what, k))
        first, size = first + len(chosen), rows_at_once(scores_RN.shape[1])
        bar.update(len(chosen))
    bar.close()
    return join_rankings(parts, k)


def join_rankings(parts: list[Ranking], k: int) -> Ranking:
    """One ranking of several; of none, an empty one with lists of length k."""
    if not parts:
        nothing = np.zeros(0, dtype=np.int64)
        return Ranking(nothing, nothing, nothing, np.zeros((0, k), dtype=np.int64))
    return Ranking(*(np.concatenate(columns) for columns in zip(*(vars(p).values() for p in parts), strict=True)))
