"""The model beside simple baselines, with intervals over users, as a dict and as a readable table.

Nobody should mistake a bad model for a good one: each task stands beside the baselines that fit its data (see
`polyrec.evaluation.baselines`), fitted on the same training rows, tuned on the same validation rows and evaluated on
the same examples. Where one of them is better than the model, a mark and a line say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from polyrec.core.lines import folded
from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation import evaluator
from polyrec.evaluation.baselines.base import CatalogTask
from polyrec.evaluation.baselines.pairs import PairBaselines
from polyrec.evaluation.baselines.table import Systems, misfits, ranked_baselines
from polyrec.evaluation.figures import list_figures, pair_figures
from polyrec.evaluation.metric_names import (
    MODEL,
    as_shown,
    better_baselines,
    chosen_text,
    figures,
    lower_is_better,
    of_tasks,
)
from polyrec.evaluation.reliability import predicts_means, reliability
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.modules.encoders.item import FIRST_ITEM

LEFT_OUT = "baselines_left_out"  # of the model's entry: {baseline: why it is not in the table}


def compare_with_baselines(
    model: PolyRecForRecommendation,
    train: SequenceDataset,
    test: SequenceDataset,
    predictions: evaluator.Predictions,
    k: int | Sequence[int] = 10,
    exclude_seen: bool | None = None,
    resamples: int = 200,
    valid: SequenceDataset | None = None,
    released: np.ndarray | None = None,
) -> dict[str, Systems]:
    """{task: {system: {metric: value, "interval": {metric: [low, high]}, "chosen": settings}}}; 95%, over users.

    The first metric of each system has an interval, and so have the model's further ones that are quickly resampled.

    Args:
        train, test: data sets of one log; baselines are fitted on `train`.
        predictions: the model's predictions for `test`. A task without a row, or without a known label, is left out.
        k: cut-offs of lists, which are at least as long; baselines are chosen by NDCG at the largest.
        exclude_seen: as it was for `predictions`; the baselines' lists leave out the same.
        valid: its rows, and no others, choose the baselines' settings. None: their defaults.
        released: when items appeared by the catalog, see `baselines.table.released_at`.
    """
    report: dict[str, Systems] = {}
    ks = [k] if isinstance(k, int) else list(k)
    for task in test.task_names:
        if task in predictions.rankings:
            number, what = model.config.num_items - FIRST_ITEM, evaluator.lists_leave_out(model, task, exclude_seen)
            data = CatalogTask(train, task, number, what, released)
            report[task] = _retrieval(data, valid, test, predictions.rankings[task], ks, resamples)
        elif not np.isnan(test.labels_by_task()[task]).all():
            report[task] = _pairs(model.heads[task].metrics, train, valid, test, predictions, task, resamples)
    return {task: systems for task, systems in report.items() if systems}


def _pairs(
    metrics: tuple[str, ...],
    train: SequenceDataset,
    valid: SequenceDataset | None,
    test: SequenceDataset,
    predictions: evaluator.Predictions,
    task: str,
    resamples: int,
) -> Systems:
    own = predictions.values[task], predictions.details.get(task)
    result = {MODEL: pair_figures(metrics, test, task, *own, every=True, resamples=resamples)}
    baselines = PairBaselines(metrics, task, train, valid, test)
    for name, values in baselines.values.items():
        result[name] = pair_figures(metrics, test, task, values, resamples=resamples) | baselines.facts(name)
    result[MODEL][LEFT_OUT] = baselines.left_out
    if predicts_means(metrics):
        result[MODEL]["calibration"] = reliability(test.labels_by_task()[task], own[0])
    return result


def _retrieval(
    data: CatalogTask,
    valid: SequenceDataset | None,
    test: SequenceDataset,
    found: evaluator.Ranking,
    ks: Sequence[int],
    resamples: int,
) -> Systems:
    if not len(found.rows):
        return {}
    users, number = test.user_codes()[found.rows], data.num_items
    result = {MODEL: list_figures(found, users, ks, number, every=True, resamples=resamples)}
    for name, lists, choice in ranked_baselines(data, valid, test, found.rows, max(ks)):
        result[name] = {**list_figures(lists, users, ks, number, resamples=resamples), "chosen": choice.to_dict()}
    result[MODEL][LEFT_OUT] = misfits(data)
    return result


def format_report(report: Mapping[str, Systems]) -> str:
    """A text table per task; * marks the best value of each metric, ! a value of the model that a baseline beats.

    Under it stand the baselines that are better than the model, what validation chose, and what could not be fitted.
    """
    lines = []
    for task, systems in of_tasks(report).items():
        names = [name for name in figures(next(iter(systems.values()))) if _is_known(name, systems)]
        better = better_baselines(systems)
        width = max(12, *map(len, systems))
        lines.append(f"{task:<{width + 2}}" + "".join(f"{n:>19}" for n in names))
        for system, values in systems.items():
            cells = []
            for name in names:
                column = [s.get(name, np.nan) for s in systems.values()]
                best = np.nanmin(column) if lower_is_better(name) else np.nanmax(column)
                value = values.get(name, np.nan)  # a baseline predicts one number: it has no class probabilities
                mark = "*" if as_shown(value) == as_shown(best) else "!" if system == MODEL and name in better else " "
                cells.append((f"{value:>18.4f}" if np.isfinite(value) else f"{'-':>18}") + mark)
            lines.append(f"  {system:<{width}}" + "".join(cells))
        lines += [folded(f"  {line}", 4) for line in _notes(systems, better)]
        lines.append("")
    if lines:
        lines += [f"* best value of the metric; ! a baseline is better than {MODEL}", ""]
    return "\n".join(lines)


def _notes(systems: Systems, better: Mapping[str, str]) -> Iterator[str]:
    intervals = systems.get(MODEL, {}).get("interval", {}).items()
    if intervals:
        known = ", ".join(f"{name} {low:.4f} .. {high:.4f}" for name, (low, high) in intervals)
        yield f"{MODEL}, 95% intervals over users: {known}"
    if better:
        yield f"! {MODEL} is not first: " + ", ".join(
            f"{metric} ({system} {systems[system][metric]:.4f})" for metric, system in better.items()
        )
    chosen = [f"{name} {text}" for name, values in systems.items() if (text := chosen_text(values))]
    if chosen:
        yield f"chosen on validation: {'; '.join(chosen)}"
    for name, reason in systems.get(MODEL, {}).get(LEFT_OUT, {}).items():
        yield f"baseline {name} left out: {reason}"


def _is_known(name: str, systems: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether some system has a number there: an AUC of one class, say, is none."""
    return any(np.isfinite(values.get(name, np.nan)) for values in systems.values())
