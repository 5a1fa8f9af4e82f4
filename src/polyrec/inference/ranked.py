"""Ranked lists as arrays, as dicts and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import FIRST_ITEM


class Ranked(NamedTuple):
    """One user's list, best first.

    Args:
        rows: int64 [K], rows of the item table.
        scores: float32 [K], by which they are ranked.
        predictions: {task: float32 [K]}, of every task that scores an item.
        cold_start: none of the history's items is known.
        propensities: float64 [K], of a list that was drawn: the chance of each item, given those above it.
        unmet: what rules could not keep.
    """

    rows: np.ndarray
    scores: np.ndarray
    predictions: dict[str, np.ndarray]
    cold_start: bool
    propensities: np.ndarray | None = None
    unmet: tuple[str, ...] = ()

    def described(self, processor: PolyRecProcessor, tasks: Sequence[str]) -> list[dict[str, Any]]:
        """A dict per item, as `Recommender.recommend` gives it.

        Args:
            tasks: whose predictions are shown.
        """
        drawn, cold = self.propensities, processor.item_counts[self.rows] == 0
        return [
            {
                "rank": n + 1,
                **about,
                "score": float(self.scores[n]),
                **{name: float(self.predictions[name][n]) for name in tasks},
                "cold_item": bool(cold[n]),
                "cold_start": self.cold_start,
                **({} if drawn is None else {"propensity": float(drawn[n])}),
            }
            for n, about in enumerate(processor.describe_many(self.rows))
        ]


def best_items(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k highest scores, best first; -inf = not a candidate.

    Raises:
        ValueError: a score is NaN or infinite: the model has diverged.
    """
    if np.isnan(scores).any() or (scores == np.inf).any():
        raise ValueError("scores are not finite: the model has diverged; lower its learning rate and train it anew")
    k = min(k, int(np.isfinite(scores).sum()))
    if not k:
        return np.zeros(0, dtype=np.int64)
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= least)  # ties of the last one included, so that earlier rows come first
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k]


def as_table(
    processor: PolyRecProcessor, users: Sequence[Any], lists: Sequence[Ranked], tasks: Sequence[str]
) -> pa.Table:
    """A row per user and rank: user, rank, item, score, predictions of some tasks, cold_start; propensity of
    lists that were drawn.
    """
    lengths, rows = [len(own.rows) for own in lists], np.concatenate([own.rows for own in lists])
    columns: dict[str, Any] = {
        processor.columns.user: pa.array(users).take(pa.array(np.repeat(np.arange(len(users)), lengths))),
        "rank": pa.array(np.concatenate([np.arange(1, n + 1, dtype=np.int32) for n in lengths])),
        processor.columns.item: processor.items.ids.take(pa.array(rows - FIRST_ITEM)),
        "score": pa.array(np.concatenate([own.scores for own in lists])),
    }
    none = np.zeros(0, dtype=np.float32)  # of an empty list
    for task in tasks:
        columns[task] = pa.array(np.concatenate([own.predictions.get(task, none) for own in lists]))
    columns["cold_start"] = pa.array(np.repeat([own.cold_start for own in lists], lengths))
    if lists and lists[0].propensities is not None:
        columns["propensity"] = pa.array(np.concatenate([own.propensities for own in lists]))
    return pa.table(columns)
