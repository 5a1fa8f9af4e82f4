"""What goes with the items of a user's set: item-to-item evidence where events have no order.

Letters: M requests, L events of a window, N items, K neighbours, T kinds of evidence = groups, D width, E new events.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyrec.core.linear_loss import DenseBias
from polyrec.core.registry import RETRIEVAL_TERMS
from polyrec.data.neighbours import SET_KINDS, Neighbours
from polyrec.modules.encoders.item import FIRST_ITEM, UNKNOWN_ITEM
from polyrec.modules.encoders.request_context import RequestContext
from polyrec.modules.heads.terms._cross_fitted import CrossFittedNeighbours

_START = {"together": 0.0, "similar": 0.2, "linear": 1.75}  # what fits ml-100k


@RETRIEVAL_TERMS.register("set_neighbours")
class SetNeighbours(CrossFittedNeighbours):
    r"""The neighbour term of sets, e(s_i, j) = sum_t (A s_i + c)_t log(1 + max(0, sum_{k visible} S_t[k, j])).

    As [`~polyrec.modules.heads.terms.neighbours.ItemNeighbours`], but of *all* visible events in the window, which
    count alike, with the kinds of evidence of `SET_KINDS`. Requests of one window see more and more of the same
    events, so that their sums are running sums.

    The chance of an item grows about as a power of the sum, which its logarithm makes of it. As logits, sums themselves
    fit so badly that training adds the popularity that they hold already, and ranks worse than they do (ml-100k without
    times: a softmax of the best multiple of EASE's sums loses 6.20 and wants popularity beside it, of the logarithm
    5.79 and wants none).

    Shapes: states [M, D] -> logits of groups [M, T]; histories [M, L] -> numbers of items [M, T, N].
    """

    for_sets = True
    dense = True

    def __init__(self, size: int, num_items: int, hidden_size: int, rate: float = 1.0, task: str = "") -> None:
        super().__init__(size, num_items, len(SET_KINDS), hidden_size, rate, task)
        self.size = len(SET_KINDS)
        self.by_state = nn.Linear(hidden_size, self.size, bias=False)
        self.prior = nn.Embedding(self.size, 1)

    def _start(self) -> Tensor:
        return torch.tensor([_START[kind] for kind in SET_KINDS])

    @property
    def reads_history(self) -> bool:
        """All visible events."""
        return True

    @torch.no_grad()
    def load(self, whole: Neighbours, folds: Sequence[Neighbours] = ()) -> None:
        """Take the tables; where a log is too large for linear weights, cosines start in their place."""
        fresh = self.is_new
        super().load(whole, folds)
        similar, linear = SET_KINDS.index("similar"), SET_KINDS.index("linear")
        if fresh and not self.values[:, linear].any():
            self.prior.weight[similar] += self.prior.weight[linear]

    def biases(self, context: RequestContext, ids: Tensor) -> DenseBias:
        """Sums over the events of each request, for the logits of some items.

        Args:
            ids: ascending, each once.
        """
        items, values, rows_ML = self._rows(context)
        begins_M, new_ML = self._new_events(context)
        request_E, slot_E = new_ML.nonzero(as_tuple=True)
        rows_E = rows_ML[request_E, slot_E]
        column_EK, shown_EK = self._columns(items[rows_E].long(), ids)
        kinds = values.shape[1]
        sums = torch.zeros(len(rows_ML), kinds, len(ids), device=ids.device)
        at_ETK = (request_E.view(-1, 1, 1) * kinds + torch.arange(kinds, device=ids.device).view(-1, 1)) * len(ids)
        values_ETK = values[rows_E].float() * shown_EK.unsqueeze(1)
        sums.view(-1).index_add_(0, (at_ETK + column_EK.unsqueeze(1)).flatten(), values_ETK.flatten())
        bounds = [*begins_M.nonzero().flatten().tolist(), len(rows_ML)]
        for begin, end in pairwise(bounds):
            if end - begin > 1:
                sums[begin:end] = sums[begin:end].cumsum(0)
        return DenseBias(_strength(sums))

    def _columns(self, found_EK: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Places in `ids` of neighbours, and which of them are there, [E, K] each."""
        column_of = torch.full((len(self.items),), -1, device=ids.device)
        column_EK = column_of.index_copy_(0, ids, torch.arange(len(ids), device=ids.device))[found_EK]
        return column_EK.clamp(min=0), column_EK >= 0

    def _new_events(self, context: RequestContext) -> tuple[Tensor, Tensor]:
        """Where a request sees other events than the one before it and some more, bool [M], and which are new to it
        then, bool [M, L]."""
        seen_ML = self._events(context)
        assert seen_ML is not None  # `_rows` has looked
        before_ML = F.pad(seen_ML[:-1], (0, 0, 1, 0))
        grows_M = ((seen_ML == before_ML) | (before_ML == 0)).all(1)
        if context.fold is not None:
            fold_M = context.fold
            grows_M &= fold_M == F.pad(fold_M[:-1], (1, 0), value=-1)
        begins_M = ~grows_M
        begins_M[:1] = True
        before_ML = torch.where(begins_M.unsqueeze(1), 0, before_ML)
        return begins_M, (seen_ML > 0) & (before_ML == 0)

    def _events(self, context: RequestContext) -> Tensor | None:
        history, refused = context.history, (context.refused or {}).get(self.task)
        if history is None or refused is None:
            return history
        return torch.where(refused & (history >= FIRST_ITEM), UNKNOWN_ITEM, history)  # which has no neighbours

    def of_catalog(self, of_groups: Tensor, context: RequestContext, num_items: int) -> Tensor:
        """The numbers of all items, [M, T] and [M, L] -> [M, N]."""
        items_MLK, values_MLTK = self._neighbours(context)
        values_MTE = values_MLTK.transpose(1, 2).flatten(2).float()
        columns_MTE = items_MLK.flatten(1).unsqueeze(1).expand_as(values_MTE)
        sums_MTN = values_MTE.new_zeros(*values_MTE.shape[:2], num_items).scatter_add(2, columns_MTE, values_MTE)
        return (_strength(sums_MTN).to(of_groups.dtype) * of_groups.unsqueeze(-1)).sum(1)

    def of_items(self, of_groups: Tensor, context: RequestContext, ids: Tensor) -> Tensor:
        """The numbers of items of each request's own, [..., T], [..., L] and [..., K] -> [..., K]."""
        sums = self._of_own(context, ids).float().sum(-2)
        return (_strength(sums).to(of_groups.dtype) * of_groups.unsqueeze(-2)).sum(-1)


def _strength(sums: Tensor) -> Tensor:
    return torch.log1p(sums.clamp(min=0))
