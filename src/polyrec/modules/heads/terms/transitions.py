"""A Markov chain beside the network."""

from __future__ import annotations

from polyrec.core.registry import RETRIEVAL_TERMS
from polyrec.modules.heads.terms._weighed_neighbours import WeighedNeighbours


@RETRIEVAL_TERMS.register("transitions")
class Transitions(WeighedNeighbours):
    r"""e(i, j) = a sum_h d^h S[i_h, j], S the chances of what comes next in a Markov chain.

    Shapes: latest items [M, H] -> scores of items [M, N].
    """

    option = "transitions"
    title = "transitions"
    order = 40
    found_options = ("transitions", "reach")
