"""EASE beside the network."""

from __future__ import annotations

from polyrec.core.registry import RETRIEVAL_TERMS
from polyrec.modules.heads.terms._weighed_neighbours import WeighedNeighbours


@RETRIEVAL_TERMS.register("linear")
class LinearNeighbours(WeighedNeighbours):
    r"""e(i, j) = a sum_h d^h S[i_h, j], S the weights of a linear item-item model.

    EASE (Steck, 2019, "Embarrassingly Shallow Autoencoders for Sparse Data"), of which the largest weights are kept.

    Shapes: latest items [M, H] -> scores of items [M, N].
    """

    option = "linear"
    title = "linear neighbours"
    order = 30
    found_options = ("linear", "reach")
