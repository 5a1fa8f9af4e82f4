"""What is popular now, for every user alike.

Letters: M requests, U snapshots of a batch, N items, K items of a snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from polyrec.core.linear_loss import SparseBias
from polyrec.modules.encoders.request_context import RequestContext, Trending
from polyrec.modules.heads.base import TaskHead
from polyrec.modules.heads.terms._lookup import find_items, sparse_bias
from polyrec.modules.heads.terms.base import RetrievalTerm


class RecentItems(RetrievalTerm):
    """What the time of a request says of items: log p_j of the K hottest, 0 of others.

    p_j = 1 + sum_t a_t n_tj, n_tj how often item j has events strictly before the request, an event of age x counting
    2^{-x / h_t} (see [`~polyrec.data.trending.RecentCounts`]). What was counted comes with each batch, so that nothing
    here grows with catalog or log.

    Args:
        task: whose label says which events count.

    Shapes: requests [M] -> numbers of items [M, N].
    """

    default_options: ClassVar[dict[str, Any]] = {"trending": (), "trending_start": 1.0, "recent": False}
    size = 1

    @staticmethod
    def is_counted(head: TaskHead) -> bool:
        """Whether the option `trending` says how events are counted; () = they are not."""
        mixture = head.options["trending"]
        if not all(isinstance(part, Sequence) and len(part) == 2 and min(part) > 0 for part in mixture):
            rule = "it must hold pairs [half-life in seconds, weight], both > 0: [[3600, 100]]"
            raise head.option_error("trending", rule)
        return bool(mixture)

    def __init__(self, num_items: int, task: str = "") -> None:
        super().__init__()
        self.num_items, self.task = num_items, task

    def extend(self, num_items: int) -> None:
        """There are more items now."""
        self.num_items = num_items

    def biases(self, context: RequestContext, ids: Tensor) -> SparseBias:
        """The columns and numbers of trending items for the logits of some items.

        Args:
            ids: ascending, each once.
        """
        rows_M1, items, values = self._snapshots(context)
        return sparse_bias(items, values.unsqueeze(-2), rows_M1, ids, self.num_items)

    def of_catalog(self, of_groups: Tensor, context: RequestContext, num_items: int) -> Tensor:
        """The numbers of all items, [M, 1] and [M] -> [M, N]."""
        rows_M1, items, values = self._snapshots(context)
        items_MK, values_MK = (table.index_select(0, rows_M1.squeeze(-1)) for table in (items, values))
        numbers_MK = values_MK.to(of_groups.dtype) * of_groups
        return of_groups.new_zeros(items_MK.shape[0], num_items).scatter_add(1, items_MK.long(), numbers_MK)

    def of_items(self, of_groups: Tensor, context: RequestContext, ids: Tensor) -> Tensor:
        """The numbers of items of each request's own, [..., 1], [...] and [..., K] -> [..., K]."""
        rows, items, values = self._snapshots(context)
        rows = rows.expand_as(ids)
        slot, is_trending = find_items(items, rows, ids)
        return values[rows, slot].to(of_groups.dtype) * of_groups * is_trending

    def _snapshots(self, context: RequestContext) -> tuple[Tensor, Tensor, Tensor]:
        """Rows [..., 1] of the snapshots' items and values [U, K]."""
        found: Trending | None = (context.trending or {}).get(self.task)
        if found is None:
            raise ValueError(
                f"task {self.task!r} reads `trending` and the batch does not say what was: set the option in the tasks "
                "of the processor before split, or pass what `model.request_context(...)` returns where it "
                "scores the catalog"
            )
        return found.snapshot.unsqueeze(-1), found.items, found.values
