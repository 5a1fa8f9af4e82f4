r"""Are explanations faithful? Deletion and insertion curves of a model's score.

Deletion removes events from a history, those with the largest effects first: the sooner the score falls,
the better the explanation. Insertion gives them to an empty history in the same order: the sooner it rises, the better
(Petsiuk, Das and Saenko, 2018, "RISE"). The area under a curve is the mean score over all steps; both ends of all
curves of an example are the same, so areas of two orders compare as they are.

Letters: V points of curves, L events, S steps, C items.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from polyrec.inference.explanation.explained import ExplainedRequest


def curves(
    explained: ExplainedRequest, orders: Mapping[str, np.ndarray], steps: int = 10
) -> dict[str, dict[str, np.ndarray]]:
    """Predictions for the example's first item along orders of the events it reads.

    Args:
        orders: {name: int64 [E], events of the history that the model reads, strongest first}.
        steps: S, of about as many events each.

    Returns:
        {name: {"deletion": [S + 1], "insertion": [S + 1]}}; events beyond those in an order are there all the time.
    """
    keep, names = [], []
    for name, order in orders.items():
        cuts = np.linspace(0, len(order), steps + 1).round().astype(np.int64)
        for kind in ("deletion", "insertion"):
            for cut in cuts:
                kept_L = np.ones(explained.events, dtype=bool)
                kept_L[order[:cut] if kind == "deletion" else order[cut:]] = False
                keep.append(kept_L)
            names.append((name, kind))
    # Every curve begins and ends with all or with none of the events, and orders may begin alike.
    distinct_VL, index = np.unique(np.array(keep), axis=0, return_inverse=True)
    scores = explained.variants(distinct_VL)[0][:, 0][index.reshape(-1)].reshape(len(names), steps + 1)
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in orders}
    for (name, kind), curve in zip(names, scores, strict=True):
        found[name][kind] = curve
    return found


def area(curve: np.ndarray) -> float:
    """Area under a curve over [0, 1] by trapezia: the mean score.

    Example:
        >>> area(np.array([2.0, 1.0, 0.0]))
        1.0
    """
    return float(((curve[1:] + curve[:-1]) / 2).mean())
