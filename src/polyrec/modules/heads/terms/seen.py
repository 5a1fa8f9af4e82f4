"""What a user consumed already is no candidate of training where lists leave it out and nobody consumes anything twice.

Letters: M requests, L events of a window, N items, K candidates.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.linear_loss import AnyBias, ExcludedItems
from polyrec.core.registry import RETRIEVAL_TERMS
from polyrec.modules.encoders.item import FIRST_ITEM
from polyrec.modules.encoders.request_context import RequestContext
from polyrec.modules.heads.base import TaskHead
from polyrec.modules.heads.terms._blocks import blocked
from polyrec.modules.heads.terms.base import RetrievalTerm


@RETRIEVAL_TERMS.register("seen")
class Seen(RetrievalTerm):
    r"""A term of -infinity for visible items, in training: softmax over j not in {k visible}.

    In a set every item stands once, and what goes best with its items is mostly in it. A softmax over the whole catalog
    would learn of those that what goes together is *not* taken, and unlearn all item-to-item evidence. What was taken
    all the same stays a candidate. Served and measured lists leave the history out by themselves.
    """

    option = "of_sets"
    default_options: ClassVar[dict[str, Any]] = {"of_sets": False}
    order = 70
    reads_targets = True
    size = 0

    @classmethod
    def build(cls, head: TaskHead, config: PolyRecConfig) -> RetrievalTerm | None:
        """With `of_sets`, where nobody takes an item again and no label is smoothed over all items."""
        options = head.options
        return cls() if options["of_sets"] and not options["repeats"] and not options["label_smoothing"] else None

    @property
    def reads_history(self) -> bool:
        """All visible events."""
        return True

    def logits(self, state: Tensor) -> Tensor:
        """No group, [..., D] -> [..., 0]."""
        return state[..., :0]

    def biases(self, context: RequestContext, ids: Tensor) -> ExcludedItems:
        """Every item is a candidate."""
        return ExcludedItems(None)

    def training_biases(self, context: RequestContext, ids: Tensor, targets_M: Tensor) -> AnyBias:
        """Which of the items are no candidates: those that are visible, but for what was taken."""
        return blocked(lambda at: self._excluded(context.at(at), ids, targets_M[at]), context, ids)

    def _excluded(self, context: RequestContext, ids: Tensor, targets_M: Tensor) -> ExcludedItems:
        assert context.history is not None  # heads of sets have it
        history_ML = context.history.read()
        beyond = int(ids[-1]) + 1
        column_of = torch.full((beyond + 1,), -1, device=ids.device)
        column_ML = column_of.index_copy_(0, ids, torch.arange(len(ids), device=ids.device))[
            history_ML.clamp(max=beyond)
        ]
        seen_ML = (history_ML >= FIRST_ITEM) & (column_ML >= 0)
        return ExcludedItems(torch.where(seen_ML & (column_ML != targets_M.unsqueeze(1)), column_ML, -1))

    def of_items(self, of_groups: Tensor, context: RequestContext, ids: Tensor) -> Tensor:
        """Nothing, [..., 0] and [..., K] -> [..., K]."""
        return of_groups.new_zeros(ids.shape)
