"""Intervals over users of a task's metrics, as fast as each metric allows."""

from __future__ import annotations

import numpy as np

from polyrec.evaluation import bootstrap
from polyrec.evaluation.resampled_metrics import repeated_rows, resampled_metric


def metric_interval(
    name: str, labels_R: np.ndarray, values_R: np.ndarray, users_R: np.ndarray, n: int = 200, seed: int = 0
) -> bootstrap.Interval:
    """The interval that `bootstrap.bootstrap_interval` gives for a metric of `evaluator.PAIR_METRICS`, on equal draws.

    Args:
        labels_R: [R]; NaN = unknown, left out. One at least is known.
        values_R: [R], one value each.
        users_R: [R], user of each row.
        n, seed: of the resampling.

    Example:
        >>> labels, values = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 2.0, 6.0])
        >>> interval = metric_interval("rmse", labels, values, np.array([1, 1, 2, 3]))
        >>> round(interval.value, 3), interval.low, interval.high
        (1.118, 0.0, 2.0)
    """
    known_R = ~np.isnan(labels_R)
    labels_R, values_R = labels_R[known_R], values_R[known_R]
    names_G, code_R = np.unique(users_R[known_R], return_inverse=True)
    columns = (labels_R, values_R, code_R, len(names_G))
    metric = resampled_metric(name, *columns) or repeated_rows(name, *columns)
    value = metric(np.ones(len(names_G), dtype=np.int64))
    samples = [metric(np.bincount(d, minlength=len(names_G))) for d in bootstrap.draws(len(names_G), n, seed)]
    return bootstrap.interval_of(value, np.array(samples), 0.95, len(names_G))


def bounds(interval: bootstrap.Interval) -> list[float]:
    """Both ends, as reports hold them."""
    return [interval.low, interval.high]
