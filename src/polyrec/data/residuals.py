"""What the labels of events said against what was expected, in standard deviations.

Letters: R events, T targets.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from polyrec.data.key_states import KeyStates


def residuals(targets: np.ndarray, expected: np.ndarray, spread: Mapping[str, float]) -> np.ndarray:
    """float32 [R, T], NaN = unknown.

    Args:
        targets, expected: [R, T].
        spread: {target: standard deviation}, in their order.
    """
    scale = np.array([max(own, 1e-6) for own in spread.values()])
    return ((targets - expected) / scale).astype(np.float32)


def said_by_others(
    state: KeyStates, pair: np.ndarray, targets: np.ndarray, held: np.ndarray, prior: np.ndarray, shrinkage: float
) -> np.ndarray:
    """The shrunk mean of each event's item over the events of other users that were counted, float64 [R, T].

    Args:
        state: what was counted of each event's item, [R].
        pair: int64 [R], a number of each event's user and item.
        targets: [R, T].
        held: bool [R], events that were counted.
        prior: [T].
        shrinkage: of the mean.
    """
    sums, counts = state.sums - state.counts * prior, state.counts.astype(np.float64)
    known, number = held[:, None] & ~np.isnan(targets), np.unique(pair, return_inverse=True)[1]
    for j in range(targets.shape[1]):
        sums[:, j] -= np.bincount(number, np.where(known[:, j], targets[:, j] - prior[j], 0.0))[number]
        counts[:, j] -= np.bincount(number, known[:, j])[number]
    return prior + sums / (counts + shrinkage)
