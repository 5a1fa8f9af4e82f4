"""After joint training: train one task further, with bit-equal predictions of the others."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback, set_seed

from polyrec.core.registry import nearest
from polyrec.data.collator import PolyRecCollator
from polyrec.data.splitter import Splits
from polyrec.evaluation import evaluator
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.training.arguments import PolyRecTrainingArguments, for_going_on
from polyrec.training.callbacks import own_parameters, watched_metric
from polyrec.training.cost import CostMeter
from polyrec.training.optim import frozen
from polyrec.training.progress import TrainingLines
from polyrec.training.settings import FinetuneSettings
from polyrec.training.trainer import PolyRecTrainer


@dataclass
class OneTask:
    """Collates like [`PolyRecCollator`] but leaves the labels of other tasks out: they cost time and teach nothing."""

    task: str

    def __call__(self, windows: Any) -> dict[str, Any]:
        """One batch."""
        batch = PolyRecCollator()(windows)
        return batch | {"labels": {self.task: batch["labels"][self.task]}}


class _BestWeights(TrainerCallback):
    """Keeps the trained parameters as they were at the task's best metric, before the first step included."""

    def __init__(self, trained: dict[str, torch.nn.Parameter], task: str, start: dict[str, float]) -> None:
        self.trained, self.task = trained, task
        self.epoch, self.value = 0, watched_metric(task, start)
        self.weights = self._copy()

    def _copy(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.trained.items()}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **unused: Any) -> None:
        """Evaluate an epoch."""
        value = watched_metric(self.task, {k.removeprefix("eval_"): v for k, v in metrics.items()})
        if value is not None and (self.value is None or value < self.value):
            self.epoch, self.value, self.weights = round(state.epoch), value, self._copy()

    @torch.no_grad()
    def on_train_end(self, *args: Any, **unused: Any) -> None:
        """Put the best weights back, before validation weighs what stands beside them."""
        for name, parameter in self.trained.items():
            parameter.copy_(self.weights[name])


def finetune(
    model: PolyRecForRecommendation,
    processor: PolyRecProcessor,
    parts: Splits,
    settings: FinetuneSettings,
    training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Let one task go on; the model is changed in place and keeps its best epoch, the starting point included, beside
    which validation weighs the task's linear terms or trees anew.

    Args:
        processor: that cut the parts: one that was loaded and has split nothing lets training read evidence that has
            counted the very rows, and has nothing to weigh.
        parts: the training set trains, the validation set chooses the epoch and evaluates, the test set stays
            unread.
        training: further arguments of `PolyRecTrainingArguments` (batch sizes, weight decay, ...).

    Returns:
        "trained_parameters", "best_epoch" (0 = it began best), "cpu_seconds", "before" and "after" (metrics of all
        tasks) and "others": {task: whether all its answers are bit-equal}.

    Raises:
        ValueError: an unknown task, or one that other tasks are coupled to: they would change with it.
        RuntimeError: with scope "task", another task predicts differently.
    """
    _check(model, settings)
    with tempfile.TemporaryDirectory() as folder:
        return _finetune(model, processor, parts, settings, _arguments(settings, training or {}, folder))


def _finetune(
    model: PolyRecForRecommendation,
    processor: PolyRecProcessor,
    parts: Splits,
    settings: FinetuneSettings,
    arguments: PolyRecTrainingArguments,
) -> dict[str, Any]:
    set_seed(settings.seed)
    if settings.rank:
        model.add_task_adapter(settings.task, settings.rank)
    model.to(arguments.device)
    trained = _trained(model, settings)
    others = [name for name in model.heads if name != settings.task]
    before, old = _judge(model, parts, arguments)
    best, meter = _BestWeights(trained, settings.task, before), CostMeter()
    with frozen(p for name, p in model.named_parameters() if name not in trained):
        trainer = PolyRecTrainer(
            model,
            arguments,
            parts.train,
            parts.valid,
            data_collator=OneTask(settings.task),  # type: ignore[arg-type]  # it collates for one task alone
            processing_class=processor,
            callbacks=[best, meter],
        )
        trainer.remove_callback(TrainingLines)
        trainer.train()
    model.eval()
    after, new = _judge(model, parts, arguments)
    equal = {name: _equal(old, new, name) for name in others}
    if settings.scope == "task" and not all(equal.values()):
        changed = [name for name, same in equal.items() if not same]
        raise RuntimeError(f"{changed} predict differently after {settings.task!r} alone was trained: please report it")
    return {
        "trained_parameters": sum(p.numel() for p in trained.values()),
        "best_epoch": best.epoch,
        "cpu_seconds": meter.seconds[0],
        "before": before,
        "after": after,
        "others": equal,
    }


def _check(model: PolyRecForRecommendation, settings: FinetuneSettings) -> None:
    if settings.task not in model.heads:
        raise ValueError(f"unknown task {settings.task!r}; {nearest(settings.task, list(model.heads))}")
    children = sorted(child for child, parent in model.parents.items() if parent == settings.task)
    if children and settings.scope == "task":
        raise ValueError(
            f"{settings.task!r} is the parent of {', '.join(map(repr, children))}, which would change with it: "
            "fine-tune the children, or give scope='all' and read in the report what changed"
        )


def _trained(model: PolyRecForRecommendation, settings: FinetuneSettings) -> dict[str, torch.nn.Parameter]:
    if settings.scope == "task":
        return own_parameters(model, settings.task)
    skipped = ("weighting",)  # its weights balance tasks, and there is one
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.startswith(skipped)
    }


def _arguments(settings: FinetuneSettings, training: Mapping[str, Any], folder: str) -> PolyRecTrainingArguments:
    options = for_going_on(training) | {
        "output_dir": folder,
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.epochs,
        "seed": settings.seed,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "metric_for_best_model": None,
    }
    return PolyRecTrainingArguments(**options)


def _judge(
    model: PolyRecForRecommendation, parts: Splits, arguments: PolyRecTrainingArguments
) -> tuple[dict[str, float], evaluator.Predictions]:
    predictions = evaluator.predict(
        model, parts.valid, arguments.per_device_eval_batch_size, arguments.rank_k, arguments.exclude_seen
    )
    return evaluator.evaluate(model, parts.valid, predictions, arguments.rank_k), predictions


def _equal(first: evaluator.Predictions, second: evaluator.Predictions, task: str) -> bool:
    """Whether a task's predictions are bit-equal."""
    if task in first.values:
        return np.array_equal(first.values[task], second.values[task], equal_nan=True)
    one, other = first.rankings[task], second.rankings[task]
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("greater", "ties", "top_ids"))
