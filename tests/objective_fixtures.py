"""A model with one objective and a batch for it, whatever the objective needs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from model_fixtures import random_batch, random_config
from text_fixtures import text_processor

from polyrec import PolyRecForRecommendation

# Objectives that read texts, and how their backbone is tuned.
READS_TEXTS = {"item_text_alignment": "frozen", "masked_language": "full"}

# What a test needs of an objective to have no chance in its loss but that of dropout.
OPTIONS: dict[str, dict[str, Any]] = {
    "item_text_alignment": {},
    "masked_language": {"share": 1.0},
    "masked_events": {"share": 1.0},
    "contrastive": {"views": "augmented", "prefixes": 50, "crop": 0.0, "mask": 1.0, "reorder": 0.0},
}


def objective_model(kind: str | None, like: str | None = None, **options: Any) -> PolyRecForRecommendation:
    """A model in training mode with one objective, or with none; all items have been met, and have texts if need be.

    Args:
        like: build the model that this objective needs, without it.
    """
    torch.manual_seed(0)
    objectives = {} if kind is None else {kind: options}
    tuning = READS_TEXTS.get(kind or like or "")
    config = random_config(dropout=0.1, objectives=objectives)
    processor = None
    if tuning is not None:
        processor = text_processor(config.num_items)
        config = random_config(dropout=0.1, objectives=objectives, text={**asdict(processor.text), "tuning": tuning})
    model = PolyRecForRecommendation(config)
    model.load_catalog({}, torch.ones(config.num_items))
    if processor is not None:
        model.load_texts(processor)
    return model.train()


def objective_batch(seed: int = 0, **options: Any) -> dict[str, Any]:
    """A batch for `objective_model` without a processor; histories differ in length."""
    batch = random_batch(["next_item", "like", "rating"], seed=seed, **options)
    for row in range(len(batch["item_ids"])):
        batch["item_ids"][row, 2 + row :] = 0
    batch["candidate_positions"] = torch.minimum(
        batch["candidate_positions"], (batch["item_ids"] != 0).sum(1, keepdim=True)
    )
    return batch
