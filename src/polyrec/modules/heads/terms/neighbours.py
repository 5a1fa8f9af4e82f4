"""What goes with the latest items of a user: the evidence that item-to-item recommenders rank by, weighed by the state.

Letters: M requests, H latest items, N items, K neighbours, T kinds of evidence, G = T * H groups, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyrec.core.registry import RETRIEVAL_TERMS
from polyrec.data.neighbours import KINDS
from polyrec.modules.encoders.request_context import LATEST
from polyrec.modules.heads.terms._cross_fitted import CrossFittedNeighbours

# Where the weights start, by kind: of the latest item, and what one item further back counts. Means of what linear
# models of this term alone trained on five public logs.
_START = {"together": (0.7, 0.7), "similar": (1.0, 0.9), "next": (1.5, 0.65)}


@RETRIEVAL_TERMS.register("neighbours")
class ItemNeighbours(CrossFittedNeighbours):
    r"""The neighbour term of a retrieval logit, e(s_i, j) = sum_{h, t} (A s_i + c)_{th} S_t[i_h, j].

    i_1, i_2, ... are the latest items of the request's user (events whose label is known to be 0 do not count), S_t
    the kinds of evidence of [`~polyrec.data.neighbours.neighbours`], counted in the training log. c starts at what
    item-to-item recommenders do, with less and less weight of earlier items, and A at 0, so that an untrained model
    ranks as they do (Sarwar et al., 2001; He and McAuley, 2016; in the spirit of Steck, 2019, weights trained by a
    softmax).

    Args:
        size: K.
        rate: how many times faster than other parameters c learns.
        task: whose label says which events count.

    Shapes: states [M, D] -> logits of groups [M, G]; latest items [M, H] -> numbers of items [M, N].
    """

    for_sets = False

    def __init__(self, size: int, num_items: int, hidden_size: int, rate: float = 1.0, task: str = "") -> None:
        super().__init__(size, num_items, len(KINDS), hidden_size, rate, task)

    def _start(self) -> Tensor:
        """Weights of the groups before training."""
        return torch.tensor([[_START[k][0] * _START[k][1] ** h for h in range(LATEST)] for k in KINDS])
