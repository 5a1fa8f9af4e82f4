"""What teachers of pair tasks share that are no polyrec models: features to read, and units of their outputs.

Letters: M candidates, F features, K numbers of an output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from polyrec.core.registry import nearest
from polyrec.core.schema import TaskConfig
from polyrec.data.sequences import SequenceDataset
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor

Features = Callable[[SequenceDataset, np.ndarray], np.ndarray]
_SMALLEST = 1e-7  # a probability is kept this far from 0 and 1


def canonical_probabilities(p: np.ndarray, task: TaskConfig) -> np.ndarray:
    """Probabilities in the units in which a task has canonical logits.

    Example:
        >>> canonical_probabilities(np.array([0.5, 1.0]), TaskConfig("like", "binary")).round(1).tolist()
        [0.0, 16.1]
        >>> canonical_probabilities(np.array([[0.2, 0.4, 0.4]]), TaskConfig("stars", "ordinal")).round(3).tolist()
        [[1.386, 0.0]]
    """
    p = np.clip(p, _SMALLEST, 1 - _SMALLEST)
    if task.head == "binary":
        yes = p if p.ndim == 1 else p[:, -1]
        return np.log(yes) - np.log1p(-yes)
    if task.head == "multiclass":
        return np.log(p)
    if task.head == "ordinal":
        above = np.cumsum(p[:, ::-1], axis=1)[:, ::-1] - p
        return np.log(np.maximum(above[:, :-1], _SMALLEST)) - np.log(p[:, :-1])
    raise ValueError(f"task {task.name!r} (head {task.head!r}) has no probabilities: give units='number' or 'log odds'")


def output_width(task: TaskConfig, summary: Mapping[str, Mapping[str, Any]]) -> tuple[int, ...]:
    """Shape of canonical logits: () or (K,)."""
    if task.head == "multiclass":
        return (classes_of(task, summary)[1],)
    if task.head == "ordinal":
        return (classes_of(task, summary)[1] - 1,)
    return (len(levels_of(task)),) if task.head == "quantile" else ()


def classes_of(task: TaskConfig, summary: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
    """The first class and the number of classes."""
    own = summary[task.name]
    if task.head == "multiclass":
        return 0, int(task.options.get("numclasses_of") or own["maximum"] + 1)
    low = int(task.options.get("minimum", own["minimum"]))
    return low, int(task.options.get("maximum", own["maximum"])) - low + 1


def levels_of(task: TaskConfig) -> list[float]:
    """Quantiles that a task asks for."""
    return list(task.options.get("quantiles", (0.1, 0.5, 0.9)))  # the head's default


def pair_task(processor: PolyRecProcessor, name: str) -> TaskConfig:
    """A pair task by its name."""
    found = {t.name: t for t in processor.tasks if not t.ranks_catalog}
    if name not in found:
        raise ValueError(f"unknown pair task {name!r}; {nearest(name, list(found))}")
    return found[name]
