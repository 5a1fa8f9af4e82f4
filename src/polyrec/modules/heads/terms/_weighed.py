"""Recommenders beside the network: terms whose weight the ranking of validation rows chooses after training."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from transformers import initialization as init

from polyrec.modules.heads.terms.base import RetrievalTerm


class WeighedTerm(RetrievalTerm):
    """Base of the terms of a retrieval logit that are recommenders of their own and have seen the labels of their
    training rows.

    No training reads them, and their weights, a d^h of group h, are no parameters: validation chooses a and d
    ([`polyrec.evaluation.term_weight`]), after which the sum of unlike recommenders ranks better than each of them. a
    is 0 until then, and stays so where validation gains nothing.
    """

    title: ClassVar[str]  # in messages
    decays: ClassVar[tuple[float, ...]] = (1.0,)  # the d to choose from
    weights: Tensor

    @property
    def is_new(self) -> bool:
        """Whether it was given nothing to read yet."""
        return False

    def register_weights(self, size: int) -> None:
        """Have `size` groups, without a say."""
        self.size = size
        self.register_buffer("weights", torch.zeros(size))

    def initialise(self) -> None:
        """Start without a say."""
        init.zeros_(self.weights)

    @property
    def speaks(self) -> bool:
        """Whether it changes a logit: not in training, and not where validation has not chosen it."""
        return not self.training and bool(self.weights.any())

    @torch.no_grad()
    def weigh(self, strength: float, decay: float) -> None:
        """Set a and d."""
        self.weights.copy_(strength * decay ** torch.arange(self.size))

    def logits(self, state: Tensor) -> Tensor:
        """The weights, the same for every state, [..., D] -> [..., G]."""
        return self.weights.to(state.dtype).expand(*state.shape[:-1], self.size)
