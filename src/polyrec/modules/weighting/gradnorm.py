"""Weights that make the gradients of all tasks equally long, longer for tasks that lag behind."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import WEIGHTINGS
from polyrec.modules.weighting.base import LossWeighting, StepContext

_SMALLEST = 0.01  # weight of a task; below 0 the task would climb its loss


@WEIGHTINGS.register("gradnorm")
class GradNormWeighting(LossWeighting):
    r"""L = sum_i w_i L_i, where w descends sum_i |G_i - mean(G) r_i^alpha|, G_i = w_i ||grad L_i||, sum_i w_i = T.

    Chen et al., 2018, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks".
    r_i = (L_i / L_i(first step)) / mean of the same over tasks is the relative rate at which a task lags behind;
    mean(G) r_i^alpha counts as a constant. The gradients are those at the shared representation, where the tasks part
    (at the first embedding table, as some do it, most of a gradient is that of rare items).

    After each optimizer step w takes a step of `lr` along the sign-like gradient, with the norms divided by their mean
    (which moves no optimum and makes `lr` mean the same for every data set), and is scaled to sum to T. w is state of
    the weighting itself, no parameter of the model's optimizer. A task without labels in the step keeps its weight.

    Options: `alpha` (the higher, the more a task that lags behind is pushed; 0 = equal gradients), `lr`.

    Shapes: losses are scalars, weights and state [T], Gramian [T, T].

    Example:
        >>> from polyrec import PolyRecConfig
        >>> tasks = [{"name": "like", "head": "binary"}, {"name": "rating", "head": "regression"}]
        >>> weighting = GradNormWeighting(PolyRecConfig(tasks=tasks, weighting="gradnorm"))
        >>> weighting.observe({"like": 1.0, "rating": 1.0}, gramian=torch.tensor([[1.0, 0.0], [0.0, 9.0]]))
        >>> [round(w, 3) for w in weighting.weights(StepContext()).tolist()]  # the longer gradient loses weight
        [1.025, 0.975]
    """

    needs_gradients = True
    default_options: ClassVar[dict[str, Any]] = {"alpha": 1.5, "lr": 0.025}
    weight: Tensor
    first: Tensor

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__(config)
        for option in ("alpha", "lr"):
            if not self.options[option] >= 0:
                raise self.option_error(option, "it must be >= 0")
        self.register_buffer("weight", torch.ones(len(self.task_names), dtype=torch.float32))
        self.register_buffer("first", torch.zeros(len(self.task_names), dtype=torch.float32))  # 0 = not seen yet

    def initialise(self) -> None:
        """Equal weights; nothing has been seen."""
        super().initialise()
        init.ones_(self.weight)
        init.zeros_(self.first)

    def weights(self, context: StepContext) -> Tensor:
        """The weights of this step."""
        return self.weight.clone()

    @torch.no_grad()
    def observe(self, losses: dict[str, float], gramian: Tensor | None = None) -> None:
        """Take a step of w."""
        if gramian is None:
            raise ValueError("loss weighting 'gradnorm' needs the Gramian of the step: pass observe(losses, gramian)")
        value_T, known_T = self.vector(losses)
        known_T = known_T & (value_T > 0)
        self.first.copy_(torch.where(known_T & (self.first == 0), value_T, self.first))
        norm_T = gramian.diagonal().clamp(min=0).sqrt()
        at = (known_T & (norm_T > 0)).nonzero().squeeze(-1)
        if len(at) < 2:
            return
        norm_A = norm_T[at] / norm_T[at].mean()
        rate_A = value_T[at] / self.first[at]
        long_A = self.weight[at] * norm_A
        target_A = long_A.mean() * (rate_A / rate_A.mean()) ** self.options["alpha"]
        self.weight[at] -= self.options["lr"] * torch.sign(long_A - target_A) * norm_A
        self.weight.clamp_(min=_SMALLEST)
        self.weight.mul_(len(self.weight) / self.weight.sum())
