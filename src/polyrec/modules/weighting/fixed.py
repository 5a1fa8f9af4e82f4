"""The plain weighted sum of task losses."""

from __future__ import annotations

import torch
from torch import Tensor

from polyrec.core.registry import WEIGHTINGS
from polyrec.modules.weighting.base import LossWeighting, StepContext


@WEIGHTINGS.register("fixed")
class FixedWeighting(LossWeighting):
    r"""L = sum_i lambda_i L_i: the constant `weight` of each task and nothing else.

    Shapes: losses are scalars, weights [T].

    Example:
        >>> from polyrec import PolyRecConfig
        >>> tasks = [{"name": "click", "head": "binary", "weight": 2.0}, {"name": "like", "head": "binary"}]
        >>> weighting = FixedWeighting(PolyRecConfig(tasks=tasks))
        >>> total, _ = weighting(weighting.scaled({"click": torch.tensor(1.0), "like": torch.tensor(0.5)}))
        >>> total.item()
        2.5
    """

    def weights(self, context: StepContext) -> Tensor:
        """Ones."""
        return torch.ones_like(self.scale)
