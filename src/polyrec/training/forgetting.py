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
from polyrec.training.paired_changes import Paired
from polyrec.training.update import NEW

Measured = dict[str, dict[str, dict[str, float]]]  # {slice: {task: {metric: value}}}
# These say how lists look, not how good they are; and GAUC is biased where earlier labels are visible.
_NEARLY_NONE = 0.01
_NOT_GUARDED = ("coverage", "novelty", "calibration_error", "interval_coverage", "gauc")


def predict(
    model: PolyRecForRecommendation, held: Mapping[str, SequenceDataset], arguments: PolyRecTrainingArguments
) -> dict[str, evaluator.Predictions]:
    """Predictions of every slice."""
    how = arguments.per_device_eval_batch_size, arguments.rank_k, arguments.exclude_seen
    return {name: evaluator.predict(model, dataset, *how) for name, dataset in held.items()}


def metrics_of(
    model: PolyRecForRecommendation,
    held: Mapping[str, SequenceDataset],
    predictions: Mapping[str, evaluator.Predictions],
    arguments: PolyRecTrainingArguments,
) -> Measured:
    """Metrics of every task on every slice, of the model's predictions."""
    return {
        name: by_task(evaluator.evaluate(model, dataset, predictions[name], arguments.rank_k), model.heads)
        for name, dataset in held.items()
    }


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


def falls_beyond(before: Measured, after: Measured, limit: float, paired: Paired | None = None) -> list[dict[str, Any]]:
    """Metrics of quality that fell by more than `limit`, the worst first.

    Args:
        paired: leave out what may be chance: falls whose interval holds a gain. One without an interval counts. None:
            leave out nothing.
    """
    found: list[dict[str, Any]] = []
    for name, tasks in before.items():
        for task, metrics in tasks.items():
            for metric, value in metrics.items():
                if metric.split("@")[0] in _NOT_GUARDED or metric not in after[name].get(task, {}):
                    continue
                now = after[name][task][metric]
                row = {"slice": name, "task": task, "metric": metric, "before": value, "after": now}
                found.append(row | {"fall": fall(metric, value, now)})
    if paired is not None:
        found = [row for row in found if _is_certain(row, paired)]
    return sorted((row for row in found if row["fall"] > limit), key=lambda row: -row["fall"])


def _is_certain(row: Mapping[str, Any], paired: Paired) -> bool:
    effect = paired[row["slice"]].get(row["task"], {}).get(row["metric"])
    return effect is None or not effect["high"] >= 0  # NaN where no resample has a value


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


def format_changes(before: Measured, after: Measured, paired: Paired | None = None) -> str:
    """A table: slice, task, metric, before, after, change for the better (+) or worse (-) in percent.

    Args:
        paired: adds the interval of each change.
    """
    lines = [f"{'slice':<12}{'task':<14}{'metric':<20}{'before':>10}{'after':>10}{'better by':>11}"]
    if paired is not None:
        lines[0] += f"{'interval':>20}"
    for name, tasks in before.items():
        for task, metrics in tasks.items():
            for metric, value in metrics.items():
                now = after[name].get(task, {}).get(metric)
                if now is None or metric.split("@")[0] in _NOT_GUARDED:
                    continue
                better = -100 * fall(metric, value, now)
                line = f"{name:<12}{task:<14}{metric:<20}{value:>10.4f}{now:>10.4f}{better:>+10.2f}%"
                effect = None if paired is None else paired[name].get(task, {}).get(metric)
                if effect is not None:
                    low, high = 100 * effect["relative_low"], 100 * effect["relative_high"]
                    line += f"{'-' if np.isnan(low) else f'{low:+.2f} .. {high:+.2f}%':>20}"
                lines.append(line)
    return "\n".join(lines)
