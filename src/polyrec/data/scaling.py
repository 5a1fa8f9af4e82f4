"""Numbers become standard normal by their rank, so that one grid of edges fits every feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

KNOTS = 100
_TAIL = 1e-3  # ranks are kept this far from 0 and 1, i.e. values within +-3.1


def quantile_knots(values: np.ndarray) -> np.ndarray:
    """Quantiles that describe a distribution, [R] with NaN = missing -> [KNOTS]; zeros if nothing is known."""
    known = values[~np.isnan(values)]
    return np.quantile(known, np.linspace(0, 1, KNOTS)) if len(known) else np.zeros(KNOTS)


def rank_gaussian(values: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """The normal quantile of each value's rank in the distribution of `knots`, float32 [R]; NaN stays, a constant gives 0.

    Example:
        >>> rank_gaussian(np.array([1.0, 2.0, 3.0, np.nan]), np.array([1.0, 2.0, 3.0])).round(1).tolist()
        [-3.1, 0.0, 3.1, nan]
    """
    if knots[0] == knots[-1]:
        return np.where(np.isnan(values), np.nan, 0.0).astype(np.float32)
    grid = np.linspace(0, 1, len(knots))
    # The mean of the two one-sided interpolations puts a value that fills several quantiles in their middle.
    ranks = 0.5 * (np.interp(values, knots, grid) + 1 - np.interp(-values, -knots[::-1], grid))
    return ndtri(np.clip(ranks, _TAIL, 1 - _TAIL)).astype(np.float32)


@dataclass(frozen=True)
class StatisticsScaler:
    """Scales every column of a matrix by [`rank_gaussian`]; NaN = unknown stays NaN.

    Args:
        knots: float64 [F, KNOTS], fitted on training rows.
    """

    knots: np.ndarray

    @classmethod
    def fit(cls, matrix: np.ndarray) -> StatisticsScaler:
        """Learn the distribution of each column of [R, F]."""
        return cls(np.stack([quantile_knots(column.astype(np.float64)) for column in matrix.T]))

    def transform(self, matrix: np.ndarray) -> np.ndarray:
        """Scale [R, F] to float32 [R, F]."""
        scaled = np.empty(matrix.shape, dtype=np.float32)
        for j, knots in enumerate(self.knots):
            scaled[:, j] = rank_gaussian(matrix[:, j], knots)
        return scaled

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"knots": self.knots.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StatisticsScaler:
        """Rebuild from [`to_dict`]."""
        return cls(np.asarray(values["knots"], dtype=np.float64))
