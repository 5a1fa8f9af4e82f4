"""The geometric mean of task losses."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import WEIGHTINGS
from polyrec.modules.weighting.base import LossWeighting, StepContext

_SMALLEST = 1e-8  # a loss of 0 would get an infinite weight


@WEIGHTINGS.register("geometric")
class GeometricWeighting(LossWeighting):
    r"""L = (prod_i L_i)^(1 / T), by its gradient: L = sum_i w_i L_i with w_i = (prod_j L_j)^(1 / T) / (T L_i).

    Chennupati et al., 2019, "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task
    Learning". Every task improves by the same factor, whatever its unit. The losses inside w are those of the optimizer
    step before, over all its batches and ranks; until a task has been seen its weight is 1 / T. Losses must be above 0.

    Shapes: losses are scalars, weights and state [T].

    Example:
        >>> from polyrec import PolyRecConfig
        >>> tasks = [{"name": "like", "head": "binary"}, {"name": "rating", "head": "regression"}]
        >>> weighting = GeometricWeighting(PolyRecConfig(tasks=tasks, weighting="geometric"))
        >>> weighting.observe({"like": 0.5, "rating": 2.0})
        >>> total, weights = weighting({"like": torch.tensor(0.5), "rating": torch.tensor(2.0)})
        >>> total.item(), weights["like"].item()
        (1.0, 1.0)
    """

    last: Tensor

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__(config)
        self.register_buffer("last", torch.zeros(len(self.task_names), dtype=torch.float32))  # 0 = not seen yet

    def initialise(self) -> None:
        """Nothing has been seen."""
        super().initialise()
        init.zeros_(self.last)

    def weights(self, context: StepContext) -> Tensor:
        """The weights of this step."""
        seen_T = self.last > 0
        log_T = torch.where(seen_T, self.last, 1.0).log()
        mean = log_T.sum() / seen_T.sum().clamp(min=1)
        return torch.where(seen_T, torch.exp(mean - log_T), 1.0) / len(self.task_names)

    @torch.no_grad()
    def observe(self, losses: dict[str, float], gramian: Tensor | None = None) -> None:
        """Remember the losses."""
        value_T, known_T = self.vector(losses)
        self.last.copy_(torch.where(known_T, value_T.clamp(min=_SMALLEST), self.last))
