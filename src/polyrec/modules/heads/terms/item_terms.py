"""Terms of a retrieval logit: of an item's age, of how often the user took it, of what it goes with, of its popularity.

Letters: M questions, N items, K items asked about, G groups, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from polyrec.core.linear_loss import AnyBias, Groups, SparseBias
from polyrec.modules.encoders.growth import BLOCK
from polyrec.modules.encoders.item import FIRST_ITEM
from polyrec.modules.encoders.request_context import RequestContext


class ItemTerm(Protocol):
    """One term: what a state says of each group, and which item is in which group, or how much of each."""

    size: int

    def logits(self, state: Tensor) -> Tensor:
        """What a state says of each group, [..., D] -> [..., G]."""

    def biases(self, context: RequestContext, ids: Tensor) -> AnyBias:
        """Which group is added to which item for each question, [M] and [N] -> [M, ...].

        Args:
            ids: ascending, each once.
        """

    def training_biases(self, context: RequestContext, ids: Tensor, targets_M: Tensor) -> AnyBias:
        """The same where items were taken, and so were there: of `targets_M`, places in `ids`."""

    def of_items(self, of_groups: Tensor, context: RequestContext, ids: Tensor) -> Tensor:
        """What groups say of items of each question's own, [..., G], [...] and [..., K] -> [..., K]."""


def place_numbers(items: Tensor, values: Tensor, rows: Tensor, ids: Tensor, num_items: int) -> SparseBias:
    """Numbers of items of each question's own, for the logits of some items.

    Args:
        items: [P, K], rows of the item table, 0 = none.
        values: [P, T, K], 0 where there is no item.
        rows: int64 [M, H], which of the P rows count for a question.
        ids: [N], ascending, each once.
        num_items: rows of the item table.
    """
    read, table_rows = rows.unique(return_inverse=True)  # questions of one user share most of them
    found, numbers = items.index_select(0, read).long(), values.index_select(0, read).float()
    first = int(ids[0])
    if first <= FIRST_ITEM and len(ids) == num_items - first:  # all items; item 0 means none, with values of 0
        return SparseBias(_rows_of((found - first).clamp(min=0), table_rows), numbers, table_rows)
    column_of = torch.full((num_items,), -1, device=ids.device)
    column = column_of.index_copy_(0, ids, torch.arange(len(ids), device=ids.device))[found]
    numbers *= (column >= 0).unsqueeze(-2)
    return SparseBias(_rows_of(column.clamp(min=0), table_rows), numbers, table_rows)


def _rows_of(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table, [U, K] and [M, H] -> [M, H, K]; `index_select`, which is faster than indexing on CPU."""
    return table.index_select(0, rows.flatten()).view(*rows.shape, table.shape[1])


def find_items(items: Tensor, rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Where items stand in rows of a table, and whether they do, [...] each.

    Args:
        items: int32 [R, K], ascending, 0 = none.
        rows, ids: int64 [...].
    """
    place = torch.zeros_like(rows)
    step = 1 << (items.shape[1].bit_length() - 1)
    while step:  # rows are sorted: a binary search for all at once, as the rows are too many to be copied
        further = place + step
        fits = further < items.shape[1]
        place = torch.where(fits & (items[rows, further.clamp(max=items.shape[1] - 1)] <= ids), further, place)
        step //= 2
    return place, (items[rows, place] == ids) & (ids >= FIRST_ITEM)


class ItemTerms:
    """The sum of some terms, whose groups are numbered one term after the other."""

    def __init__(self, terms: Sequence[ItemTerm]) -> None:
        self.terms = terms

    def __bool__(self) -> bool:
        return bool(self.terms)

    def logits(self, state: Tensor) -> Tensor:
        """What a state says of each group, [..., D] -> [..., G]."""
        return torch.cat([term.logits(state) for term in self.terms], dim=-1)

    def biases(self, context: RequestContext, ids: Tensor) -> list[AnyBias]:
        """Which groups are added to which items for each question; ids as of a term's."""
        return self._numbered([term.biases(context, ids) for term in self.terms])

    def groups(self, context: RequestContext, ids: Tensor) -> Groups:
        """The same for some of the questions at a time."""
        return lambda at: self.biases(context.at(at), ids)

    def groups_beside(self, context: RequestContext, targets_M: Tensor, ids: Tensor) -> Groups:
        """The same where what stands at the places `targets_M` in `ids` was taken, and so was there."""
        return lambda at: self._numbered(
            [term.training_biases(context.at(at), ids, targets_M[at]) for term in self.terms]
        )

    def add_to(
        self, logits_MN: Tensor, state_MD: Tensor, context: RequestContext, ids: Tensor, distinct: bool = True
    ) -> Tensor:
        """Logits of items with what the terms say of them, a block of questions at a time.

        Args:
            distinct: whether ids are ascending, each once; any others take longer.
        """
        of_groups_MG, found = self.logits(state_MD), []
        for at in torch.arange(len(logits_MN), device=ids.device).split(max(BLOCK * BLOCK // max(len(ids), 1), 1)):
            some = context.at(at)
            known, place = (ids, None) if distinct else ids.unique(return_inverse=True)
            logits = logits_MN[at] if place is None else logits_MN.new_zeros(len(at), len(known))
            for term in self.biases(some, known):
                logits = term.add(logits, of_groups_MG[at])
            found.append(logits if place is None else logits_MN[at] + logits[:, place])
        return torch.cat(found)

    def of_pairs(self, state: Tensor, context: RequestContext, ids: Tensor) -> Tensor:
        """The terms of items of each question's own, [..., D], [...] and [..., K] -> [..., K]."""
        return torch.stack([term.of_items(term.logits(state), context, ids) for term in self.terms]).sum(0)

    def _numbered(self, placed: Sequence[AnyBias]) -> list[AnyBias]:
        begins = [0]
        for term in self.terms:
            begins.append(begins[-1] + term.size)
        return [p.beyond(begin) for p, begin in zip(placed, begins[:-1], strict=True)]
