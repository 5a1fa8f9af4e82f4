"""A model with one objective and a batch for it, whatever the objective needs."""

from __future__ import annotations

from typing import Any

import torch
from model_fixtures import random_batch, random_config, tiny_config

from polyrec import PolyRecForRecommendation, PolyRecProcessor

# What a test needs of an objective to have no chance in its loss but that of dropout.
OPTIONS: dict[str, dict[str, Any]] = {
    "masked_events": {"share": 1.0},
    "contrastive": {"views": "augmented", "prefixes": 50, "crop": 0.0, "mask": 1.0, "reorder": 0.0},
}


def objective_model(kind: str | None, processor: PolyRecProcessor | None = None, **options: Any):
    """A model in training mode with one objective, or with none; all items have been met.

    Args:
        processor: of the items' texts, for objectives that read them.
    """
    torch.manual_seed(0)
    objectives = {} if kind is None else {kind: options}
    if processor is None:
        config = random_config(dropout=0.1, objectives=objectives)
        model = PolyRecForRecommendation(config)
        model.load_catalog({}, torch.ones(config.num_items))
    else:
        config = tiny_config(processor, dropout=0.1, objectives=objectives)
        model = PolyRecForRecommendation(config)
        model.load_catalog(processor.items.encoded, torch.ones(config.num_items))
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
