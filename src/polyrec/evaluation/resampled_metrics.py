"""Metrics of resampled users, fast: a resample is how often each user was drawn.

A metric prepared by `resampled_metric` is called with those counts, `times_G`, and returns what the plain metric would
give on the resampled rows (each user's rows repeated as often as the user was drawn). Sorting, logarithms and sums
over a user's rows happen once; one resample of an AUC then costs a pass over the rows, of a mean two dot products.
Letters: R rows, G users.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp

from polyrec.evaluation import evaluator, metrics

ResampledMetric = Callable[[np.ndarray], float]

_BINS = 15  # of `metrics.expected_calibration_error`


def resampled_mean(values_R: np.ndarray, code_R: np.ndarray, users: int) -> ResampledMetric:
    """Mean of per-row values; NaN = unknown, left out.

    Args:
        values_R: [R].
        code_R: int [R], user of each row as 0..G-1.
        users: G.

    Example:
        >>> mean = resampled_mean(np.array([1.0, 2.0, 6.0]), np.array([0, 0, 1]), users=2)
        >>> mean(np.array([1, 1])), mean(np.array([0, 2]))
        (3.0, 6.0)
    """
    known_R = ~np.isnan(values_R)
    sum_G = np.bincount(code_R, weights=np.where(known_R, values_R, 0.0), minlength=users)
    rows_G = np.bincount(code_R, weights=known_R, minlength=users)
    return lambda times_G: _ratio(times_G @ sum_G, times_G @ rows_G)


def resampled_metric(
    name: str, labels_R: np.ndarray, values_R: np.ndarray, code_R: np.ndarray, users: int
) -> ResampledMetric | None:
    """A metric of `evaluator.PAIR_METRICS` of resampled users, or None where only the slow way is known.

    Args:
        name: of the metric.
        labels_R: [R], all known.
        values_R: [R, ...], the model's predictions.
        code_R: int [R], user of each row as 0..G-1.
        users: G.
    """
    prepare = _FAST.get(name)
    return None if prepare is None else prepare(labels_R.astype(np.float64), values_R, code_R, users)


def is_fast(name: str) -> bool:
    """Whether a resample of a metric costs no more than a pass over the rows."""
    return name in _FAST


def repeated_rows(
    name: str, labels_R: np.ndarray, values_R: np.ndarray, code_R: np.ndarray, users: int
) -> ResampledMetric:
    """The slow way, for any metric: compute it on rows repeated as often as their user was drawn."""
    metric = evaluator.PAIR_METRICS[name]

    def resample(times_G: np.ndarray) -> float:
        chosen = np.repeat(np.arange(len(code_R)), times_G[code_R])
        return metric(labels_R[chosen], values_R[chosen], code_R[chosen])

    return resample


def _auc(labels_R: np.ndarray, scores_R: np.ndarray, code_R: np.ndarray, users: int) -> ResampledMetric:
    positive_R = labels_R > 0
    negative = np.flatnonzero(~positive_R)
    negative = negative[np.argsort(scores_R[negative], kind="stable")]
    negative_code, positive_code = code_R[negative], code_R[positive_R]
    # Of the sorted negatives, those before `below` score less than a positive, those from `upto` on score more.
    below = np.searchsorted(scores_R[negative], scores_R[positive_R], side="left")
    upto = np.searchsorted(scores_R[negative], scores_R[positive_R], side="right")

    def resample(times_G: np.ndarray) -> float:
        drawn = times_G[positive_code].astype(np.float64)
        passed = np.zeros(len(negative) + 1)
        np.cumsum(times_G[negative_code], out=passed[1:])
        return _ratio(drawn @ (passed[below] + passed[upto]) / 2, drawn.sum() * passed[-1])

    return resample


def _gauc(labels_R: np.ndarray, scores_R: np.ndarray, code_R: np.ndarray, users: int) -> ResampledMetric:
    value_G, rows_G = metrics.auc_by_group(labels_R, scores_R, code_R)
    value_of, rows_of = np.full(users, np.nan), np.zeros(users)
    present = np.unique(code_R)
    value_of[present], rows_of[present] = value_G, rows_G
    rows_of[np.isnan(value_of)] = 0.0
    sum_of = np.nan_to_num(value_of) * rows_of
    return lambda times_G: _ratio(times_G @ sum_of, times_G @ rows_of)


def _calibration_error(labels_R: np.ndarray, probs_R: np.ndarray, code_R: np.ndarray, users: int) -> ResampledMetric:
    probs_R = probs_R.astype(np.float64)
    bin_R = np.minimum((probs_R * _BINS).astype(np.int64), _BINS - 1)
    gap_GB = sp.csr_array((labels_R - probs_R, (code_R, bin_R)), shape=(users, _BINS))
    rows_G = np.bincount(code_R, minlength=users)
    return lambda times_G: _ratio(np.abs(times_G @ gap_GB).sum(), times_G @ rows_G)


def _row_mean(
    per_row: Callable[[np.ndarray, np.ndarray], np.ndarray], after: Callable[[float], float] = float
) -> Callable[[np.ndarray, np.ndarray, np.ndarray, int], ResampledMetric]:
    """Preparation of a metric that is a function (`after`) of a mean over rows."""

    def prepare(labels_R: np.ndarray, values_R: np.ndarray, code_R: np.ndarray, users: int) -> ResampledMetric:
        mean = resampled_mean(per_row(labels_R, values_R.astype(np.float64)), code_R, users)
        return lambda times_G: after(mean(times_G))

    return prepare


def _ratio(numerator: Any, denominator: Any) -> float:
    return float(numerator / denominator) if denominator else float("nan")


_FAST: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, int], ResampledMetric]] = {
    "auc": _auc,
    "gauc": _gauc,
    "calibration_error": _calibration_error,
    "logloss": _row_mean(metrics.log_losses),
    "rmse": _row_mean(lambda y, p: np.square(y - p), lambda mean: float(np.sqrt(mean))),
    "mae": _row_mean(lambda y, p: np.abs(y - p)),
    "accuracy": _row_mean(lambda y, p: y == p.round()),
    "poisson_deviance": _row_mean(metrics.poisson_deviances),
}
