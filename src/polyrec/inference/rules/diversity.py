"""Different items beside each other, by pyversity, with quotas.

Letters: M items to choose from, D width.
"""

from __future__ import annotations

import numpy as np

from polyrec.core.rules import Diversity
from polyrec.inference.rules.quotas import Quotas


def diversified(how: Diversity, vectors_MD: np.ndarray, score_M: np.ndarray, k: int, quotas: Quotas) -> list[int]:
    """At most k of the items in their new order; what quotas block is left out.

    pyversity knows no quotas. All its methods choose greedily: where an item would break one, all that are blocked are
    taken out, and the rest is chosen from again.

    Args:
        vectors_MD: embeddings of the items.
        score_M: by which they are ranked; the differences between the largest and the least count as 1.
    """
    from pyversity import diversify

    free_M = ~quotas.blocked
    span = np.ptp(score_M) if len(score_M) else 0.0
    share_M = ((score_M - score_M.min()) / span if span else np.zeros(len(score_M))).astype(np.float32)
    while True:
        free = np.flatnonzero(free_M)
        found = diversify(vectors_MD[free], share_M[free], k, strategy=how.method, diversity=how.strength)
        order, left = free[found.indices].tolist(), quotas.copy()
        for place, index in enumerate(order):
            if left.blocked[index]:
                free_M &= ~left.blocked
                free_M[order[:place]] = True
                break
            left.take(index)
        else:
            return order
