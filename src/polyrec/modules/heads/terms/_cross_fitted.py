"""Item-to-item evidence with weights by the user's state, trained without a user's own rows.

Letters: M requests, H latest items, N items, K neighbours, T kinds of evidence, G groups, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.data.neighbours import Neighbours
from polyrec.modules.encoders.request_context import LATEST, RequestContext
from polyrec.modules.heads.base import TaskHead
from polyrec.modules.heads.terms._neighbour_table import NeighbourTable
from polyrec.modules.heads.terms.base import RetrievalTerm

PACKED = 50_000  # items above which training holds the rows with neighbours alone


class CrossFittedNeighbours(NeighbourTable):
    """Base of the terms of the option `neighbours`: so many neighbours are kept of each item, 0: no such term.

    **Cross-fitted**: a training request must not find its own positive counted in the evidence, or training would trust
    evidence that no later request has. So users are in folds, and in training mode a request reads tables that were
    counted without its user's fold. What is saved, and read in evaluation mode, is the table of all.

    Args:
        size: K.
        rate: how many times faster than other parameters c learns.
        task: whose label says which events count.
    """

    option = "neighbours"
    key = "neighbours"
    order = 20
    network_share = 0.1  # not 0: balancing compares the tasks' gradients
    default_options: ClassVar[dict[str, Any]] = {"neighbours": 0, "of_sets": False}
    found_options = ("neighbours", "of_sets")
    for_sets: ClassVar[bool]  # whether the order of events says nothing
    fold_items: Tensor
    fold_values: Tensor

    @classmethod
    def build(cls, head: TaskHead, config: PolyRecConfig) -> RetrievalTerm | None:
        """With `neighbours` > 0."""
        size = head.options["neighbours"]
        if size < 0:
            raise head.option_error("neighbours", "it must be >= 0")
        if not size or head.options["of_sets"] != cls.for_sets:
            return None
        made: Any = cls  # whose subclasses know their kinds
        return made(size, config.num_items, config.hidden_size, head.options["bias_rate"], head.task.name)

    def __init__(
        self, size: int, num_items: int, kinds: int, hidden_size: int, rate: float = 1.0, task: str = ""
    ) -> None:
        super().__init__(size, num_items, kinds, task)
        self.rate = rate
        self.by_state = nn.Linear(hidden_size, self.size, bias=False)
        self.prior = nn.Embedding(self.size, 1)
        # The table of all and, below, those without the users of each fold; [0, ...] where nobody trains.
        self.register_buffer("fold_items", torch.zeros(0, size, dtype=torch.int32), persistent=False)
        self.register_buffer("fold_values", torch.zeros(0, kinds, size, dtype=torch.float16), persistent=False)
        # In large catalogs most items have no neighbours: where each row stands among those that have; else [0].
        self.register_buffer("fold_rows", torch.zeros(0, dtype=torch.int32), persistent=False)

    def initialise(self) -> None:
        """Start as an item-to-item recommender."""
        super().initialise()
        init.zeros_(self.by_state.weight)
        init.copy_(self.prior.weight, self._start().view(-1, 1) / self.rate)

    def _start(self) -> Tensor:
        """Weights of the groups before training."""
        raise NotImplementedError

    @property
    def latest_events(self) -> int:
        """The latest items, and with them the fold of the user."""
        return LATEST

    @property
    def is_cross_fitted(self) -> bool:
        """Whether training reads tables that were counted without a request's own user."""
        return len(self.fold_items) > 0

    def load_neighbours(self, processor: Any) -> None:
        """Take what goes with what in the training rows, unless the term knows it of other rows already."""
        tables = iter(processor.item_neighbours(self.task, self.kept))
        whole = next(tables)
        if self.is_new or self.holds(whole):
            self.load(whole, tables)

    @torch.no_grad()
    def load(self, whole: Neighbours, folds: Iterable[Neighbours] = ()) -> None:
        """Take the table of all users, and those without the users of each fold."""
        self.items, self.values = self._tensors([whole])
        self._drop_folds()
        if len(self.items) > PACKED and not self.for_sets:
            self._pack(folds)
        elif folds := list(folds):
            self.fold_items, self.fold_values = self._tensors([whole, *folds])

    def _pack(self, folds: Iterable[Neighbours]) -> None:
        """Take the rows with neighbours of the table of all users and of each fold, one table at a time."""
        items, values, rows = (
            [self.fold_items.new_zeros(1, self.kept)],
            [self.values.new_zeros(1, *self.values.shape[1:])],
            [],
        )
        number = 1  # after the row of items without neighbours
        for found, said in ((self.items, self.values), *(self._tensors([fold]) for fold in folds)):
            used = (found != 0).any(1).nonzero().squeeze(1)
            place = torch.zeros(len(found), dtype=torch.int32, device=found.device)
            place[used] = torch.arange(number, number + len(used), dtype=torch.int32, device=found.device)
            number += len(used)
            items.append(found[used])
            values.append(said[used])
            rows.append(place)
        if len(rows) > 1:
            self.fold_items, self.fold_values, self.fold_rows = (torch.cat(own) for own in (items, values, rows))

    @torch.no_grad()
    def extend(self, num_items: int) -> None:
        """Add rows of items without neighbours."""
        super().extend(num_items)
        self._drop_folds()

    def _drop_folds(self) -> None:
        self.fold_items, self.fold_values = self.fold_items[:0].clone(), self.fold_values[:0].clone()
        self.fold_rows = self.fold_rows[:0].clone()

    def logits(self, state: Tensor) -> Tensor:
        """The weights of a state, [..., D] -> [..., G]."""
        return self.by_state(state) + self.rate * self.prior.weight.squeeze(-1)

    def _tables(self, context: RequestContext) -> tuple[Tensor, Tensor, Tensor | None]:
        """The tables of items and values, and where those of each request [...] begin; None: at the first row."""
        if not self.training or context.fold is None or not self.is_cross_fitted:
            return super()._tables(context)
        return self.fold_items, self.fold_values, context.fold * len(self.items)

    def _rows(self, context: RequestContext) -> tuple[Tensor, Tensor, Tensor]:
        """See [`NeighbourTable`]; of packed tables."""
        items, values, rows = super()._rows(context)
        if items is self.fold_items and len(self.fold_rows):
            rows = self.fold_rows[rows].long()
        return items, values, rows
