"""What heads may know of the training labels before they learn: base rates, spread, shares of classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from polyrec.core.schema import TaskConfig
from polyrec.data.scaling import grouped_quantiles

_MOST_CLASSES = 10_000


def summarise(task: TaskConfig, labels: np.ndarray, context: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Plain values for JSON about one task.

    Args:
        labels: of the training rows, [R], NaN = unknown; at least one is known.
        context: encoded context columns of the same rows, {name: [R] or [R, K]}.

    Returns:
        "mean", "std", "minimum" and "maximum"; of classes also "class_counts", labels of each class from minimum to
        maximum; of watch times "group_quantiles", quantiles of the label in each group of durations.

    Example:
        >>> found = summarise(TaskConfig("stars", "ordinal"), np.array([1.0, 3.0, 3.0, np.nan]), {})
        >>> found["maximum"], found["class_counts"]
        (3.0, [1, 0, 2])
    """
    known = labels[~np.isnan(labels)].astype(np.float64)
    found: dict[str, Any] = {
        "mean": float(known.mean()),
        "std": float(known.std()),
        "minimum": float(known.min()),
        "maximum": float(known.max()),
    }
    if task.head in ("multiclass", "ordinal"):
        if found["maximum"] - found["minimum"] >= _MOST_CLASSES:
            raise ValueError(
                f"labels of {task.head} task {task.name!r} run from {found['minimum']:g} to {found['maximum']:g}: more "
                f'than {_MOST_CLASSES} classes; number the classes densely, or use head="regression"'
            )
        found["class_counts"] = np.bincount((known - known.min()).astype(np.int64)).tolist()
    if task.head == "watch_time":
        name = task.options.get("duration", "duration")
        if name not in context or context[name].dtype.kind != "f":
            raise ValueError(
                f"option 'duration' of watch_time task {task.name!r} is {name!r}: it must name a numeric context "
                f"column, e.g. columns=Columns(context={{{name!r}: 'numeric'}})"
            )
        found["group_quantiles"] = grouped_quantiles(labels, context[name]).tolist()
    return found
