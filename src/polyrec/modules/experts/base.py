"""The contract of an expert layer: what pair tasks share and what they keep apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import Part, checked_options


@dataclass
class ExpertOutput:
    """The output of an expert layer.

    Args:
        hidden: {task: [B, C, D]}, or [B, C, M, D]: M members of an ensemble, whose losses and logits are averaged.
        gates: {task: [B, C, E]}, how much each task takes of each of its E sources, which `gate_names` names; empty for
            a layer without gates.
        penalty: scalar to be added to the objective (load balancing), a mean over real pairs; None = nothing.
    """

    hidden: dict[str, Tensor]
    gates: dict[str, Tensor] = field(default_factory=dict)
    penalty: Tensor | None = None


class ExpertLayer(nn.Module, Part):
    """Base of all expert layers: `forward(pair [B, C, D]) -> ExpertOutput`, one hidden vector per task and pair.

    A layer with gates says in `gate_names` what they weigh: {task: [E names]}.

    Subclasses declare `default_options`; options of `config.expert_options` outside it are refused. Where the default
    is a whole number, the option must be one, too, and >= 1.
    """

    default_options: dict[str, Any] = {}

    def __init__(self, config: PolyRecConfig, task_names: list[str]) -> None:
        super().__init__()
        what = f"expert layer {config.experts!r}"
        self.options = checked_options(config.expert_options or {}, self.default_options, what)
        for name, default in self.default_options.items():
            value = self.options[name]
            if type(default) is int and not (type(value) is int and value >= 1):
                raise ValueError(f"option {name!r} of {what} is {value!r}; it must be a whole number >= 1")
        # By name, so that the order of tasks in a configuration changes nothing.
        self.task_names = sorted(task_names)
        self.gate_names: dict[str, list[str]] = {}

    def inner_width(self, config: PolyRecConfig) -> int:
        """Hidden units of a network whose inner width is `expansion` times D."""
        inner = round(self.options["expansion"] * config.pair_width)
        if inner < 1:
            raise ValueError(
                f"option 'expansion' of expert layer {config.experts!r} is {self.options['expansion']}, which leaves "
                f"no hidden unit at width {config.pair_width}: choose one >= {1 / config.pair_width:.2g}"
            )
        return inner

    def initialise(self) -> None:
        """Set parameters that the default initialisation does not know; called after it."""

    def by_name(self, values_TPX: Tensor, pair_BCD: Tensor) -> dict[str, Tensor]:
        """Values of all tasks and flattened pairs, [T, B * C, X], as {task: [B, C, X]}."""
        return dict(zip(self.task_names, values_TPX.unflatten(1, pair_BCD.shape[:2]), strict=True))

    def forward(self, pair_BCD: Tensor, real_BC: Tensor | None = None) -> ExpertOutput:
        """Compute the hidden vectors of every pair.

        Args:
            pair_BCD: [B, C, D].
            real_BC: bool [B, C], which pairs are real; the others are padding and must not count in a penalty.
        """
        raise NotImplementedError
