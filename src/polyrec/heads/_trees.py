"""Gradient-boosted trees on what is known of a candidate: the evidence that a pair task's logit starts from.

Letters: M pairs, F features, T trees, S sets of trees, D depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import initialization as init

from polyrec.core.modules import KeepsPrecision
from polyrec.data.trees import DEPTH, Trees
from polyrec.schema import STATISTICS, FeatureConfig


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


class TreeEvidence(KeepsPrecision):
    r"""The tree term of a pair logit, e(x) = sum_t leaf_t(x), in single precision.

    x are the running statistics and the context of a candidate. The trees (Ke et al., 2017, "LightGBM") are grown
    before training, and stay as they are: they start the logit, and the network learns what they miss.

    **Cross-fitted**: a training row must not be read by trees that were grown on its label, or training would trust
    evidence that no other rows have (as in stacking: Wolpert, 1992, "Stacked Generalization"). So the users are in
    folds, and in training mode a row reads trees that were grown without its user's fold. What is saved, and read in
    evaluation mode, are the trees of all.

    Args:
        most: T.

    Shapes: inputs [M, 2F], folds [M] -> [M].
    """

    feature: Tensor
    threshold: Tensor
    leaf: Tensor
    fold_feature: Tensor
    fold_threshold: Tensor
    fold_leaf: Tensor

    def __init__(self, most: int) -> None:
        super().__init__()
        shapes = {"feature": (most, 2**DEPTH - 1), "threshold": (most, 2**DEPTH - 1), "leaf": (most, 2**DEPTH)}
        for name, shape in shapes.items():
            kind = torch.int16 if name == "feature" else torch.float32
            self.register_buffer(name, torch.zeros(shape, dtype=kind))
            # The trees of all and, after them, those without the users of each fold; [0, ...] where nobody trains.
            self.register_buffer(f"fold_{name}", torch.zeros(0, *shape, dtype=kind), persistent=False)

    def initialise(self) -> None:
        """Start without trees, which add 0."""
        for buffer in (self.feature, self.threshold, self.leaf):
            init.zeros_(buffer)

    @property
    def is_new(self) -> bool:
        """Whether no trees were taken yet."""
        return not self.leaf.any()

    def holds(self, whole: Trees) -> bool:
        """Whether the trees of all users are those that are here."""
        own = self.feature, self.threshold, self.leaf
        return all(torch.equal(ours, theirs[0]) for ours, theirs in zip(own, self._stacked([whole]), strict=True))

    @torch.no_grad()
    def load(self, whole: Trees, folds: Sequence[Trees] = ()) -> None:
        """Take the trees of all users, and those without the users of each fold."""
        self.feature, self.threshold, self.leaf = (values[0] for values in self._stacked([whole]))
        self.fold_feature, self.fold_threshold, self.fold_leaf = self._stacked([whole, *folds] if folds else [])

    def _stacked(self, sets: Sequence[Trees]) -> list[Tensor]:
        found = []
        for name, like in (("feature", self.feature), ("threshold", self.threshold), ("leaf", self.leaf)):
            values = like.new_zeros(len(sets), *like.shape)
            for place, trees in zip(values, sets, strict=True):
                array = getattr(trees, name)
                place[: len(array)] = torch.from_numpy(array)
            found.append(values)
        return found

    @torch.no_grad()
    def forward(self, known_MF: Tensor, fold_M: Tensor | None = None) -> Tensor:
        """What the trees add to logits.

        Args:
            known_MF: see [`read_inputs`].
            fold_M: int64, the fold of each row's user, 0 = none; read in training mode.
        """
        sets = self.feature.unsqueeze(0), self.threshold.unsqueeze(0), self.leaf.unsqueeze(0)
        if folded := self.training and fold_M is not None and len(self.fold_leaf) > 0:
            sets = self.fold_feature, self.fold_threshold, self.fold_leaf
        grown = int(self.leaf.any(dim=1).sum())
        feature_STN, threshold_STN, leaf_STN = (values[:, :grown] for values in sets)
        place_MT = torch.arange(grown, device=known_MF.device).expand(len(known_MF), grown)
        if folded and fold_M is not None:
            place_MT = place_MT + fold_M.unsqueeze(1) * grown
        for level in range(DEPTH):  # of all sets and trees, the nodes of a level lie one after the other
            nodes, flat = slice(2**level - 1, 2 ** (level + 1) - 1), place_MT.reshape(-1)
            feature_MT = feature_STN[..., nodes].reshape(-1).long().index_select(0, flat).view_as(place_MT)
            bound_MT = threshold_STN[..., nodes].reshape(-1).index_select(0, flat).view_as(place_MT)
            place_MT = 2 * place_MT + (known_MF.gather(1, feature_MT) > bound_MT)
        return leaf_STN.reshape(-1).index_select(0, place_MT.reshape(-1)).view_as(place_MT).sum(1)
