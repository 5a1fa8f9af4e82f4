"""The contract of a loss weighting: how task losses become one objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from polyrec.configuration_polyrec import PolyRecConfig
from polyrec.registry import checked_options


@dataclass
class StepContext:
    """What a weighting may know beside the losses of a batch.

    Args:
        share: of the optimizer step's objective that this batch contributes, 1 / (batches accumulated x ranks). Terms
            of the objective that do not come from labels are multiplied by it.
        active: {task: bool scalar}: whether the task has a label anywhere in the step. Default: all have.
        gramian: [T, T], inner products of the gradients of the tasks' (lambda-weighted) losses at the shared
            representation, in the order of the losses, equal on all ranks; given if the weighting `needs_gradients`.
    """

    share: float = 1.0
    active: dict[str, Tensor] | None = None
    gramian: Tensor | None = None


class LossWeighting(nn.Module):
    """Base of all weightings: `forward({task: mean loss}) -> (total, {task: weight})`.

    A weighting lives inside the model, so that what it learns is saved, resumed and free of weight decay. It balances
    losses that the model has scaled by the constant `weight` of each task already (lambda_i L_i, see `scaled`).

    Two more hooks: `observe` is called once per optimizer step with the step's mean losses over all ranks (methods
    with a memory update it there, so it is the same on every rank), and a method with `needs_gradients` is given the
    inner products of the tasks' gradients at the shared representation.

    Subclasses declare `default_options`; options of `config.weighting_options` outside it are refused.
    """

    needs_gradients: ClassVar[bool] = False
    default_options: ClassVar[dict[str, Any]] = {}
    scale: Tensor

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__()
        what = f"loss weighting {config.weighting!r}"
        self.options = checked_options(config.weighting_options or {}, self.default_options, what)
        # By name, so that the order of tasks in a configuration changes nothing.
        self.task_names = sorted(config.task_names)
        self.lambdas = {t.name: t.weight for t in config.task_configs}
        # [T], by which training lowers a task for a while (1) or for good (0); saved, so that a resumed run goes on.
        self.register_buffer("scale", torch.ones(len(self.task_names)))

    def initialise(self) -> None:
        """Set parameters and buffers to their start; called after the default initialisation."""
        init.ones_(self.scale)

    def scaled(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses times the constant weights of their tasks and times `scale`."""
        return {n: self.lambdas[n] * self.scale[self.task_names.index(n)] * loss for n, loss in losses.items()}

    def forward(
        self, losses: dict[str, Tensor], context: StepContext | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Combine mean losses of the tasks into one scalar; also returns the weight of each task, detached."""
        raise NotImplementedError

    @torch.no_grad()
    def observe(self, losses: dict[str, float]) -> None:
        """Learn from the mean losses of one optimizer step, the same on every rank."""
