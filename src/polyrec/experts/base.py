"""The contract of an expert layer: what pair tasks share and what they keep apart."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from polyrec.configuration_polyrec import PolyRecConfig
from polyrec.registry import checked_options


class ExpertLayer(nn.Module):
    """Base of all expert layers: `forward(pair [B, C, D]) -> {task: [B, C, D]}`.

    A layer may return [B, C, M, D]: M members of an ensemble, whose losses and logits are averaged.

    Subclasses declare `default_options`; options of `config.expert_options` outside it are refused.
    """

    default_options: dict[str, Any] = {}

    def __init__(self, config: PolyRecConfig, task_names: list[str]) -> None:
        super().__init__()
        what = f"expert layer {config.experts!r}"
        self.options = checked_options(config.expert_options or {}, self.default_options, what)
        self.task_names = task_names

    def initialise(self) -> None:
        """Set parameters that the default initialisation does not know; called after it."""

    def forward(self, pair_BCD: Tensor) -> dict[str, Tensor]:
        """Return one hidden vector per task and pair."""
        raise NotImplementedError
