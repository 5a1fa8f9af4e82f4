"""Terms of a retrieval logit by the group of an item: of its age, of how often a person took it before.

Letters: M questions, N items, K items asked about, G groups, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from polyrec.encoders.growth import BLOCK
from polyrec.encoders.moment import Moment
from polyrec.linear_loss import Groups


class ItemTerm(Protocol):
    """One term: what a state says of each group, and which item is in which group."""

    size: int

    def logits(self, state: Tensor) -> Tensor:
        """What a state says of each group, [..., D] -> [..., G]."""

    def groups(self, moment: Moment, ids: Tensor) -> Tensor:
        """The group of each item for each question, int64, [M] and [N] -> [M, N]."""

    def own_groups(self, moment: Moment, ids: Tensor) -> Tensor:
        """The same for items of each question's own, [...] and [..., K] -> [..., K]."""


class ItemTerms:
    """The sum of some terms, which is one by the groups of all of them together."""

    def __init__(self, terms: Sequence[ItemTerm]) -> None:
        self.terms = terms

    def __bool__(self) -> bool:
        return bool(self.terms)

    def logits(self, state: Tensor) -> Tensor:
        """What a state says of each group, [..., D] -> [..., G]."""
        found = [term.logits(state) for term in self.terms]
        return reduce(lambda a, b: (a.unsqueeze(-1) + b.unsqueeze(-2)).flatten(-2), found)

    def groups(self, moment: Moment, ids: Tensor) -> Tensor:
        """The group of each item for each question, int64, [M] and [N] -> [M, N]."""
        return self._joint(lambda term: term.groups(moment, ids))

    def groups_beside(self, moment: Moment, targets_M: Tensor, ids: Tensor) -> Groups:
        """Groups of some questions at a time; those of the targets are of what was taken, and so was there.

        Args:
            targets_M: places in `ids`.
        """
        own_M1 = self.own_groups(moment, ids[targets_M].unsqueeze(1))
        return lambda at: self.groups(moment.at(at), ids).scatter_(1, targets_M[at].unsqueeze(1), own_M1[at])

    def own_groups(self, moment: Moment, ids: Tensor) -> Tensor:
        """Groups of items of each question's own, [...] and [..., K] -> [..., K]."""
        return self._joint(lambda term: term.own_groups(moment, ids))

    def add_to(self, logits_MN: Tensor, state_MD: Tensor, moment: Moment, ids: Tensor) -> Tensor:
        """Logits of items with what the terms say of them, a block of questions at a time."""
        of_groups_MG = self.logits(state_MD)
        blocks = torch.arange(len(logits_MN), device=ids.device).split(max(BLOCK * BLOCK // max(len(ids), 1), 1))
        return torch.cat([logits_MN[at] + of_groups_MG[at].gather(1, self.groups(moment.at(at), ids)) for at in blocks])

    def of_pairs(self, state: Tensor, moment: Moment, ids: Tensor) -> Tensor:
        """The terms of items of each question's own, [..., D], [...] and [..., K] -> [..., K]."""
        return self.logits(state).gather(-1, self.own_groups(moment, ids))

    def _joint(self, groups: Callable[[ItemTerm], Tensor]) -> Tensor:
        number, *further = self.terms
        found = groups(number)
        for term in further:
            found = found * term.size + groups(term)
        return found
