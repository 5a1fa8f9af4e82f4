"""One shared network for all pair tasks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from polyrec.configuration_polyrec import PolyRecConfig
from polyrec.experts.base import ExpertLayer
from polyrec.registry import EXPERTS


@EXPERTS.register("shared_bottom")
class SharedBottom(ExpertLayer):
    r"""Hard parameter sharing (Caruana, 1997): every task reads the same h = x + W_2 gelu(W_1 norm(x)).

    Options: `num_layers` (residual blocks), `expansion` (inner width over D).

    Shapes: [B, C, D] -> {task: [B, C, D]}.

    Example:
        >>> import torch
        >>> config = PolyRecConfig(tasks=[{"name": "like", "head": "binary"}], hidden_size=4)
        >>> SharedBottom(config, ["like"])(torch.zeros(2, 3, 4))["like"].shape
        torch.Size([2, 3, 4])
    """

    default_options: dict[str, Any] = {"num_layers": 1, "expansion": 2}

    def __init__(self, config: PolyRecConfig, task_names: list[str]) -> None:
        super().__init__(config, task_names)
        width, inner = config.hidden_size, config.hidden_size * self.options["expansion"]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(inner, width)
            )
            for _ in range(self.options["num_layers"])
        )

    def forward(self, pair_BCD: Tensor) -> dict[str, Tensor]:
        """Share one hidden vector among all tasks."""
        for block in self.blocks:
            pair_BCD = pair_BCD + block(pair_BCD)
        return dict.fromkeys(self.task_names, pair_BCD)
