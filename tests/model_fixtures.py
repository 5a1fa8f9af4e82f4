"""Small synthetic logs, models and batches for the tests of model, training and evaluation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyrec import PolyRecConfig, PolyRecForRecommendation, PolyRecProcessor, PolyRecTrainingArguments, Splits

PAIR_TASKS = [
    {"name": "like", "head": "binary", "label": "rating >= 4"},
    {"name": "rating", "head": "regression", "weight": 0.5},
]
TASKS = [{"name": "next_item", "head": "retrieval", "options": {"label_smoothing": 0.1}}, *PAIR_TASKS]
COLUMNS = {
    "context": {"surface": "categorical"},
    "item_features": {"genre": "categorical", "tags": "multi", "price": "numeric"},
}
GENRES = ["action", "comedy", "drama"]


def synthetic_log(
    users: int = 40, items: int = 24, events: int = 10, seed: int = 0, keep: float = 1.0
) -> dict[str, dict[str, Any]]:
    """Tables with a rule to learn: people walk through the catalog in order and like one genre.

    Ratings are missing in a fifth of the rows, some events of a person share one time, the last two items never occur.

    Args:
        keep: share of the events that are in the log; below 1, histories differ in length.
    """
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), events)
    step = np.tile(np.arange(events), users)
    item = (random.integers(0, items, users)[user] + step) % (items - 2)
    genre = np.arange(items) % len(GENRES)
    liked = genre[item] == (np.arange(users) % len(GENRES))[user]
    rating = np.where(liked, 5.0, random.integers(1, 4, len(user)))
    rating[random.random(len(user)) < 0.2] = np.nan
    interactions = {
        "user_id": user,
        "item_id": item,
        "timestamp": 1e6 + 1000 * (step - step % 5 // 4) + 7 * user,  # of five events the last two share one time
        "rating": rating,
        "surface": random.choice(["home", "search"], len(user)),
    }
    kept = random.random(len(user)) < keep
    return {
        "interactions": {name: values[kept] for name, values in interactions.items()},
        "items": {
            "item_id": np.arange(items),
            "title": [f"title {i}" for i in range(items)],
            "genre": [GENRES[g] for g in genre],
            "tags": [[GENRES[g], f"tag{i % 4}"][: i % 3] for i, g in enumerate(genre)],
            "price": random.random(items),
        },
        "users": {"user_id": np.arange(users), "age": random.integers(20, 60, users).astype(float)},
    }


def fit(
    log: dict[str, Any] | None = None, tasks: list[dict[str, Any]] = TASKS, **options: Any
) -> tuple[PolyRecProcessor, Splits]:
    """A fitted processor and the split of its log by time."""
    log = synthetic_log() if log is None else log
    processor = PolyRecProcessor.fit(**log, tasks=tasks, **{"columns": COLUMNS, "max_history": 8, **options})
    return processor, processor.split(log["interactions"])


def tiny_config(processor: PolyRecProcessor, **overrides: Any) -> PolyRecConfig:
    """The smallest sensible configuration without any chance in it."""
    defaults = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "candidate_attention_heads": 2,
        "intermediate_size": 16,
        "numeric_bins": 4,
        "dropout": 0.0,
        "item_id_dropout": 0.0,
        "initializer_range": 0.2,
    }
    return processor.model_config(**(defaults | overrides))


def tiny_model(processor: PolyRecProcessor, seed: int = 0, **overrides: Any) -> PolyRecForRecommendation:
    """A tiny model that holds the processor's catalog, in evaluation mode."""
    torch.manual_seed(seed)
    model = PolyRecForRecommendation(tiny_config(processor, **overrides))
    model.load_catalog(processor.items.encoded, torch.from_numpy(processor.item_counts).float())
    if processor.has_training_rows:
        model.load_neighbours(processor)
    return model.eval()


def arguments(folder: str | Path, **overrides: Any) -> PolyRecTrainingArguments:
    """Quiet training arguments on CPU."""
    defaults = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "num_train_epochs": 1, "seed": 3}
    return PolyRecTrainingArguments(output_dir=str(folder), **(defaults | overrides))


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch without what only the evaluation reads."""
    return {k: v for k, v in batch.items() if k != "candidate_rows"}


def clone(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch that can be changed in place."""
    return copy.deepcopy(batch)


def random_config(**overrides: Any) -> PolyRecConfig:
    """A tiny configuration that needs no data."""
    defaults = {
        "tasks": TASKS,
        "num_items": 12,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "candidate_attention_heads": 2,
        "dropout": 0.0,
        "item_id_dropout": 0.0,
        "initializer_range": 0.2,
    }
    return PolyRecConfig(**(defaults | overrides))


def random_batch(tasks: list[str], users: int = 5, keep: slice = slice(None), seed: int = 0) -> dict[str, Any]:
    """A batch for `random_config`: labels are 0, 1 or unknown, which every kind of head understands.

    Args:
        keep: of the people; parts of one batch differ in nothing else.
    """
    random = np.random.default_rng(seed)
    length, asked = 6, 4
    labels = {task: random.choice([0.0, 1.0, np.nan], (users, asked), p=[0.4, 0.4, 0.2]) for task in tasks}
    return {
        "item_ids": torch.from_numpy(random.integers(1, 12, (users, length)))[keep],
        "candidate_ids": torch.from_numpy(random.integers(2, 12, (users, asked)))[keep],
        "candidate_positions": torch.from_numpy(random.integers(0, length + 1, (users, asked)))[keep],
        "labels": {task: torch.from_numpy(values).float()[keep] for task, values in labels.items()},
    }
