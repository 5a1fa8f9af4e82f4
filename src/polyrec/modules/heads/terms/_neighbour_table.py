"""Items that go with the latest items of a user: look-ups in a table of neighbours.

Letters: M requests, H latest items, N items, K neighbours, T kinds of evidence, G = T * H groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import initialization as init

from polyrec.core.linear_loss import AnyBias
from polyrec.data.neighbours import Neighbours
from polyrec.modules.encoders.request_context import LATEST, RequestContext
from polyrec.modules.heads.terms._lookup import find_items, sparse_bias
from polyrec.modules.heads.terms.base import RetrievalTerm

NO_EVENTS = (
    "a task with `neighbours` needs what came before: pass what `model.request_context(...)` returns where it scores "
    "the catalog"
)


class NeighbourTable(RetrievalTerm):
    """Neighbours of items, and what kinds of evidence say of them, for the latest items of a user.

    Args:
        size: K.
        kinds: T.
        task: whose label says which events count.
        reach: H, how many of the latest items it reads.

    Shapes: latest items [M, H] -> numbers of items [M, N], one for each of the G groups (kind, place of the item).
    """

    is_evidence = True
    item_tensors = ("items", "values")
    items: Tensor
    values: Tensor

    def __init__(self, size: int, num_items: int, kinds: int, task: str = "", reach: int = LATEST) -> None:
        super().__init__()
        self.task, self.kept, self.kinds, self.reach, self.size = task, size, kinds, reach, kinds * reach
        self.register_buffer("items", torch.zeros(num_items, size, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(num_items, kinds, size, dtype=torch.float16))

    def initialise(self) -> None:
        """Start without a neighbour."""
        init.zeros_(self.items)
        init.zeros_(self.values)

    @property
    def is_new(self) -> bool:
        """Whether no table was taken yet."""
        return not self.values.any()

    def holds(self, table: Neighbours) -> bool:
        """Whether a table is the one of all users that is here."""
        items, values = self._tensors([table])
        return torch.equal(items, self.items) and torch.equal(values, self.values)

    def _tensors(self, tables: Sequence[Neighbours]) -> tuple[Tensor, Tensor]:
        items = torch.cat([torch.from_numpy(table.items) for table in tables])
        values = torch.cat([torch.from_numpy(table.values) for table in tables])
        return items.to(self.items), values.to(self.values)

    @torch.no_grad()
    def extend(self, num_items: int) -> None:
        """Add rows of items without neighbours."""
        more = num_items - len(self.items)
        self.items = F.pad(self.items, (0, 0, 0, more))
        self.values = F.pad(self.values, (0, 0, 0, 0, 0, more))

    def biases(self, context: RequestContext, ids: Tensor) -> AnyBias:
        """The neighbours' columns and numbers for the logits of some items.

        Args:
            ids: ascending, each once.
        """
        items, values, rows_MH = self._rows(context)
        return sparse_bias(items, values, rows_MH, ids, len(self.items))

    def of_catalog(self, of_groups: Tensor, context: RequestContext, num_items: int) -> Tensor:
        """The numbers of all items, [M, G] and [M, H] -> [M, N]."""
        items_MHK, values_MHTK = self._neighbours(context)
        weights_MHT1 = of_groups.unflatten(-1, (self.kinds, self.reach)).transpose(1, 2).unsqueeze(-1)
        numbers_MHK = (values_MHTK.to(of_groups.dtype) * weights_MHT1).sum(2)
        empty = of_groups.new_zeros(of_groups.shape[0], num_items)
        return empty.scatter_add(1, items_MHK.flatten(1), numbers_MHK.flatten(1))  # item 0 means none, with 0

    def _neighbours(self, context: RequestContext) -> tuple[Tensor, Tensor]:
        """Neighbours of the events that are read, int64 [M, H, K], and their values, [M, H, T, K]."""
        items, values, rows_MH = self._rows(context)
        rows = rows_MH.flatten()
        read = (table.index_select(0, rows).unflatten(0, rows_MH.shape) for table in (items, values))
        items_MHK, values_MHTK = read
        return items_MHK.long(), values_MHTK

    def of_items(self, of_groups: Tensor, context: RequestContext, ids: Tensor) -> Tensor:
        """The numbers of items of each request's own, [..., G], [..., H] and [..., K] -> [..., K]."""
        weights = of_groups.unflatten(-1, (self.kinds, self.reach)).transpose(-1, -2)  # [..., H, T]
        return (self._of_own(context, ids).to(weights.dtype) * weights.unsqueeze(-3)).flatten(-2).sum(-1)

    def _of_own(self, context: RequestContext, ids: Tensor) -> Tensor:
        """How strongly each event speaks for items of each request's own, [..., K] -> [..., K, H, T]."""
        items, values, rows = self._rows(context)
        rows, ids = torch.broadcast_tensors(rows.unsqueeze(-2), ids.unsqueeze(-1))
        slot, is_neighbour = find_items(items, rows, ids)
        return values[rows, :, slot] * is_neighbour.unsqueeze(-1)

    def _events(self, context: RequestContext) -> Tensor | None:
        """Items of the events that are read, [..., H], 0 = none; None: nobody said."""
        latest = (context.latest or {}).get(self.task)
        return None if latest is None else latest[..., : self.reach]

    def _rows(self, context: RequestContext) -> tuple[Tensor, Tensor, Tensor]:
        """The tables of items and values, and which rows of them the items of the events [..., H] have."""
        events = self._events(context)
        if events is None:
            raise ValueError(NO_EVENTS)
        items, values, begin = self._tables(context)
        return items, values, events if begin is None else begin.unsqueeze(-1) + events

    def _tables(self, context: RequestContext) -> tuple[Tensor, Tensor, Tensor | None]:
        """The tables of items and values, and where those of each request [...] begin; None: at the first row."""
        return self.items, self.values, None
