"""What `test_weightings_two_processes.py` runs: one process of two, on CPU."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from model_fixtures import arguments, fit, synthetic_log, tiny_model
from reduction_fixtures import WINDOWS_PER_STEP, first_step
from safetensors.torch import save_file

from polyrec import PolyRecTrainer

# name -> options of the model; the gradient of one step is compared with that of one process
STEPS = {
    "uncertainty": {"weighting": "uncertainty"},
    "mgda": {"weighting": "aggregation", "weighting_options": {"method": "mgda"}},
    "gradnorm": {"weighting": "gradnorm"},
    "famo": {"weighting": "famo"},
}
# the same, trained for two epochs with dropout, so that the random states of the processes drift apart
RUNS = {
    "pcgrad": {"weighting": "aggregation", "weighting_options": {"method": "pcgrad"}},
    "rlw": {"weighting": "rlw"},
    "gradnorm": {"weighting": "gradnorm"},
}


def main(folder: Path) -> None:
    """Take one step per weighting, then train with some of them."""
    torch.set_num_threads(1)
    findings = {}
    for name, options in STEPS.items():
        step = first_step(folder / "steps", WINDOWS_PER_STEP // 2, **options)
        state = {n: value.tolist() for n, value in step.trainer.model.weighting.state_dict().items()}
        findings[name] = {"log": step.log, "state": state}
        if step.trainer.is_world_process_zero():
            save_file(step.gradients, folder / f"{name}.safetensors")
    processor, splits = fit(synthetic_log(keep=0.5))
    for name, options in RUNS.items():
        trainer = PolyRecTrainer(
            tiny_model(processor, dropout=0.3, **options),
            arguments(
                folder / "run",
                num_train_epochs=2,
                per_device_train_batch_size=4,
                logging_steps=1,
                eval_strategy="epoch",
                task_patience=1,
                ema_decay=0.5,
            ),
            train_dataset=splits.train,
            eval_dataset=splits.valid,
            processing_class=processor,
        )
        trainer.train()
        findings[f"run of {name}"] = {
            "log": [line for line in trainer.state.log_history if "loss" in line]
            if trainer.args.process_index == 0
            else [],
            "state": {n: value.tolist() for n, value in trainer.model.weighting.state_dict().items()},
            "parameters": sum(p.double().abs().sum().item() for p in trainer.model.parameters()),
        }
    rank = torch.distributed.get_rank()
    (folder / f"findings{rank}.json").write_text(json.dumps(findings))
