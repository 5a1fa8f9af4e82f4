"""What a user consumed before: what the state says of what comes again.

Letters: M requests, L events, N items, K candidates, G = 1 + 5 * 8 groups of items, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.linear_loss import AnyBias, GroupBias
from polyrec.core.registry import RETRIEVAL_TERMS
from polyrec.modules.encoders.item import FIRST_ITEM
from polyrec.modules.encoders.request_context import RequestContext
from polyrec.modules.encoders.visible_events import VisibleEvents
from polyrec.modules.heads.base import TaskHead
from polyrec.modules.heads.terms._blocks import blocked, of_items_in_blocks
from polyrec.modules.heads.terms.base import RetrievalTerm

_TIMES = (2, 3, 5, 9)  # how often: 1, 2, 3-4, 5-8, more
_AGO = (2, 4, 8, 16, 32, 64, 128)  # how many events ago, the latest being 1: 1, 2-3, 4-7, ..., more

_FEW = 4  # items of a request's own up to which a look at every event is quicker than sorting them


@RETRIEVAL_TERMS.register("repeats")
class Repeats(RetrievalTerm):
    r"""The repeat term of a retrieval logit, r(s_i, j) = (A s_i + c)_{g(n_ij, d_ij)}.

    n_ij is how often item j is among the events that request i sees in its window, and d_ij how many events ago it
    was there last. Frequency and recency explain most of what users take again (Anderson et al., 2014, "The Dynamics
    of Repeat Consumption"); how much of that there is at all is up to the user's state (Ren et al., 2019,
    "RepeatNet"). Group 0, whose term is 0, holds all items that were not taken; the others are 5 ranges of n by 8
    ranges of d, so that the term costs one small product [M, D] x [D, G] and a look-up for each event. A and c start at
    0. Use it where users take the same again (baskets, songs): option `repeats`; lists, served and measured, then hold
    it, too.

    Args:
        rate: how many times faster than other parameters c learns.
        task: whose label says which events count: those where it is known to be 0 (seen, and not taken) do not.

    Shapes: states [M, D] -> logits of groups [M, G]; histories [M, L] -> groups of their items [M, L].

    Example:
        >>> repeats = Repeats(hidden_size=4)
        >>> context = RequestContext(history=VisibleEvents.of_requests(torch.tensor([[3, 4, 3, 0]])))
        >>> repeats.own_groups(context, torch.arange(2, 6)[None]).tolist()  # 3: twice, the latest
        [[0, 9, 2, 0]]
    """

    option = "repeats"
    default_options: ClassVar[dict[str, Any]] = {"repeats": False}
    order = 10

    @classmethod
    def build(cls, head: TaskHead, config: PolyRecConfig) -> RetrievalTerm | None:
        """With `repeats`."""
        return cls(config.hidden_size, head.options["bias_rate"], head.task.name) if head.options["repeats"] else None

    def __init__(self, hidden_size: int, rate: float = 1.0, task: str = "") -> None:
        super().__init__()
        self.rate, self.task = rate, task
        self.size = 1 + (len(_TIMES) + 1) * (len(_AGO) + 1)
        self.by_state = nn.Linear(hidden_size, self.size - 1, bias=False)
        self.prior = nn.Embedding(self.size - 1, 1)

    @property
    def reads_history(self) -> bool:
        """All visible events."""
        return True

    def initialise(self) -> None:
        """Start without a preference."""
        init.zeros_(self.by_state.weight)
        init.zeros_(self.prior.weight)

    def logits(self, state: Tensor) -> Tensor:
        """What a state says of each group, [..., D] -> [..., G]; the first one is 0."""
        return F.pad(self.by_state(state) + self.rate * self.prior.weight.squeeze(-1), (1, 0))

    def biases(self, context: RequestContext, ids: Tensor) -> AnyBias:
        """Groups for the logits of a catalog, of what was taken alone: histories [M, L] -> [M, L].

        Args:
            ids: ascending, each once.
        """
        self._check(context)
        return blocked(lambda at: self._biases(context.at(at), ids), context, ids)

    def _biases(self, context: RequestContext, ids: Tensor) -> GroupBias:
        items_ML, order_ML = self._sorted(context)
        # Events of one item stand together, the latest at the end: there, all is known of it.
        index_L = torch.arange(items_ML.shape[1], device=ids.device)
        begins_ML = F.pad(items_ML[:, 1:] != items_ML[:, :-1], (1, 0), value=True)
        ends_ML = F.pad(begins_ML[:, 1:], (0, 1), value=True) & (items_ML >= FIRST_ITEM)
        first_ML = torch.where(begins_ML, index_L, 0).cummax(dim=1).values
        group_ML = self._group(index_L - first_ML + 1, order_ML, self._seen(items_ML))
        beyond = int(ids[-1]) + 1
        column_of = torch.full((beyond + 1,), -1, device=ids.device)  # many times faster than a search
        column_ML = column_of.index_copy_(0, ids, torch.arange(len(ids), device=ids.device))[items_ML.clamp(max=beyond)]
        wanted_ML = ends_ML & (column_ML >= 0)
        return GroupBias(
            torch.where(wanted_ML, group_ML, 0), torch.where(wanted_ML, column_ML, 0)
        )  # group 0 adds nothing

    def of_items(self, of_groups: Tensor, context: RequestContext, ids: Tensor) -> Tensor:
        """What groups say of items of each request's own, [..., G], [...] and [..., K] -> [..., K]."""
        self._check(context)
        return of_items_in_blocks(
            lambda own, some, few: own.gather(-1, self.own_groups(some, few)), of_groups, context, ids
        )

    def of_catalog(self, of_groups: Tensor, context: RequestContext, num_items: int) -> Tensor:
        """What groups say of all items, [M, G] and histories [M, L] -> [M, N]."""
        items_ML = self._history(context)
        index_ML = torch.arange(items_ML.shape[1], device=items_ML.device).expand_as(items_ML)
        none_MN = items_ML.new_zeros(items_ML.shape[0], num_items)
        times_MN = none_MN.scatter_add(1, items_ML, torch.ones_like(items_ML))
        last_MN = none_MN.scatter_reduce(1, items_ML, index_ML, "amax")
        group_ML = self._group(times_MN.gather(1, items_ML), index_ML, self._seen(items_ML))
        latest_ML = (items_ML >= FIRST_ITEM) & (last_MN.gather(1, items_ML) == index_ML)  # there, all is known of it
        numbers_ML = of_groups.gather(1, torch.where(latest_ML, group_ML, 0))  # group 0 adds nothing
        return of_groups.new_zeros(items_ML.shape[0], num_items).scatter_add(1, items_ML, numbers_ML)

    def own_groups(self, context: RequestContext, ids: Tensor) -> Tensor:
        """The same for items of each request's own, histories [..., L] and ids [..., K] -> [..., K]."""
        if ids.shape[-1] <= _FEW:
            history = self._history(context)
            found = history.unsqueeze(-2) == ids.unsqueeze(-1)
            times, position = found.sum(-1), torch.arange(1, history.shape[-1] + 1, device=ids.device)
            last = (found * position).amax(-1) - 1
        else:
            history, order = self._sorted(context)
            ids = ids.contiguous()
            stop = torch.searchsorted(history, ids, right=True)
            times = stop - torch.searchsorted(history, ids)
            last = order.gather(-1, (stop - 1).clamp(min=0))
        group = self._group(times, last, self._seen(history))
        return torch.where((times > 0) & (ids >= FIRST_ITEM), group, 0)

    def _sorted(self, context: RequestContext) -> tuple[Tensor, Tensor]:
        """Items of histories in order, and where each stood."""
        return self._history(context).sort(dim=-1, stable=True)

    def _history(self, context: RequestContext) -> Tensor:
        """Items of the events that count, those of an unknown item for all others, [..., L] with L > 0."""
        history = self._check(context).read(self.task)
        return history if history.shape[-1] else F.pad(history, (0, 1))

    @staticmethod
    def _check(context: RequestContext) -> VisibleEvents:
        if context.history is None:
            raise ValueError(
                "a task with `repeats` needs the events before: pass what "
                "`model.request_context(...)` returns where it scores the catalog"
            )
        return context.history

    @staticmethod
    def _seen(items: Tensor) -> Tensor:
        """How many events there are, [..., 1]."""
        return (items > 0).sum(-1, keepdim=True)

    @staticmethod
    def _group(times: Tensor, position: Tensor, seen: Tensor) -> Tensor:
        """The group of what was taken so often, the last time at a place among the events seen."""
        often = torch.bucketize(times, torch.tensor(_TIMES, device=times.device), right=True)
        ago = torch.bucketize(seen - position, torch.tensor(_AGO, device=times.device), right=True)
        return 1 + often * (len(_AGO) + 1) + ago
