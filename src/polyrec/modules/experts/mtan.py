"""One shared network, of which each task takes what its attention lets through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import EXPERTS
from polyrec.modules.experts._batched import BatchedMLP
from polyrec.modules.experts._block import SharedBlock
from polyrec.modules.experts.base import ExpertLayer, ExpertOutput


@EXPERTS.register("mtan")
class MTAN(ExpertLayer):
    r"""A shared network with a soft attention mask per task, h = x + sum_j a_tj * f_j, elementwise.

    Liu, Johns and Davison (2019), "End-to-End Multi-Task Learning with Attention", in residual form: the shared states
    are s_j = s_{j-1} + f_j(norm(s_{j-1})) with s_0 = x, a task's features are h_tj = h_t,j-1 + a_tj * f_j with
    h_t0 = x, and its masks

        a_tj = sigmoid(U_tj gelu(V_tj [norm(s_{j-1}); norm(h_t,j-1)])),    in the first layer of norm(x) alone.

    With all masks at 1 this is `shared_bottom`. Masks belong to features, not to experts, so `gates` stays empty.

    Options: `num_layers` (shared blocks), `expansion` (inner width of a shared block over D), `bottleneck` (inner width
    of a mask's network).

    Shapes: [B, C, D] -> {task: [B, C, D]}.

    Example:
        >>> config = PolyRecConfig(tasks=[{"name": "like", "head": "binary"}], hidden_size=4, experts="mtan")
        >>> MTAN(config, ["like"])(torch.zeros(2, 3, 4)).hidden["like"].shape
        torch.Size([2, 3, 4])
    """

    default_options: dict[str, Any] = {"num_layers": 2, "expansion": 1.0, "bottleneck": 16}

    def __init__(self, config: PolyRecConfig, task_names: list[str]) -> None:
        super().__init__(config, task_names)
        width, layers = config.pair_width, range(self.options["num_layers"])
        self.blocks = nn.ModuleList(SharedBlock(width, self.inner_width(config), config.dropout) for _ in layers)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in layers)
        self.masks = nn.ModuleList(
            BatchedMLP(len(task_names), 2 * width if j else width, self.options["bottleneck"], width, config.dropout)
            for j in layers
        )

    def forward(self, pair_BCD: Tensor, real_BC: Tensor | None = None) -> ExpertOutput:
        """Let every task take its part of each shared block."""
        shared_PD = task = pair_BCD.flatten(0, 1)
        for j, (block, norm, mask) in enumerate(zip(self.blocks, self.norms, self.masks, strict=True)):
            seen = norm(task)
            if j:
                seen = torch.cat([norm(shared_PD).expand_as(seen), seen], dim=-1)
            found_PD = block(shared_PD)
            task = task + torch.sigmoid(mask(seen)) * found_PD
            shared_PD = shared_PD + found_PD
        return ExpertOutput(self.by_name(task, pair_BCD))
