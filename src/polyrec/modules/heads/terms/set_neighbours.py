"""What goes with the items of a user's set: item-to-item evidence where events have no order.

Letters: M requests, L events of a window, N items, K neighbours, T kinds of evidence = groups, D width, E new events.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyrec.core.linear_loss import DenseBias
from polyrec.core.registry import RETRIEVAL_TERMS
from polyrec.data.neighbours import SET_KINDS, Neighbours
from polyrec.modules.encoders.request_context import RequestContext
from polyrec.modules.encoders.visible_events import VisibleEvents
from polyrec.modules.heads.terms._blocks import of_items_in_blocks
from polyrec.modules.heads.terms._cross_fitted import CrossFittedNeighbours
from polyrec.modules.heads.terms._neighbour_table import NO_EVENTS

_EVENTS = 1 << 12  # events whose neighbours are added at once
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
    def load(self, whole: Neighbours, folds: Iterable[Neighbours] = ()) -> None:
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
        if context.history is None:
            raise ValueError(NO_EVENTS)
        begins_M, request_E, rows_E = self._new_events(context, context.history)
        items, values, begin_M = self._tables(context)
        rows_E = rows_E if begin_M is None else begin_M[request_E] + rows_E
        kinds = values.shape[1]
        sums = torch.zeros(len(begins_M), kinds, len(ids), device=ids.device)
        for request, rows in zip(request_E.split(_EVENTS), rows_E.split(_EVENTS), strict=True):
            column_EK, shown_EK = self._columns(items[rows].long(), ids)
            at_ET1 = (request.view(-1, 1, 1) * kinds + torch.arange(kinds, device=ids.device).view(-1, 1)) * len(ids)
            values_ETK = values[rows].float() * shown_EK.unsqueeze(1)
            sums.view(-1).index_add_(0, (at_ET1 + column_EK.unsqueeze(1)).flatten(), values_ETK.flatten())
        bounds = [*begins_M.nonzero().flatten().tolist(), len(begins_M)]
        for begin, end in pairwise(bounds):
            if end - begin > 1:
                sums[begin:end] = sums[begin:end].cumsum(0)
        return DenseBias(_strength(sums))

    def _columns(self, found_EK: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Places in `ids` of neighbours, and which of them are there, [E, K] each."""
        column_of = torch.full((len(self.items),), -1, device=ids.device)
        column_EK = column_of.index_copy_(0, ids, torch.arange(len(ids), device=ids.device))[found_EK]
        return column_EK.clamp(min=0), column_EK >= 0

    def _new_events(self, context: RequestContext, events: VisibleEvents) -> tuple[Tensor, Tensor, Tensor]:
        """Where a request does not see the events of the one before it and some more, bool [M]; and the events that are
        new to a request then: its number and their items, [E] each."""
        before_M = F.pad(events.positions[:-1], (1, 0))
        grows_M = (events.windows == F.pad(events.windows[:-1], (1, 0), value=-1)) & (events.positions >= before_M)
        if context.fold is not None:
            grows_M = grows_M & (context.fold == F.pad(context.fold[:-1], (1, 0), value=-1))
        first_M = torch.where(grows_M, before_M, 0)
        new_M = events.positions - first_M
        request_E = torch.arange(len(new_M), device=new_M.device).repeat_interleave(new_M)
        begins_E = (new_M.cumsum(0) - new_M - first_M).index_select(0, request_E)
        place_E = torch.arange(len(request_E), device=new_M.device) - begins_E
        item_E = events.counted(self.task)[events.windows.index_select(0, request_E), place_E]
        known = item_E > 0
        return ~grows_M, request_E[known], item_E[known]

    def _events(self, context: RequestContext) -> Tensor | None:
        return None if context.history is None else context.history.read(self.task)  # unknown items have no neighbours

    def of_catalog(self, of_groups: Tensor, context: RequestContext, num_items: int) -> Tensor:
        """The numbers of all items, [M, T] and [M, L] -> [M, N]."""
        items_MLK, values_MLTK = self._neighbours(context)
        values_MTE = values_MLTK.transpose(1, 2).flatten(2).float()
        columns_MTE = items_MLK.flatten(1).unsqueeze(1).expand_as(values_MTE)
        sums_MTN = values_MTE.new_zeros(*values_MTE.shape[:2], num_items).scatter_add(2, columns_MTE, values_MTE)
        return (_strength(sums_MTN).to(of_groups.dtype) * of_groups.unsqueeze(-1)).sum(1)

    def of_items(self, of_groups: Tensor, context: RequestContext, ids: Tensor) -> Tensor:
        """The numbers of items of each request's own, [..., T], [..., L] and [..., K] -> [..., K]."""
        if context.history is None:
            raise ValueError(NO_EVENTS)
        return of_items_in_blocks(self._of_items, of_groups, context, ids)

    def _of_items(self, of_groups: Tensor, context: RequestContext, ids: Tensor) -> Tensor:
        sums = self._of_own(context, ids).float().sum(-2)
        return (_strength(sums).to(of_groups.dtype) * of_groups.unsqueeze(-2)).sum(-1)


def _strength(sums: Tensor) -> Tensor:
    return torch.log1p(sums.clamp(min=0))
