"""Numbers come to one scale, so that one grid of edges fits every feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

KNOTS = 100
GROUPS = 10  # of durations, see `grouped_quantiles`
_LIMIT = 4.0
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


@dataclass(frozen=True)
class StatisticsScaler:
    """Standardises every column of a matrix, clipped to +-4; NaN = unknown stays NaN, a constant column gives 0.

    Linear, unlike [`rank_gaussian`]: running baselines are nearly the answer, and a linear skip can only use them if
    their scale stays theirs (measured: better on every task than ranks).

    Args:
        mean, std: float64 [F], fitted on training rows.
    """

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, matrix: np.ndarray) -> StatisticsScaler:
        """Learn mean and spread of each column of [R, F]; a column without any value gets 0 and 1."""
        known = ~np.isnan(matrix)
        counts = np.maximum(known.sum(0), 1)
        mean = np.nansum(matrix, 0, dtype=np.float64) / counts
        variance = np.nansum(np.square(matrix - mean), 0, dtype=np.float64) / counts
        return cls(mean, np.where(variance > 1e-12, np.sqrt(variance), 1.0))

    def transform(self, matrix: np.ndarray) -> np.ndarray:
        """Scale [R, F] to float32 [R, F]."""
        return np.clip((matrix - self.mean) / self.std, -_LIMIT, _LIMIT).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StatisticsScaler:
        """Rebuild from [`to_dict`]."""
        return cls(np.asarray(values["mean"], dtype=np.float64), np.asarray(values["std"], dtype=np.float64))
