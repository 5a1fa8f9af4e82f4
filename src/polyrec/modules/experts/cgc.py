"""Experts for each task alone, experts for all, and a gate per task over both kinds."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import EXPERTS
from polyrec.modules.experts._extraction import Extraction
from polyrec.modules.experts._gates import GatedLayer
from polyrec.modules.experts.base import ExpertOutput


@EXPERTS.register("cgc")
class CGC(GatedLayer):
    r"""Customized gate control, h = x + sum_e g_te f_e(norm(x)) over task t's own and the shared experts.

    Tang et al. (2020), "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized
    Recommendations". Unlike in `mmoe`, no other task trains a task's own experts. One level of `ple`.

    Options: `task_experts` (of each task), `shared_experts`, `expansion` (inner width of an expert over D),
    `load_balancing` (coefficient of the penalty on a task's gate that leaves some of its experts out).

    Shapes: [B, C, D] -> {task: [B, C, D]}, gates {task: [B, C, task_experts + shared_experts]}.

    Example:
        >>> import torch
        >>> config = PolyRecConfig(tasks=[{"name": "like", "head": "binary"}], hidden_size=4, experts="cgc")
        >>> layer = CGC(config, ["like"])
        >>> output = layer(torch.zeros(2, 3, 4))
        >>> output.hidden["like"].shape, output.gates["like"].shape
        (torch.Size([2, 3, 4]), torch.Size([2, 3, 2]))
        >>> layer.gate_names["like"]
        ['own 1', 'shared 1']
    """

    default_options: dict[str, Any] = GatedLayer.default_options | {
        "task_experts": 1,
        "shared_experts": 1,
        "expansion": 0.5,
    }

    def __init__(self, config: PolyRecConfig, task_names: list[str]) -> None:
        super().__init__(config, task_names)
        width, levels = config.pair_width, self.options.get("num_layers", 1)  # an option of `ple` only
        own, shared = self.options["task_experts"], self.options["shared_experts"]
        self.levels = nn.ModuleList(
            Extraction(
                len(task_names),
                own,
                shared,
                width,
                self.inner_width(config),
                config.dropout,
                shared_gate=level < levels - 1,
            )
            for level in range(levels)
        )
        names = [f"own {n + 1}" for n in range(own)] + [f"shared {n + 1}" for n in range(shared)]
        self.gate_names = {name: list(names) for name in self.task_names}

    def forward(self, pair_BCD: Tensor, real_BC: Tensor | None = None) -> ExpertOutput:
        """Mix the experts for every task, level by level; the gates are those of the last level."""
        hidden, common, penalized = pair_BCD.flatten(0, 1).unsqueeze(0), None, []
        for level in self.levels:
            hidden, common, gates = level(hidden, common)
            penalized += gates
        return ExpertOutput(
            self.by_name(hidden, pair_BCD), self.by_name(gates[0], pair_BCD), self.penalty(penalized, real_BC)
        )
