"""How well a model predicts with little data: items never seen in training, users with few earlier events."""

from __future__ import annotations

import numpy as np

from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation import evaluator
from polyrec.evaluation.metric_names import by_task
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.modules.encoders.item import FIRST_ITEM

HISTORIES = (0, 1, 2, 5)
NEW_ITEMS = "new_items"


def cold_start_groups(
    dataset: SequenceDataset, item_counts: np.ndarray, histories: tuple[int, ...] = HISTORIES
) -> dict[str, np.ndarray]:
    """Groups of candidates for `evaluate(groups=...)`, {name: bool [C]}; those without a candidate are left out.

    Args:
        item_counts: [N], training events of each item (`model.item_encoder.counts`).
        histories: numbers of earlier events, those of the prior history included, that a candidate may see.

    Returns:
        "new_items": of the catalog, but without a training event; "history_0", "history_1", ...: of users with exactly
        so many earlier events.
    """
    seen = visible_events(dataset)
    item = dataset.log.item[dataset.candidates.event]
    groups = {NEW_ITEMS: (item >= FIRST_ITEM) & (item_counts[item] == 0)}
    groups |= {f"history_{events}": seen == events for events in histories}
    return {name: rows for name, rows in groups.items() if rows.any()}


def visible_events(dataset: SequenceDataset) -> np.ndarray:
    """How many earlier events each candidate may see, those of the prior history included, int64 [C]."""
    candidates, log = dataset.candidates, dataset.log
    seen = candidates.position.copy()
    if log.prior_history is not None:
        seen += np.diff(log.prior_history.offsets)[log.user[candidates.event]]
    return seen


def cold_start(
    model: PolyRecForRecommendation, dataset: SequenceDataset, predictions: evaluator.Predictions, k: int = 10
) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics of each group, {task: {group: {"rows": candidates with a label, metric: value}}}."""
    groups = cold_start_groups(dataset, model.item_encoder.counts.cpu().numpy())
    labels = {name: ~np.isnan(column) for name, column in zip(dataset.task_names, dataset.labels().T, strict=True)}
    result: dict[str, dict[str, dict[str, float]]] = {}
    for group, rows in groups.items():
        held = {task: int((rows & labels[task]).sum()) for task in dataset.task_names if task in model.heads}
        found = evaluator.evaluate(model, dataset, predictions, k, groups={group: rows})
        for task, metrics in by_task(found, model.heads, group).items():
            result.setdefault(task, {})[group] = {"rows": held[task], **metrics}
    return result


def format_cold_start(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """A text table per task: groups by metrics."""
    lines = ["cold start (new_items: no training event; history_N: the user has N earlier events):"] if found else []
    for task, groups in found.items():
        known = (n for metrics in groups.values() for n, value in metrics.items() if np.isfinite(value))
        names = list(dict.fromkeys(known))
        lines.append(f"{task:<14}" + "".join(f"{name:>{_width(name)}}" for name in names))
        for group, metrics in groups.items():
            cells = [_cell(name, metrics.get(name, np.nan)) for name in names]
            lines.append(f"  {group:<12}" + "".join(cells))
    return "\n".join(lines)


def _cell(name: str, value: float) -> str:
    if not np.isfinite(value):
        return f"{'-':>{_width(name)}}"
    return f"{value:>{_width(name)},.0f}" if name == "rows" else f"{value:>{_width(name)}.4f}"


def _width(name: str) -> int:
    return max(11, len(name) + 2)
