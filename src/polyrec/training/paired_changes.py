"""How sure is a change that an update made? Paired intervals over users, both models on the same draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from polyrec.core.schema import TaskConfig
from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation import comparison
from polyrec.evaluation.comparison_runs import ComparisonRun, Cost
from polyrec.evaluation.evaluator import Predictions

_BEFORE, _AFTER = "before", "after"
_RESAMPLES = 500

Paired = dict[str, dict[str, dict[str, dict[str, Any]]]]  # {slice: {task: {metric: a `comparison.Effect`}}}


def paired_changes(
    tasks: Sequence[TaskConfig],
    held: Mapping[str, SequenceDataset],
    before: Mapping[str, Predictions],
    after: Mapping[str, Predictions],
    k: int,
    level: float,
    seed: int = 0,
) -> Paired:
    """What the model after an update gains over that before it, by slice, task and metric; positive = better.

    Args:
        held: {slice: examples} that neither was trained on.
        before, after: {slice: predictions}.
        k: cut-off of ranking metrics.
        level: of the intervals, e.g. 0.95.
    """
    found: Paired = {}
    names = tuple(task.name for task in tasks)
    for name, dataset in held.items():
        runs = [
            ComparisonRun(variant, names, 0, "", Cost(0.0, 0.0, 0.0, 0.0), {}, predictions[name])
            for variant, predictions in ((_BEFORE, before), (_AFTER, after))
        ]
        found[name] = {}
        for task in tasks:
            if not _has_rows(task.name, runs[0].predictions, dataset):
                continue
            measured = comparison.measure(task, runs, (_BEFORE, _AFTER), dataset, k, _RESAMPLES, seed)
            found[name][task.name] = {
                metric: asdict(measured.effect(metric, _AFTER, _BEFORE, level)) for metric in measured.samples
            }
    return found


def _has_rows(task: str, predictions: Predictions, dataset: SequenceDataset) -> bool:
    if task in predictions.rankings:
        return len(predictions.rankings[task].rows) > 0
    return task in predictions.values and not np.isnan(dataset.labels()[:, dataset.task_names.index(task)]).all()
