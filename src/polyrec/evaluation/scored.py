"""Lists of anything that scores the catalog for candidates of a data set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from polyrec.data.sequences import SequenceDataset
from polyrec.encoders.item import FIRST_ITEM
from polyrec.evaluation import ranking
from polyrec.evaluation.evaluator import Ranking, visible_items

_CHUNK = 1024


def rank_rows(
    score: Callable[[np.ndarray], np.ndarray],
    dataset: SequenceDataset,
    rows: np.ndarray,
    k: int = 10,
    exclude_seen: bool = True,
) -> Ranking:
    """Rank the catalog for candidates whose item was taken, as `polyrec.evaluation.evaluator.predict` ranks a model.

    Args:
        score: candidates of the data set, int64 [R] -> scores of the catalog without padding and the unknown item,
            float [R, N - 2].
        rows: int64 [R], candidates of the data set.
    """
    parts = []
    for chosen in np.split(rows, np.arange(_CHUNK, len(rows), _CHUNK)):
        scores = torch.from_numpy(np.ascontiguousarray(score(chosen)))
        targets = torch.from_numpy(dataset.log.item[dataset.candidates.event[chosen]] - FIRST_ITEM)
        excluded = visible_items(dataset, chosen) if exclude_seen else None
        greater, ties = ranking.rank_targets(scores, targets, excluded)
        parts.append((greater.numpy(), ties.numpy(), ranking.top_k(scores, k, excluded).numpy()))
    return Ranking(rows, *(np.concatenate(column) for column in zip(*parts, strict=True)))
