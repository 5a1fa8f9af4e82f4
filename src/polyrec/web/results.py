"""What the page shows of one request, and what changed since the one before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor

# {item: (rank, {task: prediction})} of a list, to compare the next one with; empty = nothing to compare with.
Snapshot = dict[Any, tuple[int, dict[str, float]]]


@dataclass(frozen=True)
class Prediction:
    """What a task predicts for an item.

    Args:
        task: its name.
        value: in the task's unit.
        share: how long its bar is, 0 to 1; None = the value has no scale, so no bar.
        change: since the request before; None = nothing to compare with.
    """

    task: str
    value: float
    share: float | None = None
    change: float | None = None


@dataclass(frozen=True)
class Recommendation:
    """One place of the list.

    Args:
        moved: "" (nothing to compare with), "new", "=", or an arrow and the number of places.
        about: attributes of the item as text.
        cover: source of its picture; None = it has none.
    """

    rank: int
    item: Any
    title: str
    moved: str
    about: str
    reason: str
    predictions: Sequence[Prediction]
    cover: str | None = None


def move(before: Snapshot, item: Any, rank: int) -> str:
    """How an item moved since the list before.

    Example:
        >>> before = {"a": (1, {}), "b": (4, {})}
        >>> [move(before, item, 2) for item in ("a", "b", "c")], move({}, "a", 2)
        (['↓ 1', '↑ 2', 'new'], '')
    """
    if not before:
        return ""
    if item not in before:
        return "new"
    moved = before[item][0] - rank
    return "=" if moved == 0 else f"{'↑' if moved > 0 else '↓'} {abs(moved)}"


class BarScales:
    """How long the bars of predictions are.

    A probability fills its share of the bar; a number its share of the largest training label; the score of a retrieval
    task is compared with that of the best item of the list, e.g. a half = half as probable. Numbers without such a
    scale (the number of a class, negative labels) have no bar.
    """

    def __init__(self, model: PolyRecForRecommendation, processor: PolyRecProcessor) -> None:
        self._kinds = {name: head.output_kind for name, head in model.heads.items()}
        self._labels: Mapping[str, Mapping[str, Any]] = processor.label_summary

    def share(self, task: str, value: float, best: float | None = None) -> float | None:
        """Length of one bar, 0 to 1, or None.

        Args:
            best: the highest score of the list, of a retrieval task.
        """
        kind, labels = self._kinds[task], self._labels.get(task, {})
        if kind == "bernoulli":
            found = value
        elif kind == "catalog":
            if best is None:
                return None
            found = math.exp(min(value - best, 0.0))
        elif kind == "categorical" or labels.get("minimum", -1.0) < 0 or labels.get("maximum", 0.0) <= 0:
            return None
        else:
            found = value / labels["maximum"]
        return min(max(found, 0.0), 1.0)
