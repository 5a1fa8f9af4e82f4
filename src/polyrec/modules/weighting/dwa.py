"""Weights from how fast each loss falls."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import WEIGHTINGS
from polyrec.modules.weighting.base import LossWeighting, StepContext


@WEIGHTINGS.register("dwa")
class DynamicWeightAverage(LossWeighting):
    r"""L = sum_i w_i L_i with w = T softmax(r / temperature), r_i = L_i(last period) / L_i(the one before).

    Liu, Johns and Davison, 2019, "End-to-End Multi-Task Learning with Attention". A task whose loss falls more slowly
    than others gets more weight. The paper's periods are epochs; here they are `period` optimizer steps, so that the
    method works from the first epoch on. Until two periods are over, and for a task without labels in one of them,
    r_i = 1.

    Options: `temperature` (2 in the paper; the higher, the more equal), `period`.

    Shapes: losses are scalars, weights and state [T].

    Example:
        >>> from polyrec import PolyRecConfig
        >>> tasks = [{"name": "like", "head": "binary"}, {"name": "rating", "head": "regression"}]
        >>> config = PolyRecConfig(tasks=tasks, weighting="dwa", weighting_options={"period": 1})
        >>> weighting = DynamicWeightAverage(config)
        >>> weighting.observe({"like": 1.0, "rating": 1.0})
        >>> weighting.observe({"like": 0.9, "rating": 0.5})
        >>> [round(w, 3) for w in weighting.weights(StepContext()).tolist()]
        [1.1, 0.9]
    """

    default_options: ClassVar[dict[str, Any]] = {"temperature": 2.0, "period": 100}
    total: Tensor
    count: Tensor
    newer: Tensor
    older: Tensor
    steps: Tensor

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__(config)
        if not self.options["temperature"] > 0:
            raise self.option_error("temperature", "it must be > 0")
        if not self.options["period"] >= 1:
            raise self.option_error("period", "it must be >= 1 optimizer steps")
        for name in ("total", "count", "newer", "older"):  # of the running period; means of the two before, 0 = none
            self.register_buffer(name, torch.zeros(len(self.task_names), dtype=torch.float32))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def initialise(self) -> None:
        """Begin the first period."""
        super().initialise()
        for buffer in (self.total, self.count, self.newer, self.older, self.steps):
            init.zeros_(buffer)

    def weights(self, context: StepContext) -> Tensor:
        """The weights of this period."""
        known_T = (self.older > 0) & (self.newer > 0)
        ratio_T = torch.where(known_T, self.newer / torch.where(known_T, self.older, 1.0), 1.0)
        return len(self.task_names) * torch.softmax(ratio_T / self.options["temperature"], dim=0)

    @torch.no_grad()
    def observe(self, losses: dict[str, float], gramian: Tensor | None = None) -> None:
        """Add to the period's means; begin a new one when it is over."""
        value_T, known_T = self.vector(losses)
        self.total += value_T
        self.count += known_T
        self.steps += 1
        if self.steps % self.options["period"] == 0:
            self.older.copy_(self.newer)
            self.newer.copy_(self.total / self.count.clamp(min=1))
            self.total.zero_()
            self.count.zero_()
