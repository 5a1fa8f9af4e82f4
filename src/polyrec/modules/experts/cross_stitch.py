"""A network per task, whose hidden units are mixed after each layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import EXPERTS
from polyrec.modules.experts._batched import BatchedMLP
from polyrec.modules.experts.base import ExpertLayer, ExpertOutput


@EXPERTS.register("cross_stitch")
class CrossStitch(ExpertLayer):
    r"""One network per task with linear mixing in between, h = sum_u a_tu (h_u + f_u(norm(h_u))) in each layer.

    Misra et al. (2016), "Cross-stitch Networks for Multi-task Learning". The T x T numbers a_tu of a layer are trained.
    They start near the identity, a_tt = `self_weight` and the rest of the row shared out evenly: the tasks begin as
    nearly separate networks and learn from whom to take.

    Options: `num_layers`, `expansion` (inner width over D), `self_weight` (in (0, 1]).

    Shapes: [B, C, D] -> {task: [B, C, D]}.

    Example:
        >>> tasks = [{"name": "like", "head": "binary"}, {"name": "click", "head": "binary"}]
        >>> config = PolyRecConfig(tasks=tasks, hidden_size=4, experts="cross_stitch")
        >>> layer = CrossStitch(config, ["like", "click"])
        >>> layer.initialise()
        >>> layer(torch.zeros(2, 3, 4)).hidden["like"].shape
        torch.Size([2, 3, 4])
        >>> layer.layers[0].stitch.data
        tensor([[0.9000, 0.1000],
                [0.1000, 0.9000]])
    """

    default_options: dict[str, Any] = {"num_layers": 2, "expansion": 1.0, "self_weight": 0.9}

    def __init__(self, config: PolyRecConfig, task_names: list[str]) -> None:
        super().__init__(config, task_names)
        if not 0 < self.options["self_weight"] <= 1:
            raise ValueError(
                f"option 'self_weight' of expert layer {config.experts!r} is {self.options['self_weight']}; it must "
                "lie in (0, 1], where 1 starts with separate networks"
            )
        self.layers = nn.ModuleList(
            _Layer(len(task_names), config.pair_width, self.inner_width(config), config.dropout)
            for _ in range(self.options["num_layers"])
        )

    def initialise(self) -> None:
        """Start near the identity, with rows that sum to 1."""
        tasks, own = len(self.task_names), self.options["self_weight"]
        start = torch.ones(1, 1)
        if tasks > 1:
            start = torch.full((tasks, tasks), (1 - own) / (tasks - 1)).fill_diagonal_(own)
        for layer in self.layers:
            init.copy_(layer.stitch, start)

    def forward(self, pair_BCD: Tensor, real_BC: Tensor | None = None) -> ExpertOutput:
        """Run the tasks' networks side by side."""
        hidden = pair_BCD.flatten(0, 1)
        for layer in self.layers:
            hidden = layer(hidden)
        return ExpertOutput(self.by_name(hidden, pair_BCD))


class _Layer(nn.Module):
    """[P, D] (first layer: all tasks read the same) or [T, P, D] -> [T, P, D]."""

    def __init__(self, tasks: int, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.networks = BatchedMLP(tasks, width, inner, width, dropout)
        self.stitch = nn.Parameter(torch.empty(tasks, tasks))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden_TPD = hidden + self.networks(self.norm(hidden))
        return (self.stitch @ hidden_TPD.flatten(1)).view_as(hidden_TPD)
