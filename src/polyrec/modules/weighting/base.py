"""The contract of a loss weighting: how task losses become one objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.modules import KeepsPrecision
from polyrec.core.registry import Part, checked_options
from polyrec.core.renamed import renamed_method


@dataclass
class StepContext:
    """What a weighting may know beside the losses of a batch.

    Args:
        share: of the optimizer step's objective that this batch contributes, 1 / (batches accumulated x ranks). Terms
            of the objective that do not come from labels are multiplied by it.
        active: {task: bool scalar}: whether the task has a label anywhere in the step. Default: all have.
        gramian: [T, T], inner products of the gradients of the tasks' (lambda-weighted) losses at the shared
            representation, tasks sorted by name, equal on all ranks; given in training if the weighting
            `needs_gradients`.
    """

    share: float = 1.0
    active: dict[str, Tensor] | None = None
    gramian: Tensor | None = None


class LossWeighting(KeepsPrecision, Part):
    r"""Base of all weightings, L = sum_i w_i lambda_i L_i: `forward({task: loss}) -> (total, {task: weight})`.

    A weighting lives inside the model, so that what it learns is saved, resumed and free of weight decay. It balances
    losses that the model has scaled by the constant `weight` of each task already (lambda_i L_i, see `scaled`).

    Most methods only say in `weights` what w is. It is the same for every batch of an optimizer step and on every rank,
    so that the cut of the data into batches changes nothing. Therefore methods that read the values of losses read
    those of the step before, which `observe` brings once per optimizer step as means over all batches and ranks. (The
    exception is `aggregation`: each accumulated batch has conflicts of its own.) A method with `needs_gradients` is
    given the inner products of the tasks' gradients at the shared representation. What a weighting knows and learns
    stays in single precision, also in a model of half precision.

    Subclasses declare `default_options`; options of `config.weighting_options` outside it are refused.

    Shapes: losses are scalars; weights, `scale` and all state [T], tasks sorted by name.
    """

    needs_gradients: ClassVar[bool] = False
    default_options: ClassVar[dict[str, Any]] = {}
    scale: Tensor

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__()
        self.kind = config.weighting
        self.options = checked_options(
            config.weighting_options or {}, self.default_options, f"loss weighting {self.kind!r}"
        )
        # By name, so that the order of tasks in a configuration changes nothing.
        self.task_names = sorted(config.task_names)
        self.lambdas = {t.name: t.weight for t in config.task_configs}
        # [T], by which training lowers a task for a while (1) or for good (0); saved, so that a resumed run goes on.
        self.register_buffer("scale", torch.ones(len(self.task_names), dtype=torch.float32))

    def initialise(self) -> None:
        """Set parameters and buffers to their start; called after the default initialisation."""
        init.ones_(self.scale)

    def option_error(self, option: str, rule: str) -> ValueError:
        """The error that an option breaks a rule ("it must be > 0")."""
        return ValueError(f"option {option!r} of loss weighting {self.kind!r} is {self.options[option]!r}; {rule}")

    refuse = renamed_method("refuse", "option_error")

    def scale_of(self, task: str) -> Tensor:
        """The entry of `scale` that belongs to a task, a scalar."""
        return self.scale[self.task_names.index(task)]

    def scaled(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses times the constant weights of their tasks and times `scale`."""
        return {name: self.lambdas[name] * self.scale_of(name) * loss for name, loss in losses.items()}

    def weights(self, context: StepContext) -> Tensor:
        """What each (scaled) loss is multiplied by, [T], constant to autograd."""
        raise NotImplementedError

    def forward(
        self, losses: dict[str, Tensor], context: StepContext | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Combine mean losses of all tasks into one scalar; also returns the weight of each task, detached."""
        loss_T = torch.stack([losses[name] for name in self.task_names])
        weight_T = self.weights(StepContext() if context is None else context).detach().to(loss_T)
        return (weight_T * loss_T).sum(), dict(zip(self.task_names, weight_T, strict=True))

    @torch.no_grad()
    def observe(self, losses: dict[str, float], gramian: Tensor | None = None) -> None:
        """Learn from one optimizer step; called with the same values on every rank.

        Args:
            losses: {task: mean loss over all batches and ranks}, without lambda; tasks without a label in the step are
                absent.
            gramian: [T, T], the sum of the step's Gramians, if the weighting `needs_gradients`.
        """

    @property
    def observes(self) -> bool:
        """Whether `observe` does anything, so that a trainer need not gather losses for nothing."""
        return type(self).observe is not LossWeighting.observe

    def vector(self, losses: dict[str, float]) -> tuple[Tensor, Tensor]:
        """Observed losses [T], 0 where unknown, and which are known, bool [T]."""
        value_T = torch.tensor([losses.get(name, 0.0) for name in self.task_names], device=self.scale.device)
        known_T = torch.tensor([name in losses for name in self.task_names], device=self.scale.device)
        return value_T, known_T


class DrawingWeighting(LossWeighting):
    """Base of weightings that draw at random, once per optimizer step.

    The draw depends on the option `seed` and the number of the step alone: it is the same on every rank and in every
    accumulated batch, repeats itself when a run is resumed, and takes nothing from the random state of the training.
    """

    default_options: ClassVar[dict[str, Any]] = {"seed": 0}
    steps: Tensor

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__(config)
        if not (isinstance(self.options["seed"], int) and self.options["seed"] >= 0):
            raise self.option_error("seed", "it must be an integer >= 0")
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def initialise(self) -> None:
        """Set parameters and buffers to their start."""
        super().initialise()
        init.zeros_(self.steps)

    @torch.no_grad()
    def observe(self, losses: dict[str, float], gramian: Tensor | None = None) -> None:
        """Count the step."""
        self.steps += 1

    def generator(self) -> torch.Generator:
        """A generator (CPU) that begins anew in every optimizer step."""
        return torch.Generator().manual_seed(1_000_003 * self.options["seed"] + int(self.steps))
