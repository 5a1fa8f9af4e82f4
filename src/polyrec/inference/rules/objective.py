"""Scores of several tasks, of candidates; see `polyrec.core.score`.

Letters: C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from polyrec.core.score import Score
from polyrec.inference.rules.filters import TableRows, holds

_SMALLEST_SHARE, _LARGEST_SHARE = 1e-30, 1 - 6e-8  # of probabilities of single precision, whose log-odds must be finite
_SMALLEST = 1e-9  # of predictions in a product


def scores_of(
    score: Score, predictions: Mapping[str, np.ndarray], kinds: Mapping[str, str | None], ranking: str
) -> np.ndarray:
    """Scores by which items are ranked, float64 [C]: a sum, or a product's logarithm.

    Args:
        predictions: {task: [C]}, of `ranking` its scores.
        kinds: {task: `output_kind` of its head}.
        ranking: the task that ranks where the score names none.
    """
    total = np.zeros(len(predictions[ranking]))
    for name, weight in (score.weights or {ranking: 1.0}).items():
        values = predictions[name].astype(np.float64)
        if kinds[name] == "bernoulli" and not score.product:
            values = log_odds(values)
        elif kinds[name] != "catalog" and score.product:
            values = np.log(np.maximum(values, _SMALLEST))
        total += weight * values
    return total


def fulfilling(score: Score, predictions: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which items fulfil the conditions of a score, bool [C]."""
    rows = TableRows(pa.table({name: pa.array(values, from_pandas=True) for name, values in predictions.items()}))
    found = np.ones(len(rows), dtype=bool)
    for condition in score.conditions:
        found &= holds(condition, rows, score.text)
    return found


def log_odds(share: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)), float64, finite also of 0 and 1."""
    inside = np.clip(share.astype(np.float64), _SMALLEST_SHARE, _LARGEST_SHARE)
    return np.log(inside) - np.log1p(-inside)


def share(odds: np.ndarray) -> np.ndarray:
    """The probability of log-odds, float64."""
    return 1 / (1 + np.exp(-odds))
