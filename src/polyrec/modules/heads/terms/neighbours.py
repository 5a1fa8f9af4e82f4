"""What goes with the latest items of a user: the evidence that item-to-item recommenders rank by, weighed by the state.

Letters: M questions, H latest items, N items, K neighbours, T kinds of evidence, G = T * H groups, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from polyrec.core.linear_loss import SparseBias
from polyrec.data.neighbours import KINDS, Neighbours
from polyrec.modules.encoders.request_context import LATEST, RequestContext
from polyrec.modules.heads.terms.item_terms import find_items, place_numbers

# Where the weights start, by kind: of the latest item, and what one item further back counts. Means of what linear
# models of this term alone learnt on five public logs.
_START = {"together": (0.7, 0.7), "similar": (1.0, 0.9), "next": (1.5, 0.65)}


class NeighbourTable(nn.Module):
    """Neighbours of items, and what kinds of evidence say of them, for the latest items of a user.

    Args:
        size: K.
        kinds: T.
        task: whose label says which events count.
        reach: H, how many of the latest items it reads.

    Shapes: latest items [M, H] -> numbers of items [M, N], one for each of the G groups (kind, place of the item).
    """

    items: Tensor
    values: Tensor

    def __init__(self, size: int, num_items: int, kinds: int, task: str = "", reach: int = LATEST) -> None:
        super().__init__()
        self.task, self.kinds, self.reach, self.size = task, kinds, reach, kinds * reach
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

    def biases(self, context: RequestContext, ids: Tensor) -> SparseBias:
        """The neighbours' columns and numbers for the logits of some items.

        Args:
            ids: ascending, each once.
        """
        items, values, rows_MH = self._rows(context)
        return place_numbers(items, values, rows_MH, ids, len(self.items))

    def training_biases(self, context: RequestContext, ids: Tensor, targets_M: Tensor) -> SparseBias:
        """The same, whatever came then."""
        return self.biases(context, ids)

    def of_items(self, of_groups: Tensor, context: RequestContext, ids: Tensor) -> Tensor:
        """The numbers of items of each question's own, [..., G], [..., H] and [..., K] -> [..., K]."""
        weights = of_groups.unflatten(-1, (self.kinds, self.reach)).transpose(-1, -2)  # [..., H, T]
        return (self._of_own(context, ids).to(weights.dtype) * weights.unsqueeze(-3)).flatten(-2).sum(-1)

    def _of_own(self, context: RequestContext, ids: Tensor) -> Tensor:
        """How strongly each event speaks for items of each question's own, [..., K] -> [..., K, H, T]."""
        items, values, rows = self._rows(context)
        rows, ids = torch.broadcast_tensors(rows.unsqueeze(-2), ids.unsqueeze(-1))
        place, is_neighbour = find_items(items, rows, ids)
        return values[rows, :, place] * is_neighbour.unsqueeze(-1)

    def _events(self, context: RequestContext) -> Tensor | None:
        """Items of the events that are read, [..., H], 0 = none; None: nobody said."""
        latest = (context.latest or {}).get(self.task)
        return None if latest is None else latest[..., : self.reach]

    def _rows(self, context: RequestContext) -> tuple[Tensor, Tensor, Tensor]:
        """The tables of items and values, and which rows of them the items of the events [..., H] have."""
        latest = self._events(context)
        if latest is None:
            raise ValueError(
                "a task with `neighbours` must be told what came before: pass what "
                "`model.request_context(...)` returns where it scores the catalog"
            )
        return self.items, self.values, latest


class ItemNeighbours(NeighbourTable):
    r"""The neighbour term of a retrieval logit, e(s_i, j) = sum_{h, t} (A s_i + c)_{th} S_t[i_h, j].

    i_1, i_2, ... are the latest items of the question's user (events whose label is known to be 0 do not count), S_t
    the kinds of evidence of [`~polyrec.data.neighbours.neighbours`], counted in the training log. c starts at what
    item-to-item recommenders do, with less and less weight of earlier items, and A at 0, so that an untrained model
    ranks as they do (Sarwar et al., 2001; He and McAuley, 2016; in the spirit of Steck, 2019, weights learnt by a
    softmax).

    **Cross-fitted**: a training question must not find its own answer counted in S, or training would trust evidence
    that nobody else's questions have. So the users are in folds, and in training mode a question reads tables that were
    counted without its user's fold. What is saved, and read in evaluation mode, is the table of all.

    Args:
        size: K.
        rate: how many times faster than other parameters c learns.
        task: whose label says which events count.

    Shapes: states [M, D] -> logits of groups [M, G]; latest items [M, H] -> numbers of items [M, N].
    """

    fold_items: Tensor
    fold_values: Tensor

    def __init__(self, size: int, num_items: int, hidden_size: int, rate: float = 1.0, task: str = "") -> None:
        super().__init__(size, num_items, len(KINDS), task)
        self.rate = rate
        self.by_state = nn.Linear(hidden_size, self.size, bias=False)
        self.prior = nn.Embedding(self.size, 1)
        # The table of all and, below, those without the users of each fold; [0, ...] where nobody trains.
        self.register_buffer("fold_items", torch.zeros(0, size, dtype=torch.int32), persistent=False)
        self.register_buffer("fold_values", torch.zeros(0, len(KINDS), size, dtype=torch.float16), persistent=False)

    def initialise(self) -> None:
        """Start as an item-to-item recommender."""
        super().initialise()
        init.zeros_(self.by_state.weight)
        init.copy_(self.prior.weight, self._start().view(-1, 1) / self.rate)

    def _start(self) -> Tensor:
        """Weights of the groups before training."""
        return torch.tensor([[_START[k][0] * _START[k][1] ** h for h in range(LATEST)] for k in KINDS])

    @property
    def is_cross_fitted(self) -> bool:
        """Whether training reads tables that were counted without a question's own user."""
        return len(self.fold_items) > 0

    @torch.no_grad()
    def load(self, whole: Neighbours, folds: Sequence[Neighbours] = ()) -> None:
        """Take the table of all users, and those without the users of each fold."""
        self.items, self.values = self._tensors([whole])
        if folds:
            self.fold_items, self.fold_values = self._tensors([whole, *folds])
        else:
            self._drop_folds()

    @torch.no_grad()
    def extend(self, num_items: int) -> None:
        """Add rows of items without neighbours."""
        super().extend(num_items)
        self._drop_folds()

    def _drop_folds(self) -> None:
        self.fold_items, self.fold_values = self.fold_items[:0], self.fold_values[:0]

    def logits(self, state: Tensor) -> Tensor:
        """The weights of a state, [..., D] -> [..., G]."""
        return self.by_state(state) + self.rate * self.prior.weight.squeeze(-1)

    def _rows(self, context: RequestContext) -> tuple[Tensor, Tensor, Tensor]:
        """The tables of items and values, and which rows of them the items of the events [..., H] have."""
        items, values, latest = super()._rows(context)
        if not self.training or context.fold is None or not self.is_cross_fitted:
            return items, values, latest
        return self.fold_items, self.fold_values, context.fold.unsqueeze(-1) * len(items) + latest
