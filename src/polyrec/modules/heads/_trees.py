"""Gradient-boosted trees on what is known of a candidate, beside the network of a pair task.

Letters: M pairs, F features, T trees, N nodes or leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import initialization as init

from polyrec.core.modules import KeepsPrecision
from polyrec.core.schema import STATISTICS, FeatureConfig
from polyrec.data.trees import DEPTH, Trees

_ROWS = 512  # read at a time: what they take stays in the cache


def tree_inputs(features: Sequence[FeatureConfig]) -> list[tuple[str, int]]:
    """Names and sizes of the features that trees read, in the order of [`polyrec.data.trees.known_features`]."""
    own = [f for f in features if f.source == "candidate"]
    context = sorted(f.name for f in own if f.kind in ("numeric", "categorical"))
    return [(name, 1) for name in context] + [(f.name, f.size) for f in own if f.name == STATISTICS]


def read_inputs(values: Mapping[str, Tensor], inputs: Sequence[tuple[str, int]]) -> Tensor:
    """What trees read, {name: [1, M] or [1, M, K]} -> [M, 2F]: once with missing numbers above all others, then below.

    Example:
        >>> read_inputs({"price": torch.tensor([[2.0, float("nan")]])}, [("price", 1)]).tolist()
        [[2.0, 2.0], [inf, -inf]]
    """
    x_MF = torch.cat([values[name].reshape(-1, size).float() for name, size in inputs], dim=1)
    missing = torch.isnan(x_MF)
    return torch.cat([x_MF.masked_fill(missing, torch.inf), x_MF.masked_fill(missing, -torch.inf)], dim=1)


class TreeBlend(KeepsPrecision):
    r"""Trees beside a pair head, z' = (1 - w) z + w (b + sum_t leaf_t(x)), in single precision.

    x are the running statistics and the context of a candidate, b the log odds of the labels' mean, or 0. The trees (Ke
    et al., 2017, "LightGBM") have seen the labels of the training rows, so no training reads them; how many of them are
    read and how much they say, w, is what predicts validation rows best ([`polyrec.evaluation.tree_weight`]). Networks
    and trees err on different rows: in the mean they err less than either. w is 0 until then, and stays so where
    validation gains nothing.

    Args:
        most: T.

    Shapes: inputs [M, 2F] -> [M].
    """

    feature: Tensor
    threshold: Tensor
    leaf: Tensor
    weight: Tensor

    def __init__(self, most: int) -> None:
        super().__init__()
        self.register_buffer("feature", torch.zeros(most, 2**DEPTH - 1, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(most, 2**DEPTH - 1, dtype=torch.float32))
        self.register_buffer("leaf", torch.zeros(most, 2**DEPTH, dtype=torch.float32))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float32))  # w

    def initialise(self) -> None:
        """Start without trees."""
        for buffer in (self.feature, self.threshold, self.leaf, self.weight):
            init.zeros_(buffer)

    @property
    def speaks(self) -> bool:
        """Whether the trees change a logit: not in training, and not where validation has not chosen them."""
        return not self.training and bool(self.weight)

    @torch.no_grad()
    def load(self, trees: Trees, number: int, weight: float) -> None:
        """Take the first of some trees, and their weight."""
        for own, array in ((self.feature, trees.feature), (self.threshold, trees.threshold), (self.leaf, trees.leaf)):
            own.zero_()
            own[:number] = torch.from_numpy(array[:number])
        self.weight.fill_(weight)

    @torch.no_grad()
    def forward(self, known_MF: Tensor) -> Tensor:
        """Sums of leaves; see [`read_inputs`]."""
        used = int(self.leaf.any(dim=1).sum())
        found = [
            read_leaves(some, self.feature[:used], self.threshold[:used], self.leaf[:used]).sum(1)
            for some in known_MF.split(_ROWS)
        ]
        return torch.cat(found)


def read_leaves(known_MF: Tensor, feature_TN: Tensor, threshold_TN: Tensor, leaf_TN: Tensor) -> Tensor:
    """The leaf of each tree that a row falls into, [M, T]; trees as of [`polyrec.data.trees.Trees`]."""
    node_MT = torch.arange(len(feature_TN), device=known_MF.device).expand(known_MF.shape[0], len(feature_TN))
    for level in range(DEPTH):  # of all trees, the nodes of a level lie one after the other
        nodes, flat = slice(2**level - 1, 2 ** (level + 1) - 1), node_MT.reshape(-1)
        feature_MT = feature_TN[:, nodes].reshape(-1).long().index_select(0, flat).view_as(node_MT)
        bound_MT = threshold_TN[:, nodes].reshape(-1).index_select(0, flat).view_as(node_MT)
        node_MT = 2 * node_MT + (known_MF.gather(1, feature_MT) > bound_MT)
    return leaf_TN.reshape(-1).index_select(0, node_MT.reshape(-1)).view_as(node_MT)
