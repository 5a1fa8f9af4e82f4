"""Data, models and batches that the tests of teachers share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from model_fixtures import TASKS, fit, synthetic_log, tiny_model

from polyrec.data.collator import PolyRecCollator
from polyrec.distillation.live import LiveTeacher

LEVELS = {"name": "stars", "head": "ordinal", "label": "rating"}


def world(users: int = 30, seed: int = 0, tasks: list[dict[str, Any]] = TASKS, **options: Any):
    """Tables, a processor and its split."""
    tables = synthetic_log(users=users, seed=seed)
    processor, parts = fit(tables, tasks, **options)
    return tables, processor, parts


def live(processor, seed: int = 0, model: dict[str, Any] | None = None, **options: Any) -> LiveTeacher:
    """A random polyrec model as a teacher."""
    return LiveTeacher(tiny_model(processor, seed, **(model or {})), processor, **options)


def batch_of(dataset, windows: list[int] | None = None) -> dict[str, Any]:
    """Some windows of a data set as a batch."""
    chosen = list(range(min(len(dataset), 6))) if windows is None else windows
    return PolyRecCollator()([dataset[i] for i in chosen])


def probabilities(items: torch.Tensor, scores: torch.Tensor, num_items: int, temperature: float) -> np.ndarray:
    """Probability of each item as a list says it, NaN where it only knows "another": [M, N]."""
    found = np.full((len(items), num_items), np.nan)
    for row, (listed, own) in enumerate(zip(items.tolist(), scores.tolist(), strict=True)):
        logits = np.array(own[:-1]) / temperature
        total = np.logaddexp.reduce(np.append(logits, own[-1]))
        for item, logit in zip(listed, logits, strict=True):
            if item:
                found[row, item] = np.exp(logit - total)
    return found
