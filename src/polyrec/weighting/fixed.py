"""The plain weighted sum of task losses."""

from __future__ import annotations

from torch import Tensor

from polyrec.configuration_polyrec import PolyRecConfig
from polyrec.registry import WEIGHTINGS
from polyrec.weighting.base import LossWeighting


@WEIGHTINGS.register("fixed")
class FixedWeighting(LossWeighting):
    r"""L = sum_i lambda_i L_i with the constant `weight` of each task.

    Example:
        >>> import torch
        >>> tasks = [{"name": "click", "head": "binary", "weight": 2.0}, {"name": "like", "head": "binary"}]
        >>> config = PolyRecConfig(tasks=tasks)
        >>> total, weights = FixedWeighting(config)({"click": torch.tensor(1.0), "like": torch.tensor(0.5)})
        >>> total.item(), weights
        (2.5, {'click': 2.0, 'like': 1.0})
    """

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__(config)
        self.weights = {t.name: t.weight for t in config.task_configs}

    def forward(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Combine mean losses of the tasks into one scalar."""
        total = sum(self.weights[name] * loss for name, loss in losses.items())
        return total, {name: self.weights[name] for name in losses}
