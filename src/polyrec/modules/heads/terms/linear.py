"""Classical recommenders beside the network: evidence whose weight validation chooses after training.

Letters: M questions, H latest items, N items, K neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import initialization as init

from polyrec.data.neighbours import Neighbours
from polyrec.modules.heads.terms.neighbours import NeighbourTable


class LinearNeighbours(NeighbourTable):
    r"""A term of a retrieval logit, e(i, j) = a sum_h d^h S[i_h, j], S item-to-item scores.

    i_0, i_1, ... are the latest items, as of [`~polyrec.modules.heads.terms.neighbours.ItemNeighbours`]. S is a
    recommender of its own, fitted on the training rows, whose own answers it has seen: the weights of EASE (Steck,
    2019, "Embarrassingly Shallow Autoencoders for Sparse Data"), or the chances of a Markov chain. So no training
    reads it, and a and d are no parameters: the ranking of validation rows chooses them
    ([`polyrec.evaluation.linear_weight`]), after which the sum of two unlike recommenders ranks better than either.
    a is 0 until then, and stays so where validation gains nothing.

    Shapes: as of `NeighbourTable`, with one kind of evidence.
    """

    weights: Tensor

    def __init__(self, size: int, num_items: int, reach: int, task: str = "") -> None:
        super().__init__(size, num_items, 1, task, reach)
        self.register_buffer("weights", torch.zeros(reach))  # a d^h

    def initialise(self) -> None:
        """Start without a say."""
        super().initialise()
        init.zeros_(self.weights)

    @property
    def speaks(self) -> bool:
        """Whether it changes a logit: not in training, and not where validation has not chosen it."""
        return not self.training and bool(self.weights.any())

    @torch.no_grad()
    def weigh(self, strength: float, decay: float) -> None:
        """Set a and d."""
        self.weights.copy_(strength * decay ** torch.arange(self.reach))

    @torch.no_grad()
    def load(self, table: Neighbours) -> None:
        """Take the weights of all users."""
        self.items, self.values = self._tensors([table])

    def logits(self, state: Tensor) -> Tensor:
        """The weights, the same for every state, [..., D] -> [..., H]."""
        return self.weights.to(state.dtype).expand(*state.shape[:-1], self.reach)
