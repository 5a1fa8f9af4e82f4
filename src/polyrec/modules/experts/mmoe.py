"""Experts for all tasks, and a gate per task that chooses among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import EXPERTS
from polyrec.modules.experts._batched import BatchedMLP
from polyrec.modules.experts._gates import GatedLayer, mixture
from polyrec.modules.experts.base import ExpertOutput


@EXPERTS.register("mmoe")
class MMoE(GatedLayer):
    r"""Multi-gate mixture of experts, h = x + sum_e g_te f_e(norm(x)) with g_t = softmax(V_t norm(x) + c_t).

    Ma et al. (2018), "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts". Every
    task t weighs the same E experts f_e = W_e2 gelu(W_e1 .) by a gate of its own. As the gates sum to 1, this is a
    mixture of the residual experts x + f_e.

    Options: `num_experts` (E), `expansion` (inner width of an expert over D; by default the experts together are as
    wide as `shared_bottom`), `load_balancing` (coefficient of the penalty on experts that are left out, over all tasks
    together: tasks may still differ in what they use).

    Shapes: [B, C, D] -> {task: [B, C, D]}, gates {task: [B, C, E]}.

    Example:
        >>> config = PolyRecConfig(tasks=[{"name": "like", "head": "binary"}], hidden_size=4, experts="mmoe")
        >>> layer = MMoE(config, ["like"])
        >>> output = layer(torch.zeros(2, 3, 4))
        >>> output.hidden["like"].shape, output.gates["like"].shape
        (torch.Size([2, 3, 4]), torch.Size([2, 3, 4]))
        >>> layer.gate_names["like"]
        ['expert 1', 'expert 2', 'expert 3', 'expert 4']
    """

    default_options: dict[str, Any] = GatedLayer.default_options | {"num_experts": 4, "expansion": 0.5}

    def __init__(self, config: PolyRecConfig, task_names: list[str]) -> None:
        super().__init__(config, task_names)
        width, count = config.pair_width, self.options["num_experts"]
        if count < 2:
            raise ValueError(
                f"option 'num_experts' of expert layer {config.experts!r} is {count}, and a gate over one expert never "
                "learns: give it two or more, or use the expert layer 'shared_bottom'"
            )
        self.norm = nn.LayerNorm(width)
        self.experts = BatchedMLP(count, width, self.inner_width(config), width, config.dropout)
        self.gate = nn.Linear(width, len(task_names) * count)
        self.gate_names = {name: [f"expert {n + 1}" for n in range(count)] for name in self.task_names}

    def forward(self, pair_BCD: Tensor, real_BC: Tensor | None = None) -> ExpertOutput:
        """Mix the experts for every task."""
        pair_PD = pair_BCD.flatten(0, 1)
        normed_PD = self.norm(pair_PD)
        logits_PTE = self.gate(normed_PD).unflatten(-1, (len(self.task_names), -1))
        gates_TPE = torch.softmax(logits_PTE, dim=-1).transpose(0, 1)
        hidden_TPD = pair_PD + mixture(gates_TPE, self.experts(normed_PD))
        return ExpertOutput(
            self.by_name(hidden_TPD, pair_BCD),
            self.by_name(gates_TPE, pair_BCD),
            self.penalty([gates_TPE.mean(0, keepdim=True)], real_BC),
        )
