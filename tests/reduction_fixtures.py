"""One real training step whose gradients and logs are kept, on data with everything that makes a reduction go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from model_fixtures import TASKS, arguments, fit, synthetic_log, tiny_model
from torch import Tensor
from transformers import TrainerCallback

from polyrec import PolyRecCollator, PolyRecProcessor, PolyRecTrainer
from polyrec.data.sequences import SequenceDataset
from polyrec.distillation.teacher import Teacher

WINDOWS_PER_STEP = 64


@dataclass
class UnevenCollator(PolyRecCollator):
    """Labels of "like" are known for few people, a task without labels is absent, weights differ, some are NaN."""

    seen_tasks: list[list[str]] = field(default_factory=list)

    def __call__(self, windows: Any) -> dict[str, Any]:
        batch = super().__call__(windows)
        rows = batch["candidate_rows"]
        batch["labels"]["like"][rows[:, 0] % 23 != 0] = float("nan")
        batch["labels"] = {task: values for task, values in batch["labels"].items() if not values.isnan().all()}
        weight = torch.where(rows >= 0, 0.25 + rows % 3, float("nan"))
        batch["sample_weight"] = {"rating": weight, "next_item": weight}
        self.seen_tasks.append(sorted(batch["labels"]))
        return batch


class KeepGradients(TrainerCallback):
    """Copies what the optimizer of the first step is about to use."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **unused: Any) -> None:
        if not self.gradients:
            named = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
            self.gradients = {name: gradient.clone() for name, gradient in named.items()}


@dataclass
class Step:
    """What one step left behind: gradients, its log line, and which tasks each batch had labels of."""

    gradients: dict[str, Tensor]
    log: dict[str, float]
    seen_tasks: list[list[str]]
    trainer: PolyRecTrainer


def first_step(
    folder: Path,
    batch_size: int,
    accumulation: int = 1,
    strategy: str = "group_by_length",
    tasks: list[dict[str, Any]] = TASKS,
    teach: Callable[[PolyRecProcessor, SequenceDataset], Teacher] | None = None,
    **model_options: Any,
) -> Step:
    """Train one step with the real trainer. Everything but the cut into batches and processes is the same.

    Args:
        teach: makes the teacher of a student, whose plan is among `model_options`.
    """
    log = synthetic_log(users=80)
    log["items"] = {column: values[:20] for column, values in log["items"].items()}  # some items are unknown
    processor, splits = fit(log, tasks)
    model = tiny_model(processor, **{"expert_options": {"members": 2}, **model_options})
    collator, keep = UnevenCollator(), KeepGradients()
    trainer = PolyRecTrainer(
        model,
        arguments(
            folder,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy=strategy,
            max_steps=1,
            max_grad_norm=0,
            logging_steps=1,
        ),
        train_dataset=splits.train,
        processing_class=processor,
        data_collator=collator,
        teacher=None if teach is None else teach(processor, splits.train),
        callbacks=[keep],
    )
    trainer.train()
    return Step(keep.gradients, trainer.state.log_history[0], collator.seen_tasks, trainer)


def difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Relative difference of two sets of gradients, as one vector."""
    assert one.keys() == two.keys()
    a, b = (torch.cat([g[name].flatten().double() for name in sorted(g)]) for g in (one, two))
    return ((a - b).norm() / b.norm()).item()


def losses(log: dict[str, float]) -> dict[str, float]:
    """The objective and the loss of each task in a log line."""
    return {name: value for name, value in log.items() if name.startswith("loss")}
