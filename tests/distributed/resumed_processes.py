"""A training in pieces, each of any number of processes; what `test_resumed_processes.py` runs on two."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from model_fixtures import arguments, fit, synthetic_log, tiny_model
from transformers import TrainerCallback

from polyrec import PolyRecTrainer
from polyrec.training import large_tables

STEPS, PIECE, WINDOWS = 12, 4, 8
NAMES = {"dense": None, "rowwise": True}  # `rowwise_tables` of a training


class StopsAt(TrainerCallback):
    """Ends a training after so many steps, as if it had been stopped."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **unused):
        control.should_training_stop = state.global_step >= self.step


def train(folder: Path, name: str, stop: int, processes: int, resume: bool) -> list[float]:
    """Train to a step; returns the losses of the steps so far, those of earlier pieces included."""
    held = large_tables.WHOLE_TABLE
    large_tables.WHOLE_TABLE = 4 if NAMES[name] else held
    try:
        processor, splits = fit(synthetic_log(keep=0.5))
        settings = {
            "max_steps": STEPS,
            "per_device_train_batch_size": WINDOWS // processes,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": PIECE,
            "rowwise_tables": NAMES[name],
            "learning_rate": 1e-2,
        }
        trainer = PolyRecTrainer(
            tiny_model(processor),
            arguments(folder / name, **settings),
            splits.train,
            processing_class=processor,
            callbacks=[StopsAt(stop)],
        )
        trainer.train(resume_from_checkpoint=resume or None)
    finally:
        large_tables.WHOLE_TABLE = held
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def main(folder: Path) -> None:
    """The second piece."""
    torch.set_num_threads(1)
    found = {name: train(folder, name, 2 * PIECE, processes=2, resume=True) for name in NAMES}
    (folder / f"findings{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
