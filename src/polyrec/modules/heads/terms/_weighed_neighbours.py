"""Item-to-item recommenders beside the network.

Letters: M requests, H latest items, N items, K neighbours.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.data.neighbours import Neighbours
from polyrec.modules.encoders.request_context import LATEST
from polyrec.modules.heads.base import TaskHead
from polyrec.modules.heads.terms._neighbour_table import NeighbourTable
from polyrec.modules.heads.terms._weighed import WeighedTerm
from polyrec.modules.heads.terms.base import RetrievalTerm


class WeighedNeighbours(NeighbourTable, WeighedTerm):
    r"""Base of item-to-item recommenders beside the network, e(i, j) = a sum_h d^h S[i_h, j], S item-to-item scores.

    i_0, i_1, ... are the latest items of the user; the option `reach` says how many. S was fitted on the training rows,
    whose own positives it has seen, so it is a `WeighedTerm`. The option named like the term says how many numbers are
    kept of each item; 0: no such term.

    Shapes: as of `NeighbourTable`, with one kind of evidence.
    """

    decays = (0.9, 0.7, 1.0)
    default_options: ClassVar[dict[str, Any]] = {"linear": 0, "transitions": 0, "reach": LATEST}

    @classmethod
    def build(cls, head: TaskHead, config: PolyRecConfig) -> RetrievalTerm | None:
        """With the option > 0."""
        size, reach = head.options[cls.option], head.options["reach"]
        for option, least in ((cls.option, 0), ("reach", 1)):
            if head.options[option] < least:
                raise head.option_error(option, f"it must be >= {least}")
        return cls(size, config.num_items, reach, head.task.name) if size else None

    def __init__(self, size: int, num_items: int, reach: int, task: str = "") -> None:
        super().__init__(size, num_items, 1, task, reach)
        self.register_weights(reach)

    def initialise(self) -> None:
        """Start without a neighbour and without a say."""
        super().initialise()
        init.zeros_(self.weights)

    @property
    def latest_events(self) -> int:
        """Those within reach; no training reads it."""
        return 0 if self.training else max(self.reach, LATEST)

    def load_neighbours(self, processor: Any) -> None:
        """Take the scores of the training rows, unless there are some."""
        table = processor.weighed_neighbours(self.task, self.option, self.kept) if self.is_new else None
        if table is not None:
            self.load(table)

    @torch.no_grad()
    def load(self, table: Neighbours) -> None:
        """Take the weights of all users."""
        self.items, self.values = self._tensors([table])
