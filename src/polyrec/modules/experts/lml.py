"""One shared network plus a low-rank linear part per task."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import EXPERTS
from polyrec.modules.experts._batched import BatchedLinear
from polyrec.modules.experts.base import ExpertOutput
from polyrec.modules.experts.shared_bottom import SharedBottom


@EXPERTS.register("lml")
class LowRankLinear(SharedBottom):
    r"""A shared network and a low-rank linear part per task, h = shared(x) + B_t A_t x.

    shared(x) is `shared_bottom`; a task adds 2 r D parameters, and can only turn the output in r directions.

    We know of no paper with exactly this layer. A common part plus a small linear one per task is the idea of Evgeniou
    and Pontil (2004), "Regularized Multi-Task Learning", and of Ando and Zhang (2005), "A Framework for Learning
    Predictive Structures from Multiple Tasks and Unlabeled Data"; the low-rank form is that of adapters (Hu et al.,
    2022, "LoRA"), which Agiza et al. (2024, "MTLoRA") give to each task of a network. Unlike an adapter's, B_t does not
    start at 0: nothing was trained before that the first steps should keep.

    Options: `rank` (r), and those of `shared_bottom`: `num_layers`, `expansion`, `members`. Members of an ensemble
    share the linear parts.

    Shapes: [B, C, D] -> {task: [B, C, D]}, or {task: [B, C, M, D]} for M > 1 members.

    Example:
        >>> import torch
        >>> config = PolyRecConfig(tasks=[{"name": "like", "head": "binary"}], hidden_size=4, experts="lml")
        >>> LowRankLinear(config, ["like"])(torch.zeros(2, 3, 4)).hidden["like"].shape
        torch.Size([2, 3, 4])
    """

    default_options: dict[str, Any] = {"rank": 8} | SharedBottom.default_options

    def __init__(self, config: PolyRecConfig, task_names: list[str]) -> None:
        super().__init__(config, task_names)
        width, rank = config.pair_width, self.options["rank"]
        self.reduce = BatchedLinear(len(task_names), width, rank, bias=False)
        self.expand = BatchedLinear(len(task_names), rank, width, bias=False)

    def forward(self, pair_BCD: Tensor, real_BC: Tensor | None = None) -> ExpertOutput:
        """Add each task's linear part to the shared hidden vectors."""
        shared = super().forward(pair_BCD).hidden
        own = self.by_name(self.expand(self.reduce(pair_BCD.flatten(0, 1))), pair_BCD)
        if self.members > 1:
            own = {name: own_BCD.unsqueeze(-2) for name, own_BCD in own.items()}
        return ExpertOutput({name: shared[name] + own[name] for name in self.task_names})
