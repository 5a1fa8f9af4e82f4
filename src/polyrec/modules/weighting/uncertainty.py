"""Weights from a trained noise level of each task."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import WEIGHTINGS
from polyrec.modules.weighting.base import LossWeighting, StepContext

# Heads whose loss is a squared error, of which a Gaussian likelihood takes half. Both forms lead to the same weights.
GAUSSIAN_HEADS = frozenset({"regression"})


@WEIGHTINGS.register("uncertainty")
class UncertaintyWeighting(LossWeighting):
    r"""L = sum_i c_i exp(-s_i) L_i + s_i / 2 with trained log variances s_i; c_i = 1/2 for squared errors, else 1.

    Kendall, Gal and Cipolla, 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics". A noisy task, whose loss stays high, gets a large variance and so a small weight: at the optimum of s_i
    its weight is 1 / (2 L_i), so that L is the sum of log losses. s_i is free: it may become negative, where a loss is
    small (some implementations cut it at 0, so that no task can weigh more than at the start).

    A task without labels in the step leaves its s_i alone, and a task lowered by `scale` lowers its whole term, so
    that s_i does not grow to undo it. The s_i take part in the optimizer's steps, without weight decay.

    Shapes: losses are scalars, `log_variance` and weights [T].

    Example:
        >>> from polyrec import PolyRecConfig
        >>> tasks = [{"name": "like", "head": "binary"}, {"name": "rating", "head": "regression"}]
        >>> weighting = UncertaintyWeighting(PolyRecConfig(tasks=tasks))
        >>> total, weights = weighting({"like": torch.tensor(0.5), "rating": torch.tensor(2.0)})
        >>> total.item(), weights["rating"].item()
        (1.5, 0.5)
    """

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__(config)
        heads = {t.name: t.head for t in config.task_configs}
        self.factors = [0.5 if heads[name] in GAUSSIAN_HEADS else 1.0 for name in self.task_names]
        self.log_variance = nn.Parameter(torch.zeros(len(self.task_names), dtype=torch.float32))

    def initialise(self) -> None:
        """Start with variance 1."""
        super().initialise()
        init.zeros_(self.log_variance)

    def weights(self, context: StepContext) -> Tensor:
        """c_i exp(-s_i), here with a gradient."""
        return torch.tensor(self.factors, device=self.scale.device) * torch.exp(-self.log_variance)

    def forward(
        self, losses: dict[str, Tensor], context: StepContext | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The formula of the class; s_i / 2 counts by the share of the step that this batch is."""
        context = StepContext() if context is None else context
        loss_T = torch.stack([losses[name] for name in self.task_names])
        weight_T = self.weights(context)
        counts_T = self.scale * context.share
        if context.active is not None:
            counts_T = counts_T * torch.stack([context.active[name] for name in self.task_names])
        total = (weight_T * loss_T + counts_T * self.log_variance / 2).sum()
        return total, dict(zip(self.task_names, weight_T.detach(), strict=True))
