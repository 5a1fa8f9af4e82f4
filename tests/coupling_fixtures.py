"""Tasks that follow from each other, their labels, and what a coupling reads of them."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import torch
from model_fixtures import random_batch, random_config
from torch import Tensor

from polyrec import PolyRecForRecommendation
from polyrec.modules.coupling.base import CoupledTask, Coupling
from polyrec.modules.heads.base import TaskHead

NAN = float("nan")


def chain(kind: str, names: list[str], **options: Any) -> list[dict[str, Any]]:
    """Binary tasks, each of which follows from the one before it."""
    tasks: list[dict[str, Any]] = [{"name": names[0], "head": "binary"}]
    for parent, name in pairwise(names):
        coupled = {"parent": parent, "coupling": kind, "coupling_options": options}
        tasks.append({"name": name, "head": "binary", **coupled})
    return tasks


def model_of(tasks: list[dict[str, Any]], seed: int = 0, **overrides: Any) -> PolyRecForRecommendation:
    """A tiny model of these tasks, in evaluation mode."""
    torch.manual_seed(seed)
    return PolyRecForRecommendation(random_config(tasks=tasks, **overrides)).eval()


def coupling_of(kind: str, priors: tuple[float, float] | None = None, **options: Any) -> Coupling:
    """The coupling of a task "buy" to its parent "click"."""
    tasks = chain(kind, ["click", "buy"], **options)
    for task, prior in zip(tasks, priors or (), strict=False):
        task["options"] = {"prior": prior}
    return model_of(tasks).couplings["buy"]


def chain_batch(names: list[str], **shape: Any) -> dict[str, Any]:
    """A batch whose labels follow from each other: 0 where the parent is 0; some of each are unknown."""
    batch = random_batch(names, **shape)
    for parent, name in pairwise(names):
        batch["labels"][name][batch["labels"][parent] == 0] *= 0  # an unknown one stays unknown
        batch["sample_weight"] = batch.get("sample_weight", {}) | {name: 1 + batch["candidate_ids"] / 4}
    return batch


@cache
def _head() -> TaskHead:
    return model_of(chain("monotone", ["click", "buy"])).heads["buy"]


def found(
    coupling: Coupling,
    own: Tensor,
    parent: Tensor,
    labels: Tensor,
    parent_labels: Tensor,
    weight: Tensor | None = None,
    hidden: Tensor | None = None,
) -> CoupledTask:
    """What the model would hand to `coupling.loss`."""
    head = _head()
    hidden = torch.zeros(*own.shape, 8) if hidden is None else hidden
    return CoupledTask(head, hidden, own, coupling.logits(own, parent), parent, labels, parent_labels, weight)
