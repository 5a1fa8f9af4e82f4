"""Numbers come to one scale, so that one grid of edges fits every feature."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

KNOTS = 100
GROUPS = 10  # of durations, see `grouped_quantiles`
_LIMIT = 4.0
_BLOCK = 1 << 16  # numbers of a matrix that are worked on at once, half a MiB in double precision
_TAIL = 1e-3  # ranks are kept this far from 0 and 1, i.e. values within +-3.1


def quantile_knots(values: np.ndarray) -> np.ndarray:
    """Quantiles that describe a distribution, [R] with NaN = missing -> [KNOTS]; zeros if nothing is known."""
    known = values[~np.isnan(values)]
    return np.quantile(known, np.linspace(0, 1, KNOTS)) if len(known) else np.zeros(KNOTS)


def rank_gaussian(values: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """The normal quantile of each value's rank in the distribution of `knots`, float32 [R].

    NaN stays NaN; a constant distribution gives 0.

    Example:
        >>> [round(float(v), 1) for v in rank_gaussian(np.array([1.0, 2.0, 3.0, np.nan]), np.array([1.0, 2.0, 3.0]))]
        [-3.1, 0.0, 3.1, nan]
    """
    if knots[0] == knots[-1]:
        return np.where(np.isnan(values), np.nan, 0.0).astype(np.float32)
    grid = np.linspace(0, 1, len(knots))
    # The mean of the two one-sided interpolations puts a value that fills several quantiles in their middle.
    ranks = 0.5 * (np.interp(values, knots, grid) + 1 - np.interp(-values, -knots[::-1], grid))
    return ndtri(np.clip(ranks, _TAIL, 1 - _TAIL)).astype(np.float32)


def grouped_quantiles(values: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    """The distribution of values in groups of another, rank-Gaussian scaled number, float32 [GROUPS + 1, KNOTS].

    Group g holds the rows whose scaled number lies in the g-th of GROUPS equally likely parts of the normal
    distribution; the last row is the distribution of all values, for rows whose number is unknown. So is that of a
    group without values.

    Args:
        values: [R], NaN = unknown, at least one is known.
        scaled: [R], as [`rank_gaussian`] makes it.
    """
    group = np.where(np.isnan(scaled), GROUPS, np.minimum(ndtr(scaled) * GROUPS, GROUPS - 1)).astype(np.int64)
    known = ~np.isnan(values)
    members = [known & (group == g) for g in range(GROUPS)] + [known]
    return np.stack([quantile_knots(values[m] if m.any() else values) for m in members]).astype(np.float32)


def _blocks(matrix: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of a matrix, some at a time: what is computed of them in double precision takes little memory."""
    rows = max(_BLOCK // max(matrix.shape[1], 1), 1)
    for begin in range(0, len(matrix), rows):
        yield matrix[begin : begin + rows]


class MeanVariance:
    """Mean and variance of each column of matrices that come one after the other (Chan et al., 1979, "Updating
    Formulae and a Pairwise Algorithm for Computing Sample Variances"); NaN = unknown.

    Args:
        columns: F.

    Attributes:
        counts, mean: float64 [F]; the mean of a column without any value is NaN.

    Example:
        >>> known = MeanVariance(1)
        >>> known.add(np.array([[1.0], [2.0]]))
        >>> known.add(np.array([[np.nan], [6.0]]))
        >>> known.mean.tolist(), known.variance.round(2).tolist()
        ([3.0], [4.67])
    """

    def __init__(self, columns: int) -> None:
        self.counts, self._squares = np.zeros(columns), np.zeros(columns)
        self.mean = np.full(columns, np.nan)

    def add(self, matrix: np.ndarray) -> None:
        """Some more rows, [R, F]."""
        for block in _blocks(matrix):
            counts = (~np.isnan(block)).sum(0)
            some = np.maximum(counts, 1)
            mean = np.nansum(block, 0, dtype=np.float64) / some
            squares = np.nansum(np.square(block - mean), 0, dtype=np.float64)
            total, before = self.counts + counts, np.nan_to_num(self.mean)
            change = np.where(counts > 0, mean - before, 0.0)
            self._squares += squares + np.square(change) * self.counts * counts / np.maximum(total, 1)
            self.mean = np.where(total > 0, before + change * counts / np.maximum(total, 1), np.nan)
            self.counts = total

    @property
    def variance(self) -> np.ndarray:
        """float64 [F], 0 of a column without any value."""
        return self._squares / np.maximum(self.counts, 1)


@dataclass(frozen=True)
class StatisticsScaler:
    """Standardises every column of a matrix, clipped to +-4; NaN = unknown stays NaN, a constant column gives 0.

    Linear, unlike [`rank_gaussian`]: running baselines are nearly the label, and a linear skip can only use them if
    their scale stays theirs (measured: better on every task than ranks).

    Args:
        mean, std: float64 [F], fitted on training rows.
    """

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, matrix: np.ndarray) -> StatisticsScaler:
        """Learn mean and spread of each column of [R, F]; a column without any value gets 0 and 1."""
        known = MeanVariance(matrix.shape[1])
        known.add(matrix)
        return cls.of(known)

    @classmethod
    def of(cls, known: MeanVariance) -> StatisticsScaler:
        """The scales of what was added up."""
        variance = known.variance
        mean = np.where(known.counts > 0, known.mean, 0.0)
        return cls(mean, np.where(variance > 1e-12, np.sqrt(variance), 1.0))

    def transform(self, matrix: np.ndarray) -> np.ndarray:
        """Scale [R, F] to float32 [R, F]."""
        scaled = np.empty(matrix.shape, dtype=np.float32)
        for block, target in zip(_blocks(matrix), _blocks(scaled), strict=True):
            np.clip((block - self.mean) / self.std, -_LIMIT, _LIMIT, out=target, casting="same_kind")
        return scaled

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StatisticsScaler:
        """Rebuild from [`to_dict`]."""
        return cls(np.asarray(values["mean"], dtype=np.float64), np.asarray(values["std"], dtype=np.float64))
