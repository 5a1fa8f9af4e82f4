r"""Lists that are drawn, with the chance of every choice: what off-policy evaluation needs.

At each rank an item i of those that are left (and that quotas allow) comes with the chance

    p(i | items above) = exp(s_i / t) / sum_j exp(s_j / t)

(Plackett, 1975, "The Analysis of Permutations"). Adding Gumbel noise to s / t and sorting draws such a list at once
(Kool, van Hoof and Welling, 2019, "Stochastic Beams and Where to Find Them"): the largest of the items that are left is
distributed so, whatever was chosen before.

Letters: M items to choose from, K ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from polyrec.core.rules import Explore
from polyrec.inference.rules.quotas import Quotas


def generator(how: Explore, request: Mapping[str, Any]) -> np.random.Generator:
    """Random numbers of a request; with a seed they follow from it and from whose request it is alone."""
    if how.seed is None:
        return np.random.default_rng()
    whose = request.get("user_id")
    text = repr(request.get("history") if whose is None else whose)
    return np.random.default_rng([how.seed, *hashlib.blake2b(text.encode(), digest_size=16).digest()])


def drawn(
    how: Explore, score_M: np.ndarray, k: int, quotas: Quotas, random: np.random.Generator
) -> tuple[list[int], list[float]]:
    """At most k of the items in the order drawn, and the chance of each, given those above it.

    Args:
        score_M: log-odds.
        quotas: of the items; what they block is not drawn.
    """
    logit_M = score_M / how.temperature
    order = np.argsort(-(logit_M + random.gumbel(size=len(logit_M))))
    chosen: list[int] = []
    chances: list[float] = []
    for index in order.tolist():
        if len(chosen) == k:
            break
        if quotas.blocked[index]:
            continue
        left = logit_M[~quotas.blocked]
        largest = left.max()
        chances.append(float(np.exp(logit_M[index] - largest) / np.exp(left - largest).sum()))
        chosen.append(index)
        quotas.take(index)
    return chosen, chances
