"""How fast something scores: every system the same requests of the same users, in one run on one machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyrec.data.collator import PolyRecCollator
from polyrec.data.sequences import SequenceDataset
from polyrec.distillation.teacher import Teacher

_PER_CANDIDATE = (
    "candidate_ids", "candidate_positions", "candidate_times", "candidate_query", "candidate_rows", "query_items",
    "candidate_trending",
)  # fmt: skip


def one_example_each(
    dataset: SequenceDataset, list_tasks: Sequence[str], users: int = 256, batch_size: int = 64
) -> list[dict[str, Any]]:
    """Batches of one request for each of some users: all pair tasks about one item, and one list per task.

    Args:
        list_tasks: tasks whose list is made, whatever the labels say.
        users: at most so many.
    """
    dataset, windows, seen = dataset.fixed(), [], set()
    user = dataset.user_codes()
    for i in range(len(dataset)):
        window = dataset[i]
        if len(window["candidate_rows"]) and (who := user[window["candidate_rows"][0]]) not in seen:
            seen.add(who)
            windows.append(window)
        if len(windows) == users:
            break
    groups = [windows[at : at + batch_size] for at in range(0, len(windows), batch_size)]
    return [_first_example(PolyRecCollator()(group), list_tasks) for group in groups]


def _first_example(batch: dict[str, Any], list_tasks: Sequence[str]) -> dict[str, Any]:
    """The batch with the first candidate of each window, whose lists are made."""

    def first(value: Tensor) -> Tensor:
        return value[:, :1]

    found = {name: first(value) if name in _PER_CANDIDATE else value for name, value in batch.items()}
    for kind in ("candidate_features", "labels"):
        found[kind] = {name: first(value) for name, value in batch[kind].items()}
    for name in list_tasks:
        found["labels"][name] = torch.ones_like(found["labels"][name])
    return found


def users_per_second(
    systems: Mapping[str, Teacher], batches: Sequence[dict[str, Any]], rounds: int = 3
) -> dict[str, float]:
    """Users scored per second; the best of some rounds, in which the systems take turns.

    Args:
        systems: each prepared for the data set that the batches come from, or in need of no preparation.
    """
    users = sum(len(batch["item_ids"]) for batch in batches)
    best = dict.fromkeys(systems, float("inf"))
    for number in range(rounds + 1):
        for name, system in systems.items():
            seconds = _seconds(system, batches)
            if number:  # the first round warms up
                best[name] = min(best[name], seconds)
    return {name: users / seconds for name, seconds in best.items()}


def latency(system: Teacher, batch: dict[str, Any], rounds: int = 15) -> float:
    """Milliseconds of one batch, the median of some rounds."""
    found = [_seconds(system, [batch]) for _ in range(rounds + 3)]
    return 1000 * statistics.median(found[3:])  # the first ones warm up


def _seconds(system: Teacher, batches: Sequence[dict[str, Any]]) -> float:
    begin = time.perf_counter()
    for batch in batches:
        system.score(batch)
    return time.perf_counter() - begin
