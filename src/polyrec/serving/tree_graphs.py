"""Trees of pair tasks in exported graphs.

Letters: M pairs, F features, T trees.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyrec.modules.heads._trees import TreeBlend, read_leaves

_TASK = "polyrec_task"  # attribute of an operator without nodes


class LoadedTrees(nn.Module):
    """Trees of which nothing is chosen any more.

    Args:
        name: of the task; with it, they are the operator of ONNX for trees, which is many times faster than look-ups
            and no operator of torch. It is without nodes until [`fill_in`]: torch takes minutes to pass them on.

    Shapes: inputs [M, 2F] -> [M].
    """

    speaks = True

    def __init__(self, trees: TreeBlend, name: str | None = None) -> None:
        super().__init__()
        used = int(trees.leaf.any(dim=1).sum())
        self.register_buffer("weight", trees.weight)
        self.name = name
        if name is not None:
            self.arrays = [own[:used].numpy() for own in (trees.feature, trees.threshold, trees.leaf)]
            return
        for part in ("feature", "threshold", "leaf"):
            self.register_buffer(part, getattr(trees, part)[:used])

    def forward(self, known_MF: Tensor) -> Tensor:
        """Sums of leaves."""
        if self.name is None:
            feature, threshold, leaf = (self.get_buffer(name) for name in ("feature", "threshold", "leaf"))
            return read_leaves(known_MF, feature, threshold, leaf).sum(1)
        return torch.onnx.ops.symbolic(
            "ai.onnx.ml::TreeEnsembleRegressor",
            (known_MF,),
            {_TASK: self.name},
            dtype=torch.float32,
            shape=(known_MF.shape[0], 1),
            version=3,
        ).squeeze(1)


def fill_in(onnx_graph: Any, module: nn.Module) -> None:
    """Give operators for trees their nodes.

    Args:
        module: what the graph was made of.
    """
    import onnx_ir

    trees = {own.name: own for own in module.modules() if isinstance(own, LoadedTrees)}
    for node in onnx_graph.all_nodes():
        if _TASK in node.attributes:
            name = node.attributes.pop(_TASK).as_string()
            for attribute in onnx_ir.convenience.convert_attributes(tree_nodes(*trees[name].arrays)):
                node.attributes.add(attribute)


def tree_nodes(feature_TN: np.ndarray, threshold_TN: np.ndarray, leaf_TL: np.ndarray) -> dict[str, Any]:
    """Attributes of TreeEnsembleRegressor; arrays as of [`polyrec.data.trees.Trees`].

    Example:
        >>> nodes = tree_nodes(np.array([[3, 0, 0]]), np.array([[0.5, 0.0, 0.0]]), np.array([[1.0, 1.0, 2.0, 2.0]]))
        >>> nodes["nodes_modes"], nodes["nodes_featureids"], nodes["target_weights"]
        (['BRANCH_LEQ', 'LEAF', 'LEAF'], [3, 0, 0], [1.0, 2.0])
    """
    nodes: dict[str, list[Any]] = {key: [] for key in ("tree", "node", "feature", "value", "mode", "true", "false")}
    leaves: dict[str, list[Any]] = {key: [] for key in ("tree", "node", "weight")}

    def add(tree: int, place: int, begin: int, end: int) -> int:
        """The node at a place, above the leaves begin:end; returns its number."""
        own, at = leaf_TL[tree, begin:end], len(nodes["node"])
        number = at - first
        for key, value in zip(nodes, (tree, number, 0, 0.0, "LEAF", 0, 0), strict=True):
            nodes[key].append(value)
        if (own == own[0]).all():
            for key, value in zip(leaves, (tree, number, float(own[0])), strict=True):
                leaves[key].append(value)
            return number
        nodes["mode"][at] = "BRANCH_LEQ"
        nodes["feature"][at], nodes["value"][at] = int(feature_TN[tree, place]), float(threshold_TN[tree, place])
        middle = (begin + end) // 2
        nodes["true"][at] = add(tree, 2 * place + 1, begin, middle)
        nodes["false"][at] = add(tree, 2 * place + 2, middle, end)
        return number

    for tree in range(len(leaf_TL)):
        first = len(nodes["node"])
        add(tree, 0, 0, leaf_TL.shape[1])
    return {
        "n_targets": 1,
        "nodes_treeids": nodes["tree"],
        "nodes_nodeids": nodes["node"],
        "nodes_featureids": nodes["feature"],
        "nodes_values": nodes["value"],
        "nodes_modes": nodes["mode"],
        "nodes_truenodeids": nodes["true"],
        "nodes_falsenodeids": nodes["false"],
        "target_treeids": leaves["tree"],
        "target_nodeids": leaves["node"],
        "target_ids": [0] * len(leaves["node"]),
        "target_weights": leaves["weight"],
    }
