"""Figures of one system, with intervals over users: of its lists, or of its predictions of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation import bootstrap, evaluator, ranking
from polyrec.evaluation.intervals import bounds, metric_interval
from polyrec.evaluation.resampled_metrics import is_fast
from polyrec.evaluation.scored import Ranking

_ACCURACY = ("ndcg", "recall", "mrr")


def list_figures(
    found: Ranking, users: np.ndarray, ks: Sequence[int], num_items: int, every: bool = False, resamples: int = 200
) -> dict[str, Any]:
    """NDCG, recall, MRR and coverage of lists at every cut-off, {metric: value, "interval": {metric: [low, high]}}.

    Args:
        users: int64 [R], user of each list.
        ks: cut-offs, at most the length of the lists (or all of a smaller catalog).
        num_items: N of the catalog, whose share is the coverage.
        every: intervals of all of the accuracy, else of NDCG alone.
        resamples: of intervals; 0: there are none.
    """
    per_list = ranking.single_target_metrics(found.greater, found.ties, ks=ks)
    result: dict[str, Any] = {}
    for k in ks:
        result |= {f"{m}@{k}": float(per_list[f"{m}@{k}"].mean()) for m in _ACCURACY}
        result[f"coverage@{k}"] = ranking.coverage(found.top_ids[:, :k], num_items)
    resampled = [f"{m}@{k}" for k in ks for m in _ACCURACY if every or m == _ACCURACY[0]] if resamples else []
    drawn = {m: bootstrap.bootstrap_mean(per_list[m], users, n=resamples) for m in resampled}
    return {**result, "interval": {m: bounds(interval) for m, interval in drawn.items()}}


def pair_figures(
    metrics: tuple[str, ...],
    dataset: SequenceDataset,
    task: str,
    values: np.ndarray,
    details: np.ndarray | None = None,
    every: bool = False,
    resamples: int = 200,
) -> dict[str, Any]:
    """Metrics of predictions of a pair task, {metric: value, "interval": {metric: [low, high]}}.

    Args:
        metrics: names, of the task's head.
        values, details: predictions of the data set's candidates, see `evaluator.Predictions`.
        every: intervals of all metrics that are quickly resampled, else of the first alone.
        resamples: of intervals; 0: there are none.
    """
    labels, users = dataset.labels()[:, dataset.task_names.index(task)], dataset.user_codes()
    found, _ = evaluator.pair_metrics(metrics, labels, values, users, task, details)
    measured = [name for name in found if name in evaluator.PAIR_METRICS and np.isfinite(found[name])]
    resampled = [n for n in measured if n == measured[0] or (every and is_fast(n))] if resamples else []
    intervals = {n: bounds(metric_interval(n, labels, values, users, resamples)) for n in resampled}
    return {**found, "interval": intervals}
