"""Weights that make all tasks improve at an equal rate, without gradients per task."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import WEIGHTINGS
from polyrec.modules.weighting.base import LossWeighting, StepContext

_SMALLEST = 1e-8  # of the published code
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # of Adam


@WEIGHTINGS.register("famo")
class FAMOWeighting(LossWeighting):
    r"""L = sum_i w_i L_i with w_i = (z_i / L_i) / sum_j (z_j / L_j), z = softmax(xi).

    Liu et al., 2023, "FAMO: Fast Adaptive Multitask Optimization". The direction is that of sum_i z_i log L_i.
    After a step xi descends J^T (log L_before - log L_after), J the Jacobian of the softmax, so that tasks that
    improved least get more weight; by Adam with decay, as in the published code.

    Ours: the published code computes the losses a second time after each step, on the same batch. Here "before" and
    "after" are two consecutive optimizer steps, means over all batches and ranks, and the L_i inside w are the last
    observed ones. It costs nothing and is the same on all ranks, but the change of losses has the noise of the batches.

    Options: `lr` of xi, `decay` (pulls xi to 0, equal weights).

    Shapes: losses are scalars, weights and state [T].

    Example:
        >>> from polyrec import PolyRecConfig
        >>> tasks = [{"name": "like", "head": "binary"}, {"name": "rating", "head": "regression"}]
        >>> weighting = FAMOWeighting(PolyRecConfig(tasks=tasks, weighting="famo"))
        >>> weighting.observe({"like": 1.0, "rating": 1.0})
        >>> weighting.observe({"like": 0.9, "rating": 0.5})
        >>> bool(weighting.logits[0] > weighting.logits[1])  # "like" improved less
        True
    """

    default_options: ClassVar[dict[str, Any]] = {"lr": 0.025, "decay": 0.01}
    logits: Tensor
    mean: Tensor
    square: Tensor
    last: Tensor
    steps: Tensor

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__(config)
        for option in ("lr", "decay"):
            if not self.options[option] >= 0:
                raise self.option_error(option, "it must be >= 0")
        for name in ("logits", "mean", "square", "last"):  # xi, Adam's moments, last losses (0 = not seen yet)
            self.register_buffer(name, torch.zeros(len(self.task_names), dtype=torch.float32))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def initialise(self) -> None:
        """Equal weights; nothing has been seen."""
        super().initialise()
        for buffer in (self.logits, self.mean, self.square, self.last, self.steps):
            init.zeros_(buffer)

    def weights(self, context: StepContext) -> Tensor:
        """The weights of this step; a task not seen yet counts as one with loss 1."""
        ratio_T = torch.softmax(self.logits, dim=0) / torch.where(self.last > 0, self.last, 1.0)
        return ratio_T / ratio_T.sum()

    @torch.no_grad()
    def observe(self, losses: dict[str, float], gramian: Tensor | None = None) -> None:
        """Descend by what the tasks gained since the last step."""
        value_T, known_T = self.vector(losses)
        value_T = torch.where(known_T, value_T.clamp(min=_SMALLEST), self.last)
        both_T = known_T & (self.last > 0)
        if both_T.any():
            gain_T = torch.where(both_T, torch.where(both_T, self.last / value_T, 1.0).log(), 0.0)
            z_T = torch.softmax(self.logits, dim=0)
            self._adam(z_T * (gain_T - (z_T * gain_T).sum()))
        self.last.copy_(value_T)

    def _adam(self, gradient_T: Tensor) -> None:
        gradient_T = gradient_T + self.options["decay"] * self.logits
        self.steps += 1
        self.mean.lerp_(gradient_T, 1 - _BETA1)
        self.square.mul_(_BETA2).addcmul_(gradient_T, gradient_T, value=1 - _BETA2)
        mean_T, square_T = self.mean / (1 - _BETA1**self.steps), self.square / (1 - _BETA2**self.steps)
        self.logits -= self.options["lr"] * mean_T / (square_T.sqrt() + _EPSILON)
