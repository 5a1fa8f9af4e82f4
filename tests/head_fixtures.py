"""Heads of every kind by themselves."""

from __future__ import annotations

from typing import Any

import torch
from model_fixtures import random_config
from text_fixtures import tiny_bert

from polyrec import FeatureConfig, PolyRecConfig
from polyrec.core.registry import HEADS
from polyrec.modules.heads.base import TaskHead

NAN = float("nan")
FEATURES = [FeatureConfig("length", "candidate", "numeric")]
OPTIONS: dict[str, dict] = {  # {head: options without which it cannot be built}
    "multiclass": {"num_classes": 3},
    "ordinal": {"minimum": 0, "maximum": 2},
    "search": {"personal": True},
    "watch_time": {"duration": "length", "group_quantiles": [[0.0, 1.0, 2.0], [0.0, 3.0, 9.0], [0.0, 1.0, 9.0]]},
}


def config_of(kind: str, members: int = 1, **options) -> PolyRecConfig:
    """A configuration whose only task is of this kind, with the options and inputs it cannot be built without."""
    tasks = [{"name": "task", "head": kind, "options": {**OPTIONS.get(kind, {}), **options}}]
    return random_config(tasks=tasks, features=FEATURES, expert_options={"members": members}, **inputs_of(kind))


def inputs_of(kind: str) -> dict[str, Any]:
    """What a configuration with such a head has beside the task."""
    return {"text": {"model": str(tiny_bert())}, "queries": True} if kind == "search" else {}


def with_queries(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch in which people asked one of two questions each time."""
    asked = torch.arange(batch["candidate_ids"].numel()).view_as(batch["candidate_ids"])
    return batch | {
        "query_tokens": torch.tensor([[2, 9, 3, 0], [2, 7, 8, 3]]),
        "query_mask": torch.tensor([[True, True, True, False], [True] * 4]),
        "candidate_query": asked % 2,
        "query_items": batch["candidate_ids"].roll(1, dims=1),
    }


def head_of(kind: str, **options) -> TaskHead:
    """An initialised head of a task named "task"."""
    torch.manual_seed(0)
    config = config_of(kind, **options)
    head = HEADS.get(kind)(config.task_configs[0], config)
    head.initialise()
    return head
