"""Callbacks whose state travels with checkpoints: early stopping task by task, and averaging of weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from polyrec.core.modules import exact
from polyrec.core.registry import nearest
from polyrec.evaluation.metrics import LOWER_IS_BETTER
from polyrec.models.multitask import MultiTaskModel
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation

# What tells that a task overfits, the first of these that it has: likelihoods show it before rankings do.
WATCHED_METRICS = ("logloss", "class_logloss", "poisson_deviance", "rmse", "mae", "ndcg")
_FROZEN_BELOW = 0.01  # a task whose scale was lowered under this is frozen


class CheckpointedCallback(TrainerCallback):
    """A callback with tensors for state, saved with each checkpoint and loaded when a run is resumed.

    transformers' own `ExportableState` holds plain values alone and is restored only with
    `restore_callback_states_from_checkpoint`, which also restores the signal to stop.
    """

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """The state."""
        raise NotImplementedError

    def load_tensors(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        """Take a state over; the model holds the weights of the checkpoint."""
        raise NotImplementedError


class TaskEarlyStopping(CheckpointedCallback):
    r"""Early stopping of each task by itself: tasks of one model overfit at different times.

    After each evaluation of the validation set, each task's own log loss, deviance, RMSE, MAE or NDCG (the first that
    it has) is compared with its best. A task that has not improved for `patience` evaluations has its entry of
    `weighting.scale` multiplied by `factor`, and `patience` begins anew; under 0.01 (at once with the default
    factor 0) it is frozen:

    * its loss no longer trains anything;
    * its own parts (head, skip, coupling: `MultiTaskModel.own_parts`) go back to where its metric was
      best, if `restore_towers`, and stay there: no step of the optimizer, momentum or weight decay moves them.

    When all tasks are frozen, training stops. Afterwards `weighting.scale` is 1 again: being frozen belongs to the run,
    not to the model, and a later run starts with all tasks.

    A task may also have a limit: after so many epochs it is frozen where it stands. Of tasks that learn at different
    speeds the quick one then stops before it overfits, without an epoch that first shows that it did.

    Args:
        patience: evaluations without improvement; 0 = none is too many.
        factor: in [0, 1).
        restore_towers: keep a copy of each task's own parts at its best evaluation and go back to it when it freezes.
        prefix: of the metrics to watch; "eval_valid" if `eval_dataset` is a dict with a key "valid".
        limits: {task: epochs}.

    Example:
        >>> callback = TaskEarlyStopping(patience=2)
        >>> callback.frozen
        []
    """

    def __init__(
        self,
        patience: int = 0,
        factor: float = 0.0,
        restore_towers: bool = True,
        prefix: str = "eval",
        limits: Mapping[str, float] | None = None,
    ) -> None:
        if patience < 0:
            raise ValueError(f"patience is {patience}; it must be >= 0 evaluations (0 = never)")
        if not 0 <= factor < 1:
            raise ValueError(f"factor is {factor}; it must be in [0, 1): 0 freezes a task, 0.5 halves its weight")
        self.patience, self.factor, self.restore_towers, self.prefix = patience, factor, restore_towers, prefix
        self.limits = dict(limits or {})
        self.best: dict[str, float] = {}
        self.waited: dict[str, int] = {}
        self.towers: dict[str, dict[str, Tensor]] = {}  # task -> parameters at its best evaluation
        self.frozen: list[str] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **unused: Any) -> None:
        """Forget an earlier run, unless this one goes on with it."""
        for task in self.limits:
            if task not in model.heads:
                raise ValueError(f"limits: unknown task {task!r}; {nearest(task, list(model.heads))}")
        if state.global_step == 0:
            self.best, self.waited, self.towers, self.frozen = {}, {}, {}, []
            model.weighting.scale.fill_(1.0)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: Any = None, metrics: Any = None, **unused: Any
    ) -> None:
        """Evaluate each task; the model holds the weights that were evaluated."""
        for task in sorted(model.heads):
            value = watched_metric(f"{self.prefix}_{task}", metrics or {})
            if task in self.frozen or value is None:
                continue
            if value < self.best.get(task, math.inf):
                self.best[task], self.waited[task] = value, 0
                if self.restore_towers:
                    self._keep(model, task)
                continue
            self.waited[task] += 1
            if self.patience and self.waited[task] >= self.patience:
                self._lower(model, task)
        control.should_training_stop |= len(self.frozen) == len(model.heads)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **unused: Any) -> None:
        """Freeze the tasks whose limit is reached."""
        for task, epochs in self.limits.items():
            if task not in self.frozen and (state.epoch or 0) >= epochs:
                self._keep(model, task)
                self._freeze(model, task)
        control.should_training_stop |= len(self.frozen) == len(model.heads)

    def _lower(self, model: PolyRecForRecommendation, task: str) -> None:
        scale = model.weighting.scale_of(task)
        scale.mul_(self.factor)
        self.waited[task] = 0
        if scale < _FROZEN_BELOW:
            self._freeze(model, task)
            self._restore(model, task)

    def _freeze(self, model: PolyRecForRecommendation, task: str) -> None:
        model.weighting.scale_of(task).zero_()
        self.frozen.append(task)

    def _keep(self, model: PolyRecForRecommendation, task: str) -> None:
        self.towers[task] = {n: p.detach().clone() for n, p in own_parameters(model, task).items()}

    @torch.no_grad()
    def _restore(self, model: PolyRecForRecommendation, task: str) -> None:
        for name, parameter in own_parameters(model, task).items():
            if task in self.towers:
                parameter.copy_(self.towers[task][name])

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **unused: Any) -> None:
        """Restore the weights in training, too, where averaged ones were evaluated."""
        for task in self.frozen:
            self._restore(model, task)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **unused: Any) -> None:
        """Take the gradients (zeros) of frozen parts away, so that momentum and weight decay leave them alone."""
        for task in self.frozen:
            for parameter in own_parameters(model, task).values():
                parameter.grad = None

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **unused: Any) -> None:
        """Give the model back with every task in its right."""
        model.weighting.scale.fill_(1.0)

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Best values, waiting times and towers by task."""
        found = {f"best/{task}": torch.tensor(value, dtype=torch.float64) for task, value in self.best.items()}
        found |= {f"waited/{task}": torch.tensor(value) for task, value in self.waited.items()}
        found |= {f"frozen/{task}": torch.tensor(True) for task in self.frozen}
        for task, tower in self.towers.items():
            found |= {f"tower/{task}/{name}": value for name, value in tower.items()}
        return found

    def load_tensors(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        """Take a state over."""
        self.best, self.waited, self.towers, self.frozen = {}, {}, {}, []
        for key, value in tensors.items():
            kind, task, *rest = key.split("/")
            if kind == "best":
                self.best[task] = value.item()
            elif kind == "waited":
                self.waited[task] = int(value)
            elif kind == "frozen":
                self.frozen.append(task)
            else:
                self.towers.setdefault(task, {})[rest[0]] = value


def watched_metric(name: str, metrics: dict[str, float]) -> float | None:
    """What tells that a task overfits, as a number of which less is better; None if the metrics do not have it.

    Args:
        name: of the task, as the metrics have it (`eval_like`, `like`).

    Example:
        >>> watched_metric("eval_like", {"eval_like_auc": 0.7, "eval_like_logloss": 0.6})
        0.6
    """
    start = f"{name}_"
    own = {key.removeprefix(start).split("@")[0]: value for key, value in metrics.items() if key.startswith(start)}
    for metric in WATCHED_METRICS:
        if metric in own and math.isfinite(own[metric]):
            return own[metric] if metric in LOWER_IS_BETTER else -own[metric]
    return None


def own_parameters(model: MultiTaskModel, task: str) -> dict[str, nn.Parameter]:
    """Parameters of one task alone, {name in the model: parameter}; see `MultiTaskModel.own_parts`."""
    # By identity: a path names parts ("weight", "output"), features and tasks alike, so names cannot tell them apart.
    own = {id(parameter) for part in model.own_parts(task) for parameter in part.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in own}


class WeightAveraging(CheckpointedCallback):
    r"""An exponential moving average of all parameters, a <- d a + (1 - d) p after each step.

    Polyak and Juditsky, 1992, "Acceleration of Stochastic Approximation by Averaging", in its exponential form. d is
    min(`decay`, (1 + t) / (10 + t)) at step t, so that the start is soon forgotten. Evaluations and saved models use
    the average; checkpoints hold the weights in training beside it, so that a resumed run goes on as if nothing was.
    The average is held in single precision at least: in bfloat16, a step by .001 of the way would round to none.

    Args:
        decay: d, below 1; the average looks back about 1 / (1 - d) steps.

    Example:
        >>> averaging, model = WeightAveraging(decay=0.99), nn.Linear(1, 1, bias=False)
        >>> averaging.start(model)
        >>> _ = nn.init.constant_(model.weight, 5.0)
        >>> averaging.update(model)
        >>> with averaging.applied(model):
        ...     print(model.weight.item() < 5.0)
        True
        >>> model.weight.item()
        5.0
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}; it must be between 0 and 1, e.g. 0.999")
        self.decay, self.steps = decay, 0
        self.average: dict[str, Tensor] = {}  # empty outside of training

    def start(self, model: nn.Module) -> None:
        """Begin with the weights as they are."""
        self.average = {name: exact(p).clone() for name, p in model.named_parameters()}
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follow the weights by a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.average.values()), [exact(p) for p in model.parameters()], 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Let the model be the average. What changes its weights inside (a tower put back) changes the average."""
        held = self._enter(model)
        try:
            yield
        finally:
            self._leave(model, held)

    @torch.no_grad()
    def _enter(self, model: nn.Module) -> dict[str, Tensor]:
        """Put the average into the model; returns the weights in training."""
        held = {name: p.detach().clone() for name, p in model.named_parameters() if name in self.average}
        for name, parameter in model.named_parameters():
            if name in self.average:
                parameter.copy_(self.average[name])
        return held

    @torch.no_grad()
    def _leave(self, model: nn.Module, held: dict[str, Tensor]) -> None:
        """Put the weights in training back; what has changed since is the average now, and the rest is not rounded."""
        for name, parameter in model.named_parameters():
            if name in held:
                average = self.average[name]
                same = parameter == average.to(parameter.dtype)
                average.copy_(torch.where(same, average, exact(parameter)))
                parameter.copy_(held[name])

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **unused: Any) -> None:
        """Begin, unless a resumed run has brought an average."""
        if state.global_step == 0 or not self.average:
            self.start(model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **unused: Any) -> None:
        """Follow the weights by a step."""
        self.update(model)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **unused: Any) -> None:
        """Leave the average in the model; if the best checkpoint was loaded, that is an average already."""
        if not (args.load_best_model_at_end and state.best_model_checkpoint):
            self._enter(model)
        self.average = {}

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights in training; the model file of the checkpoint holds the average, rounded to the model's type."""
        found = {f"weights/{name}": p.detach() for name, p in model.named_parameters()}
        rounded = {name for name, p in model.named_parameters() if p.dtype != exact(p).dtype}
        found |= {f"average/{name}": average for name, average in self.average.items() if name in rounded}
        return {**found, "steps": torch.tensor(self.steps)}

    @torch.no_grad()
    def load_tensors(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        """Take the average out of the model and put the weights in training in."""
        self.start(model)
        self.steps = int(tensors["steps"])
        for name, parameter in model.named_parameters():
            if (average := tensors.get(f"average/{name}")) is not None:
                self.average[name].copy_(average)
            parameter.copy_(tensors[f"weights/{name}"])
