"""What `test_distilling_two_processes.py` runs: one of two processes that teach one student, on CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from model_fixtures import arguments, fit, synthetic_log, tiny_model
from reduction_fixtures import WINDOWS_PER_STEP, first_step
from safetensors.torch import save_file

from polyrec import PolyRecTrainer
from polyrec.distillation.live import LiveTeacher
from polyrec.distillation.table import TableTeacher

MMOE = {"experts": "mmoe", "expert_options": {"num_experts": 2}}
TASKS = {
    "next_item": {"temperature": 2.0, "top_k": 5, "alpha": 0.4},
    "like": {"temperature": 2.0, "alpha": 0.7, "hard_share": 0.5},
    "rating": {"alpha": 0.5},
}
LISTS = {"top_k": {"next_item": 5}, "temperature": {"next_item": 2.0}}


class Reticent(LiveTeacher):
    """Answers a third of the windows about `like` and most about the rest, so that no two shares hold as many."""

    def score(self, batch):
        found = super().score(batch)
        rows = batch["candidate_rows"]
        found["teacher_logits"]["like"][rows[:, 0] % 3 != 0] = float("nan")
        found["teacher_logits"]["rating"][rows % 5 == 0] = float("nan")
        found["teacher_scores"]["next_item"][rows % 4 == 1] = float("nan")
        return found


def live(processor, train, **options: Any) -> LiveTeacher:
    """A larger model with random weights; the same on every process."""
    return Reticent(tiny_model(processor, seed=7, hidden_size=16, dropout=0.5, **MMOE), processor, **LISTS, **options)


def knowing_all(processor, train) -> LiveTeacher:
    """With states and gates."""
    return live(processor, train, states=True, gates=True)


def stored(processor, train) -> TableTeacher:
    """What it answers, looked up."""
    teacher = live(processor, train)
    teacher.prepare(train, processor)
    return TableTeacher.of(teacher, train, processor)


PLAN = {"tasks": TASKS}
ALL = {**PLAN, "states": {"teacher_width": 16, "weight": 0.2}, "gates": 0.3}
# name -> arguments of `first_step`
STEPS = {
    "32x1": {"batch_size": WINDOWS_PER_STEP // 2, "teach": live, "distillation": PLAN},
    "8x4": {"batch_size": WINDOWS_PER_STEP // 8, "accumulation": 4, "teach": live, "distillation": PLAN},
    "stored": {"batch_size": WINDOWS_PER_STEP // 4, "accumulation": 2, "teach": stored, "distillation": PLAN},
    "all": {"batch_size": WINDOWS_PER_STEP // 4, "accumulation": 2, "teach": knowing_all, "distillation": ALL, **MMOE},
    "apart": {
        "batch_size": WINDOWS_PER_STEP // 2,
        "teach": live,
        "distillation": {**PLAN, "separate": True},
        "weighting": "uncertainty",
    },
}


def whole_training(folder: Path, batch_size: int) -> PolyRecTrainer:
    """Two epochs with a falling alpha, whose last batches are not full."""
    processor, splits = fit(synthetic_log(keep=0.5))
    assert len(splits.train) % 8
    tasks = {name: {**own, "hard_share": None, "schedule": "linear", "warmup": 0.3} for name, own in TASKS.items()}
    options = {"num_train_epochs": 2, "per_device_train_batch_size": batch_size, "optim": "sgd", "learning_rate": 0.2}
    trainer = PolyRecTrainer(
        tiny_model(processor, distillation={"tasks": tasks}),
        arguments(folder, logging_steps=1, **options),
        train_dataset=splits.train,
        processing_class=processor,
        teacher=live(processor, splits.train),
    )
    trainer.train()
    return trainer


def main(folder: Path) -> None:
    """Take one step in several cuts, then train."""
    torch.set_num_threads(1)
    findings = {}
    for name, options in STEPS.items():
        step = first_step(folder / "steps", **options)
        findings[name] = step.log
        if step.trainer.is_world_process_zero():
            save_file(step.gradients, folder / f"{name}.safetensors")
    trained = whole_training(folder / "whole", batch_size=4)
    findings |= {"log_history": trained.state.log_history}
    if trained.is_world_process_zero():
        save_file(dict(trained.model.named_parameters()), folder / "whole.safetensors")
    (folder / f"findings{trained.args.process_index}.json").write_text(json.dumps(findings))
