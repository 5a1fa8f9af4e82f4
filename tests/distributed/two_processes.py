"""What `test_two_processes.py` runs: one process of two, on CPU. Writes its findings to a folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from model_fixtures import TASKS, arguments, fit, synthetic_log, tiny_model
from reduction_fixtures import WINDOWS_PER_STEP, first_step
from safetensors.torch import save_file
from text_fixtures import tiny_bert

from polyrec import PolyRecTrainer

LOVE = {"name": "love", "head": "binary", "label": "rating >= 5", "parent": "like", "coupling": "esmm"}
# name -> arguments of `first_step`
STEPS = {
    "32x1": {"batch_size": WINDOWS_PER_STEP // 2},
    "8x4": {"batch_size": WINDOWS_PER_STEP // 8, "accumulation": 4},
    "random": {"batch_size": WINDOWS_PER_STEP // 2, "strategy": "random"},
    "ple": {
        "batch_size": WINDOWS_PER_STEP // 4,
        "accumulation": 2,
        "tasks": [*TASKS, LOVE],
        "experts": "ple",
        "expert_options": {},
        "weighting": "uncertainty",
    },
    "upgrad": {
        "batch_size": WINDOWS_PER_STEP // 2,
        "weighting": "aggregation",
        "weighting_options": {"method": "upgrad"},
    },
}


class RecordingTrainer(PolyRecTrainer):
    """Remembers which windows (by their first candidate) taught this process something, epoch by epoch."""

    def training_step(self, model, inputs, *args, **kwargs):
        epoch = int(self.state.epoch or 0)
        known = torch.stack([~values.isnan() for values in inputs["labels"].values()]).any(0).any(1)
        self.rows.setdefault(epoch, []).extend(inputs["candidate_rows"][known, 0].tolist())
        return super().training_step(model, inputs, *args, **kwargs)


def whole_training(folder: Path, batch_size: int) -> PolyRecTrainer:
    """Two epochs whose last batches are not full; Adam would blow rounding up where gradients are nearly zero."""
    processor, splits = fit(synthetic_log(keep=0.5))
    assert len(splits.train) % 8
    options = {"num_train_epochs": 2, "per_device_train_batch_size": batch_size, "optim": "sgd", "learning_rate": 0.2}
    trainer = PolyRecTrainer(
        tiny_model(processor), arguments(folder, **options), train_dataset=splits.train, processing_class=processor
    )
    trainer.train()
    return trainer


def tuned_texts(folder: Path) -> dict[str, list]:
    """A training that tunes a text encoder on a few items of each batch: what it read, and the tables it held."""
    processor, splits = fit(text={"model": str(tiny_bert()), "template": "{title} {genre}"})
    model = tiny_model(processor, text={"tuning": "full", "live_items": 5}, dropout=0.3)
    settings = {"max_steps": 3, "per_device_train_batch_size": 4, "backbone_learning_rate": 1e-3}
    trainer = PolyRecTrainer(
        model, arguments(folder, **settings), train_dataset=splits.train, processing_class=processor
    )
    text, read = model.item_encoder.text, []
    start, store = text.vectors.tolist(), text._store

    def record(rows, vectors):
        read.append([rows.tolist(), vectors.tolist()])
        store(rows, vectors)

    text._store = record
    trainer.train()
    return {"start": start, "read": read, "end": text.vectors.tolist()}


def main(folder: Path) -> None:
    """Take one step in several cuts, then train, evaluate and save."""
    torch.set_num_threads(1)
    tiny_bert()  # once processes know each other, only the first one saves models
    findings = {}
    for name, options in STEPS.items():
        step = first_step(folder / "steps", **options)
        findings[name] = {"log": step.log, "seen_tasks": step.seen_tasks}
        if step.trainer.is_world_process_zero():
            save_file(step.gradients, folder / f"{name}.safetensors")
    trained = whole_training(folder / "whole", batch_size=4)
    if trained.is_world_process_zero():
        save_file(dict(trained.model.named_parameters()), folder / "whole.safetensors")
    processor, splits = fit(synthetic_log(keep=0.5))  # batches of different lengths draw different random numbers
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "eval_strategy": "epoch", "logging_steps": 2}
    # Dropout makes the random states of the processes drift apart, which must not reach the order of the data.
    trainer = RecordingTrainer(
        tiny_model(processor, dropout=0.3),
        arguments(folder / "run", **options),
        train_dataset=splits.train,
        eval_dataset=splits.valid,
        processing_class=processor,
    )
    trainer.rows = {}
    trainer.train()
    trainer.save_model(folder / "model")
    findings |= {
        "texts": tuned_texts(folder / "texts"),
        "rows": trainer.rows,
        "rank": trainer.args.process_index,
        "evaluation": trainer.evaluate(splits.test, metric_key_prefix="test"),
        "weights": sum(p.double().abs().sum().item() for p in trainer.model.parameters()),
        "log_history": trainer.state.log_history,
    }
    (folder / f"findings{trainer.args.process_index}.json").write_text(json.dumps(findings))
