"""How sure are we? Intervals by resampling USERS, for any metric, and for the difference of two systems.

Rows of one user resemble each other, so resampling rows gives intervals that are far too narrow. Users are drawn
with replacement, each with all their rows (cluster bootstrap: Efron and Tibshirani, 1993, ch. 8; Field and Welsh,
2007), and the interval is the percentile interval. Only the users vary: the spread over training seeds comes on top.
Letters: R rows, G users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Interval:
    """A value and where it may lie.

    Args:
        value: the metric on the users as they are.
        low, high: percentile interval at `level`; NaN where no resample had a value.
        level: e.g. 0.95.
        users: number of users that were resampled, G. Below about 30 the interval is rough.
        samples: float64 [n], the metric on each resample; NaN where it has none (e.g. only one label was drawn: such
            resamples are left out of the interval).
    """

    value: float
    low: float
    high: float
    level: float
    users: int
    samples: np.ndarray = field(repr=False, compare=False)

    @property
    def p_value(self) -> float:
        """Two-sided achieved significance of "the value is 0", for differences; at least 1 / (n + 1), NaN unknown."""
        known = self.samples[~np.isnan(self.samples)]
        if not len(known):
            return float("nan")
        tail = min(int((known <= 0).sum()), int((known >= 0).sum()))
        return min(1.0, 2 * (tail + 1) / (len(known) + 1))

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap_interval(
    metric: Callable[..., float],
    groups: ArrayLike,
    *columns: ArrayLike,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of any metric of per-row columns, e.g. AUC, RMSE or GAUC.

    The metric is computed n times on about R rows; for means of per-row values use `bootstrap_mean`, which is hundreds
    of times faster. A user drawn twice brings their rows twice. For `grouped_auc` pass the groups as a column, too:
    the copies then form one group, of the same AUC and twice the weight.

    Args:
        metric: called as metric(*columns) with resampled columns; any function of arrays that returns a number.
        groups: [R], user of each row: integers or strings, in any order.
        columns: [R, ...] each.
        n: number of resamples.
        seed: of the resampling; equal seeds draw equal users, whatever the metric.
        level: of the interval.

    Example:
        >>> from polyrec.evaluation.metrics import rmse
        >>> users, labels, predictions = [1, 1, 2, 3], [1.0, 2, 3, 4], [1.0, 2, 2, 6]
        >>> interval = bootstrap_interval(rmse, users, labels, predictions, n=200)
        >>> round(interval.value, 3), interval.low, interval.high
        (1.118, 0.0, 2.0)
    """
    code_R, users = _users(groups)
    arrays = [np.asarray(column) for column in columns]
    for i, array in enumerate(arrays):
        if not array.ndim or len(array) != len(code_R):
            raise ValueError(f"column {i} has shape {array.shape}, not one entry for each of {len(code_R)} rows")
    value = float(metric(*arrays))
    order_R = np.argsort(code_R, kind="stable")
    rows_G = np.bincount(code_R, minlength=users)
    begin_G = np.cumsum(rows_G) - rows_G

    def resample(drawn_G: np.ndarray) -> float:
        size_G = rows_G[drawn_G]
        shift_G = begin_G[drawn_G] - (np.cumsum(size_G) - size_G)
        chosen = order_R[np.arange(size_G.sum()) + np.repeat(shift_G, size_G)]
        return float(metric(*(array[chosen] for array in arrays)))

    samples = np.array([resample(drawn_G) for drawn_G in draws(users, n, seed)])
    return interval_of(value, samples, level, users)


def bootstrap_mean(
    values: ArrayLike, groups: ArrayLike, *, n: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Interval of the mean of per-row values (NDCG per list, log loss per row, or the difference of two systems').

    The same interval as `bootstrap_interval(np.nanmean, groups, values)`, fast: a resample is how often each user was
    drawn (a multinomial count), and its mean the ratio of two weighted sums over users.

    Args:
        values: [R]; NaN = unknown, left out.
        groups: [R], user of each row.
        n, seed, level: as in `bootstrap_interval`.

    Example:
        >>> first, second, users = np.array([0.9, 0.4, 0.8]), np.array([0.6, 0.2, 0.9]), ["ann", "bob", "cid"]
        >>> str(bootstrap_mean(first - second, users))
        '0.1333 [-0.1000, 0.3000]'
    """
    code_R, users = _users(groups)
    values_R = np.asarray(values).astype(np.float64)
    if values_R.shape != code_R.shape:
        raise ValueError(f"values must hold one number for each of {len(code_R)} rows, its shape is {values_R.shape}")
    known_R = ~np.isnan(values_R)
    sum_G = np.bincount(code_R, weights=np.where(known_R, values_R, 0.0), minlength=users)
    rows_G = np.bincount(code_R, weights=known_R, minlength=users)

    def mean(times_G: np.ndarray) -> float:
        rows = times_G @ rows_G
        return float(times_G @ sum_G / rows) if rows else float("nan")

    samples = np.array([mean(np.bincount(drawn_G, minlength=users)) for drawn_G in draws(users, n, seed)])
    return interval_of(mean(np.ones(users)), samples, level, users)


def _users(groups: ArrayLike) -> tuple[np.ndarray, int]:
    """User of each row as 0..G-1, and G."""
    groups_R = np.asarray(groups)
    if groups_R.ndim != 1 or not len(groups_R):
        raise ValueError(f"groups must name the user of each row, at least one, its shape is {groups_R.shape}")
    names_G, code_R = np.unique(groups_R, return_inverse=True)
    return code_R, len(names_G)


def draws(users: int, n: int, seed: int) -> Iterator[np.ndarray]:
    """The users of each resample, int64 [G]."""
    if n < 1:
        raise ValueError(f"n must be at least 1 resample, not {n}; 1000 is usual")
    generator = np.random.default_rng(seed)
    return (generator.integers(users, size=users) for _ in range(n))


def interval_of(value: float, samples: np.ndarray, level: float, users: int) -> Interval:
    """The percentile interval of a metric's values on resamples (NaN = no value: left out)."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, e.g. 0.95, not {level}")
    known = samples[~np.isnan(samples)]
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]) if len(known) else (np.nan, np.nan)
    return Interval(value, float(low), float(high), level, users, samples)
