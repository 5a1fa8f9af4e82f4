"""What an update did to each task on each slice of time: better, worse, forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation import evaluator
from polyrec.evaluation.metric_names import by_task
from polyrec.evaluation.metrics import LOWER_IS_BETTER
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.training.arguments import PolyRecTrainingArguments
from polyrec.training.update import NEW

Measured = dict[str, dict[str, dict[str, float]]]  # {slice: {task: {metric: value}}}
# These say how lists look, not how good they are; and GAUC is biased where earlier labels are visible.
_NEARLY_NONE = 0.01
_NOT_GUARDED = ("coverage", "novelty", "calibration_error", "interval_coverage", "gauc")


def measure(
    model: PolyRecForRecommendation, held: Mapping[str, SequenceDataset], arguments: PolyRecTrainingArguments
) -> Measured:
    """Metrics of every task on every slice."""
    found: Measured = {}
    for name, dataset in held.items():
        predictions = evaluator.predict(
            model, dataset, arguments.per_device_eval_batch_size, arguments.rank_k, arguments.exclude_seen
        )
        found[name] = by_task(evaluator.evaluate(model, dataset, predictions, arguments.rank_k), model.heads)
    return found


def fall(metric: str, before: float, after: float) -> float:
    """The share of a metric that was lost, negative if it got better.

    An error that was nearly none is taken for 0.01 (nats, or in the label's unit), or each flutter of it would be a
    great loss; where a metric of quality was 0, any gain counts as one of 100%.

    Example:
        >>> fall("auc", 0.8, 0.6), fall("logloss", 0.5, 0.625)
        (0.25..., 0.25)
        >>> fall("logloss", 1e-7, 1e-5), fall("ndcg@10", 0.0, 0.1)
        (0.00099, -1.0)
    """
    if metric in LOWER_IS_BETTER:
        return (after - before) / max(abs(before), _NEARLY_NONE)
    if before == 0:
        return float(-np.sign(after))
    return (before - after) / abs(before)


def falls_beyond(before: Measured, after: Measured, limit: float) -> list[dict[str, Any]]:
    """Metrics of quality that fell by more than `limit`, the worst first."""
    found: list[dict[str, Any]] = []
    for name, tasks in before.items():
        for task, metrics in tasks.items():
            for metric, value in metrics.items():
                if metric.split("@")[0] in _NOT_GUARDED or metric not in after[name].get(task, {}):
                    continue
                now = after[name][task][metric]
                row = {"slice": name, "task": task, "metric": metric, "before": value, "after": now}
                found.append(row | {"fall": fall(metric, value, now)})
    return sorted((row for row in found if row["fall"] > limit), key=lambda row: -row["fall"])


def forgetting(model: PolyRecForRecommendation, before: Measured, after: Measured) -> dict[str, dict[str, Any]]:
    """By task, what its main metric lost on the old slice where it lost most: {task: {slice, metric, fall}}."""
    found: dict[str, dict[str, Any]] = {}
    for task, head in model.heads.items():
        for name in before:
            own, now = before[name].get(task, {}), after[name].get(task, {})
            main = next((m for m in own if m.split("@")[0] == head.metrics[0].split("@")[0]), None)
            if name == NEW or main is None or main not in now:
                continue
            lost = fall(main, own[main], now[main])
            if np.isfinite(lost) and (task not in found or lost > found[task]["fall"]):
                found[task] = {"slice": name, "metric": main, "fall": lost}
    return found


def format_changes(before: Measured, after: Measured) -> str:
    """A table: slice, task, metric, before, after, change for the better (+) or worse (-) in percent."""
    lines = [f"{'slice':<12}{'task':<14}{'metric':<20}{'before':>10}{'after':>10}{'better by':>11}"]
    for name, tasks in before.items():
        for task, metrics in tasks.items():
            for metric, value in metrics.items():
                now = after[name].get(task, {}).get(metric)
                if now is None or metric.split("@")[0] in _NOT_GUARDED:
                    continue
                better = -100 * fall(metric, value, now)
                lines.append(f"{name:<12}{task:<14}{metric:<20}{value:>10.4f}{now:>10.4f}{better:>+10.2f}%")
    return "\n".join(lines)
