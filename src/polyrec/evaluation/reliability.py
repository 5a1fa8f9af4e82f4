"""Whether predictions mean what they say: their mean beside the mean of what happened, in groups of equal size."""

from __future__ import annotations

from typing import Any

import numpy as np

# A prediction is a mean (of 0 and 1, or of numbers) where one of these evaluates it; a median or a class is not.
_OF_MEANS = ("logloss", "rmse", "poisson_deviance")


def reliability(labels_R: np.ndarray, predictions_R: np.ndarray, bins: int = 10) -> dict[str, list[Any]]:
    """{"predicted": means, "observed": means, "rows": counts} of rows sorted by prediction and cut into equal shares.

    Rows with equal predictions stay together, so there may be fewer groups than `bins`.

    Args:
        labels_R: [R]; NaN = unknown, left out.
        predictions_R: [R], probabilities or numbers.

    Example:
        >>> reliability(np.array([0.0, 1.0, 1.0, 1.0]), np.array([0.25, 0.25, 0.5, 1.0]), bins=2)
        {'predicted': [0.25, 0.75], 'observed': [0.5, 1.0], 'rows': [2, 2]}
    """
    known_R = ~np.isnan(labels_R)
    y_R, p_R = labels_R[known_R].astype(np.float64), predictions_R[known_R].astype(np.float64)
    if not len(y_R):
        return {"predicted": [], "observed": [], "rows": []}
    edges = np.unique(np.quantile(p_R, np.linspace(0, 1, bins + 1)))
    bin_R = np.searchsorted(edges[1:-1], p_R, side="left")
    rows = np.bincount(bin_R)
    held = rows > 0
    means = {
        name: (np.bincount(bin_R, weights=values)[held] / rows[held]).tolist()
        for name, values in (("predicted", p_R), ("observed", y_R))
    }
    return {**means, "rows": rows[held].tolist()}


def predicts_means(metrics: tuple[str, ...]) -> bool:
    """Whether a head with these metrics predicts a mean, so that [`reliability`] can evaluate it."""
    return any(name in _OF_MEANS for name in metrics)
