"""One optimizer step of the real trainer on fixed data; writes the gradients. Run by test_reduction.py, also by torchrun."""

import os
import sys
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from model_fixtures import fit, synthetic_log, tiny_config
from transformers import TrainerCallback

from polyrec import PolyRecForRecommendation, PolyRecTrainer, PolyRecTrainingArguments

WINDOWS = 64


class Capture(TrainerCallback):
    """Keeps the gradients of the first step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **unused):
        self.gradients = {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters()}


class Part(torch.utils.data.Dataset):
    """The first windows of a data set; the first quarter of them knows nothing of one task."""

    def __init__(self, data, windows):
        self.data, self.windows = data, windows

    def __len__(self):
        return self.windows

    def __getitem__(self, index):
        window = self.data[index]
        if index < self.windows // 4:
            window["labels"]["like"] = np.full_like(window["labels"]["like"], np.nan)
        return window


def gradients(folder, batch_size, accumulation):
    """Train one step and return {parameter: gradient}."""
    torch.manual_seed(0)
    processor, parts = fit(synthetic_log(people=100))
    model = PolyRecForRecommendation(tiny_config(processor))
    arguments = PolyRecTrainingArguments(
        str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
        max_steps=1,
        max_grad_norm=0,
        use_cpu=True,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
        disable_tqdm=True,
        save_strategy="no",
    )
    capture = Capture()
    trainer = PolyRecTrainer(
        model, arguments, train_dataset=Part(parts.train, WINDOWS), processing_class=processor, callbacks=[capture]
    )
    trainer.train()
    return capture.gradients if trainer.is_world_process_zero() else None


if __name__ == "__main__":
    found = gradients(Path(sys.argv[1]).parent, int(sys.argv[2]), int(sys.argv[3]))
    if found is not None:
        safetensors.torch.save_file(found, sys.argv[1])
