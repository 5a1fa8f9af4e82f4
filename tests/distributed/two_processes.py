"""What `test_two_processes.py` runs under torchrun: one process of two, on CPU. Writes its findings to a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from model_fixtures import arguments, fit, synthetic_log, tiny_model
from reduction_fixtures import WINDOWS_PER_STEP, first_step
from safetensors.torch import save_file

from polyrec import PolyRecTrainer


class RecordingTrainer(PolyRecTrainer):
    """Remembers which windows (by their first candidate) this process trained on, epoch by epoch."""

    def training_step(self, model, inputs, *args, **kwargs):
        epoch = int(self.state.epoch or 0)
        self.rows.setdefault(epoch, []).extend(inputs["candidate_rows"][:, 0].tolist())
        return super().training_step(model, inputs, *args, **kwargs)


def main(folder: Path) -> None:
    """Take one step in several cuts, then train, evaluate and save."""
    torch.set_num_threads(1)
    findings = {}
    for name, batch_size, accumulation, strategy in (
        ("32x1", WINDOWS_PER_STEP // 2, 1, "group_by_length"),
        ("8x4", WINDOWS_PER_STEP // 8, 4, "group_by_length"),
        ("random", WINDOWS_PER_STEP // 2, 1, "random"),
    ):
        step = first_step(folder / "steps", batch_size, accumulation, strategy)
        findings[name] = {"log": step.log, "seen_tasks": step.seen_tasks}
        if step.trainer.is_world_process_zero():
            save_file(step.gradients, folder / f"{name}.safetensors")
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
        "rows": trainer.rows,
        "rank": trainer.args.process_index,
        "evaluation": trainer.evaluate(splits.test, metric_key_prefix="test"),
        "weights": sum(p.double().abs().sum().item() for p in trainer.model.parameters()),
        "log_history": trainer.state.log_history,
    }
    (folder / f"findings{trainer.args.process_index}.json").write_text(json.dumps(findings))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
