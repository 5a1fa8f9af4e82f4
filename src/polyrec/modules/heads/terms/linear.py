"""Item-to-item recommenders beside the network.

Letters: M questions, H latest items, N items, K neighbours.
"""

from __future__ import annotations

import torch
from transformers import initialization as init

from polyrec.data.neighbours import Neighbours
from polyrec.modules.heads.terms.neighbours import NeighbourTable
from polyrec.modules.heads.terms.weighed import WeighedTerm


class LinearNeighbours(NeighbourTable, WeighedTerm):
    r"""A term of a retrieval logit, e(i, j) = a sum_h d^h S[i_h, j], S item-to-item scores.

    i_0, i_1, ... are the latest items, as of [`~polyrec.modules.heads.terms.neighbours.ItemNeighbours`]. S was fitted
    on the training rows, whose own answers it has seen: the weights of EASE (Steck, 2019, "Embarrassingly Shallow
    Autoencoders for Sparse Data"), or the chances of a Markov chain. So it is a
    [`~polyrec.modules.heads.terms.weighed.WeighedTerm`].

    Shapes: as of `NeighbourTable`, with one kind of evidence.
    """

    decays = (0.9, 0.7, 1.0)

    def __init__(self, size: int, num_items: int, reach: int, task: str = "") -> None:
        super().__init__(size, num_items, 1, task, reach)
        self.register_weights(reach)

    def initialise(self) -> None:
        """Start without a neighbour and without a say."""
        super().initialise()
        init.zeros_(self.weights)

    @torch.no_grad()
    def load(self, table: Neighbours) -> None:
        """Take the weights of all users."""
        self.items, self.values = self._tensors([table])
