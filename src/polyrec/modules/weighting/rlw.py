"""Weights drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor

from polyrec.core.registry import WEIGHTINGS
from polyrec.modules.weighting.base import DrawingWeighting, StepContext


@WEIGHTINGS.register("rlw")
class RandomWeighting(DrawingWeighting):
    r"""L = sum_i w_i L_i with w = T softmax(z), z_i ~ N(0, 1) drawn anew for every optimizer step.

    Lin et al., 2022, "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning": a method
    that does not beat it knows nothing about the tasks. The factor T (number of tasks) is ours: it makes the mean
    weight 1, so that learning rate and gradient clipping mean the same as with `fixed`.

    Options: `seed`.

    Shapes: losses are scalars, weights [T].

    Example:
        >>> from polyrec import PolyRecConfig
        >>> tasks = [{"name": "like", "head": "binary"}, {"name": "rating", "head": "regression"}]
        >>> weighting = RandomWeighting(PolyRecConfig(tasks=tasks, weighting="rlw"))
        >>> first = weighting.weights(StepContext())
        >>> round(first.sum().item(), 4)
        2.0
        >>> torch.equal(first, weighting.weights(StepContext()))  # another batch of the same step
        True
        >>> weighting.observe({})
        >>> torch.equal(first, weighting.weights(StepContext()))
        False
    """

    def weights(self, context: StepContext) -> Tensor:
        """The weights of this step."""
        tasks = len(self.task_names)
        return (tasks * torch.softmax(torch.randn(tasks, generator=self.generator()), dim=0)).to(self.scale)
