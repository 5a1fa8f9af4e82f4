"""When a request comes and after which events: what a logit may depend on beside the user's state.

Letters: B windows, C candidates, L events of a window, M requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from polyrec.core.schema import REFUSED
from polyrec.data.batch import Batch
from polyrec.modules.encoders.item import FIRST_ITEM
from polyrec.modules.encoders.visible_events import VisibleEvents


class Trending(NamedTuple):
    """What was trending.

    Args:
        snapshot: int64 [...], of each request.
        items, values: of the snapshots, [U, K] each, see [`~polyrec.data.trending.Snapshots`].
    """

    snapshot: Tensor
    items: Tensor
    values: Tensor


class RequestContext(NamedTuple):
    """What logits of some requests may depend on beside the user state.

    Args:
        times: int64 [...], milliseconds since the epoch; None: nobody said.
        history: the visible events; None: nobody said.
        latest: {task: int64 [..., H]}, at least LATEST visible items that were not refused, the latest first, 0 = none.
        fold: int64 [...], in which fold the user was when item-to-item evidence was counted, 0 = in none; None: all 0.
        trending: {task: what was popular then}.
    """

    times: Tensor | None = None
    history: VisibleEvents | None = None
    latest: Mapping[str, Tensor] | None = None
    fold: Tensor | None = None
    trending: Mapping[str, Trending] | None = None

    def rows(self, chosen_M: Tensor) -> RequestContext:
        """Some requests of a batch, [B, C] -> [M].

        Args:
            chosen_M: int64 or bool, places in the flattened batch.
        """
        return self.flatten(2).at(chosen_M)

    def at(self, index: Any) -> RequestContext:
        """Some of the requests, by any index of their own dimensions."""
        history = None if self.history is None else self.history.at(index)
        return self._each(lambda part: part[index])._replace(history=history)

    def flatten(self, dims: int) -> RequestContext:
        """Requests whose first dimensions are one."""
        history = None if self.history is None else self.history.flatten(dims)
        return self._each(lambda part: part.flatten(0, dims - 1))._replace(history=history)

    def _each(self, change: Callable[[Tensor], Tensor]) -> RequestContext:
        """The context without its history, each tensor changed."""
        times, fold = (None if part is None else change(part) for part in (self.times, self.fold))
        latest = None if self.latest is None else {task: change(part) for task, part in self.latest.items()}
        trending = None
        if self.trending is not None:
            trending = {task: own._replace(snapshot=change(own.snapshot)) for task, own in self.trending.items()}
        return RequestContext(times, None, latest, fold, trending)


NO_CONTEXT = RequestContext()
LATEST = 10  # items for which training reads item-to-item evidence


def latest_items(item_ids: Tensor, positions: Tensor, refused: Tensor | None = None, number: int = LATEST) -> Tensor:
    """The latest known items that each candidate sees, [B, L] and [B, C] -> [B, C, number], 0 where there are no more.

    Args:
        refused: bool [B, L], events that are left out.

    Example:
        >>> latest_items(torch.tensor([[5, 6, 7]]), torch.tensor([[0, 2]]))[..., :3].tolist()
        [[[0, 0, 0], [6, 5, 0]]]
    """
    counts = item_ids >= FIRST_ITEM
    if refused is not None:
        counts = counts & ~refused
    number_BL = F.pad(counts.cumsum(1), (1, 0))  # of counted events before each position
    wanted = number_BL.gather(1, positions).unsqueeze(-1) - torch.arange(number, device=positions.device)
    # The n-th counted event is where the number first reaches n.
    index = torch.searchsorted(number_BL, wanted.flatten(1)) - 1
    found = item_ids.gather(1, index.clamp(min=0, max=item_ids.shape[1] - 1)).view_as(wanted)
    return torch.where(wanted > 0, found, 0)


def context_of(batch: Batch, heads: Mapping[str, Any]) -> RequestContext:
    """When, and after which events, the candidates of a batch are scored.

    Args:
        heads: {retrieval task: head}, which say what they read.
    """
    positions = batch.candidate_positions
    refused = {name: batch.event_features.get(REFUSED + name) for name in heads}
    refused_BL = {name: values > 0 for name, values in refused.items() if values is not None}
    context = RequestContext(batch.candidate_times)
    if any(head.reads_history for head in heads.values()):
        context = context._replace(history=VisibleEvents.of_batch(batch.item_ids, positions, refused_BL))
    latest = {
        name: latest_items(batch.item_ids, positions, refused_BL.get(name), head.latest_events)
        for name, head in heads.items()
        if head.latest_events
    }
    if latest:
        fold = None if batch.user_fold is None else batch.user_fold.unsqueeze(1).expand_as(positions)
        context = context._replace(latest=latest, fold=fold)
    if batch.trending is not None and batch.candidate_trending is not None:
        tables = {name: tables for name, tables in batch.trending.items() if name in heads}
        snapshots = {name: Trending(batch.candidate_trending, **own) for name, own in tables.items()}
        context = context._replace(trending=snapshots)
    return context
