"""The contract of an expert layer: what pair tasks share and what they keep apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from polyrec.configuration_polyrec import PolyRecConfig
from polyrec.registry import checked_options


@dataclass
class ExpertOutput:
    """What an expert layer answers.

    Args:
        hidden: {task: [B, C, D]}, or [B, C, M, D]: M members of an ensemble, whose losses and logits are averaged.
        gates: {task: [B, C, E]}, how much each task takes of each of its E sources, which `gate_names` names; empty for
            a layer without gates.
        penalty: scalar to be added to the objective (load balancing), a mean over real pairs; None = nothing.
    """

    hidden: dict[str, Tensor]
    gates: dict[str, Tensor] = field(default_factory=dict)
    penalty: Tensor | None = None


class ExpertLayer(nn.Module):
    """Base of all expert layers: `forward(pair [B, C, D]) -> ExpertOutput`, one hidden vector per task and pair.

    A layer with gates says in `gate_names` what they weigh: {task: [E names]}.

    Subclasses declare `default_options`; options of `config.expert_options` outside it are refused.
    """

    default_options: dict[str, Any] = {}

    def __init__(self, config: PolyRecConfig, task_names: list[str]) -> None:
        super().__init__()
        what = f"expert layer {config.experts!r}"
        self.options = checked_options(config.expert_options or {}, self.default_options, what)
        # By name, so that the order of tasks in a configuration changes nothing.
        self.task_names = sorted(task_names)
        self.gate_names: dict[str, list[str]] = {}

    def initialise(self) -> None:
        """Set parameters that the default initialisation does not know; called after it."""

    def forward(self, pair_BCD: Tensor, real_BC: Tensor | None = None) -> ExpertOutput:
        """Answer every pair.

        Args:
            pair_BCD: [B, C, D].
            real_BC: bool [B, C], which pairs are real; the others are padding and must not count in a penalty.
        """
        raise NotImplementedError
