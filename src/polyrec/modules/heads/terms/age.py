"""How long an item has been there: what a user's state says of new and of old items.

Letters: M requests, N items, K buckets of ages, G = K + 2 groups of items, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.linear_loss import GroupBias
from polyrec.core.registry import RETRIEVAL_TERMS, nearest
from polyrec.data.release import NO_TIME, age_edges
from polyrec.modules.encoders.request_context import RequestContext
from polyrec.modules.heads.base import TaskHead
from polyrec.modules.heads.terms.base import RetrievalTerm

SOURCES = ("release", "first_event")


@RETRIEVAL_TERMS.register("age")
class ItemAge(RetrievalTerm):
    r"""The age term of a retrieval logit, a(s_i, j) = (A s_i + c)_{g(t_i - r_j)}.

    t_i is the time of request i, r_j when item j appeared, and g the number of one of K buckets of ages, which grow
    geometrically from one minute to 20 years: g(x) = floor(K log(1 + x / minute) / log(20 years / minute)). c starts at
    how many times more often an age is taken than it is there (`polyrec.data.release.age_start`), A at 0. Every item is
    in one of K + 2 groups, so that the term costs one small product [M, D] x [D, G] and a look-up:

    * the buckets 0..K-1;
    * K: not seen yet. With `source="first_event"` this holds all items without an event *strictly before* the request,
      also the positive whose first event it is, so that the group says nothing about which of them comes. With
      `source="release"`: items of which the catalog does not say when they appeared;
    * K + 1: not there yet, by the catalog. Such items are impossible (-inf). An item counts as available at the very
      time of its release, with age 0.

    Times are int64 milliseconds since the epoch. Use it where what comes next is mostly new, or mostly old: option
    `item_age`, "release" or "first_event" (None: no such term), with `age_buckets` (K) and `age_start` (c as it starts,
    which the processor finds in the training rows).

    Args:
        source: where r_j comes from, "release" (the catalog) or "first_event" (the log).
        buckets: K.
        start: c as it starts, [K + 1]; None: zeros.
        rate: how many times faster than other parameters c learns.

    Shapes: states [M, D] -> logits of groups [M, G]; times [M] -> groups of items [M, N].

    Example:
        >>> age = ItemAge("release", buckets=8, num_items=5, hidden_size=4)
        >>> age.initialise()
        >>> _ = age.released.copy_(torch.tensor([NO_TIME, NO_TIME, 0, 3_600_000, 10_000_000]))
        >>> age.groups(RequestContext(torch.tensor([3_600_000])), torch.arange(2, 5)).tolist()  # an hour, new, not yet
        [[2, 0, 9]]
    """

    option = "item_age"
    default_options: ClassVar[dict[str, Any]] = {"item_age": None, "age_buckets": 128, "age_start": None}
    found_options = ("age_start",)
    order = 0
    dense = True
    network_share = 0.0
    reads_targets = True
    item_tensors = ("released",)
    released: Tensor

    @classmethod
    def build(cls, head: TaskHead, config: PolyRecConfig) -> RetrievalTerm | None:
        """With `item_age`."""
        source, buckets, start = (head.options[name] for name in cls.default_options)
        if source is None:
            return None
        if source not in SOURCES:
            raise head.option_error("item_age", nearest(str(source), list(SOURCES)))
        if buckets < 1:
            raise head.option_error("age_buckets", "it must be >= 1")
        if start is not None and len(start) != buckets + 1:
            raise head.option_error("age_start", f"it must hold age_buckets + 1 = {buckets + 1} numbers")
        if source == "release" and head.options["label_smoothing"]:
            raise head.option_error(
                "label_smoothing", 'it would smooth over items not there yet: 0 with item_age="release"'
            )
        return cls(source, buckets, config.num_items, config.hidden_size, start, head.options["bias_rate"])

    def __init__(
        self,
        source: str,
        buckets: int,
        num_items: int,
        hidden_size: int,
        start: Sequence[float] | None = None,
        rate: float = 1.0,
    ) -> None:
        super().__init__()
        self.source, self.buckets, self.rate = source, buckets, rate
        self.size = buckets + 2
        self.start = [0.0] * (buckets + 1) if start is None else list(start)
        self.by_state = nn.Linear(hidden_size, buckets + 1, bias=False)
        self.prior = nn.Embedding(buckets + 1, 1)
        self.register_buffer("released", torch.full((num_items,), NO_TIME))

    def initialise(self) -> None:
        """Start with what everybody prefers."""
        init.zeros_(self.by_state.weight)
        init.copy_(self.prior.weight, torch.tensor(self.start).unsqueeze(1) / self.rate)
        init.constant_(self.released, NO_TIME)

    def load_times(self, processor: Any) -> None:
        """Take when items appeared."""
        self.load(torch.from_numpy(processor.item_times(self.source)))

    @torch.no_grad()
    def load(self, released_N: Tensor) -> None:
        """Take when items appeared, int64 [N]; there may be more of them now."""
        self.released = released_N.to(self.released)

    def logits(self, state_MD: Tensor) -> Tensor:
        """What a state says of each group, [M, D] -> [M, G]; the last one is -inf."""
        return F.pad(self.by_state(state_MD) + self.rate * self.prior.weight.squeeze(-1), (0, 1), value=float("-inf"))

    def biases(self, context: RequestContext, ids: Tensor) -> GroupBias:
        """Groups of items for the logits of a catalog."""
        return GroupBias(self.groups(context, ids))

    def training_biases(self, context: RequestContext, ids: Tensor, targets_M: Tensor) -> GroupBias:
        """The same; those at the places `targets_M` were taken, and so were there."""
        own_M1 = self.own_groups(context, ids[targets_M].unsqueeze(1))
        return GroupBias(self.groups(context, ids).scatter_(1, targets_M.unsqueeze(1), own_M1))

    def groups(self, context: RequestContext, ids: Tensor) -> Tensor:
        """The group of each item at each request's time, int64, [M] and [N] -> [M, N]."""
        released_N = self.released[ids]
        age_MN = _request_times(context).unsqueeze(-1) - released_N
        unknown_N = released_N == NO_TIME
        if self.source == "release":
            groups_MN = torch.where(age_MN < 0, self.buckets + 1, self._bucket(age_MN))
            return torch.where(unknown_N, self.buckets, groups_MN)
        return torch.where(age_MN <= 0, self.buckets, self._bucket(age_MN))

    def of_catalog(self, of_groups: Tensor, context: RequestContext, num_items: int) -> Tensor:
        """What groups add to all items, [M, G] and [M] -> [M, N]; those not there yet are impossible."""
        return of_groups.gather(1, self.groups(context, torch.arange(num_items, device=of_groups.device)))

    def of_items(self, of_groups: Tensor, context: RequestContext, ids: Tensor) -> Tensor:
        """What groups say of items of each request's own, [..., G], [...] and [..., K] -> [..., K]."""
        return of_groups.gather(-1, self.own_groups(context, ids))

    def own_groups(self, context: RequestContext, ids: Tensor) -> Tensor:
        """The same for items of each request's own, [...] and [..., K] -> [..., K]; they count as available."""
        released = self.released[ids]
        age = _request_times(context).unsqueeze(-1) - released
        unseen = released == NO_TIME if self.source == "release" else age <= 0
        return torch.where(unseen, self.buckets, self._bucket(age))

    def _bucket(self, age: Tensor) -> Tensor:
        return torch.bucketize(age, torch.from_numpy(age_edges(self.buckets)).to(age.device), right=True)


def _request_times(context: RequestContext) -> Tensor:
    if context.times is None:
        raise ValueError(
            "a task with `item_age` needs the time of each candidate: pass candidate_times [B, C] to the model, or the "
            "contexts of `model.request_context(...)` where it scores the catalog"
        )
    return context.times
