"""The model beside simple baselines, with intervals over people, as a dict and as a readable table.

Nobody should mistake a bad model for a good one: each retrieval task stands beside popularity, item-kNN and EASE, each
pair task beside a constant and the bias model, all fitted on the same training rows and asked the same questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from polyrec.baselines import EASE, BiasModel, ItemKNN, Popularity
from polyrec.data.candidates import LeftOut
from polyrec.data.histories import visible_history
from polyrec.data.sequences import SequenceDataset
from polyrec.encoders.item import FIRST_ITEM
from polyrec.evaluation import bootstrap, evaluator, ranking
from polyrec.evaluation.intervals import bounds, metric_interval
from polyrec.evaluation.metric_names import MODEL, figures, of_tasks
from polyrec.evaluation.metrics import LOWER_IS_BETTER
from polyrec.evaluation.reliability import predicts_means, reliability
from polyrec.evaluation.resampled_metrics import is_fast
from polyrec.evaluation.scored import rank_rows
from polyrec.heads.base import TaskHead
from polyrec.modeling_polyrec import PolyRecForRecommendation


def compare_with_baselines(
    model: PolyRecForRecommendation,
    train: SequenceDataset,
    test: SequenceDataset,
    predictions: evaluator.Predictions,
    k: int = 10,
    exclude_seen: bool | None = None,
    resamples: int = 200,
) -> dict[str, dict[str, dict[str, Any]]]:
    """{task: {system: {metric: value, "interval": {metric: [low, high]}}}}; intervals (95%, over people).

    The first metric of each system has an interval, and so have the model's further ones that are quickly resampled.

    Args:
        train, test: data sets of one log; baselines are fitted on `train`.
        predictions: the model's answers to `test`. A task without a row, or without a known label, is left out.
        exclude_seen: as it was for `predictions`; the baselines' lists leave out the same.
    """
    report: dict[str, dict[str, dict[str, Any]]] = {}
    for j, task in enumerate(test.task_names):
        if task in predictions.rankings:
            number, what = model.config.num_items - FIRST_ITEM, evaluator.lists_leave_out(model, task, exclude_seen)
            report[task] = _retrieval(train, test, j, predictions.rankings[task], number, k, what, resamples)
        else:
            report[task] = _pairs(model.heads[task], train, test, predictions, task, resamples)
    return {task: systems for task, systems in report.items() if systems}


def _pairs(
    head: TaskHead,
    train: SequenceDataset,
    test: SequenceDataset,
    predictions: evaluator.Predictions,
    task: str,
    resamples: int,
) -> dict[str, dict[str, Any]]:
    column = test.task_names.index(task)
    labels, people, own = test.labels()[:, column], test.people(), train.own_view
    if np.isnan(labels).all():
        return {}
    known = train.labels()[own, column]
    bias = BiasModel().fit(train.people()[own], train.log.item[train.candidates.event[own]], known)
    answers = {
        MODEL: predictions.values[task],
        "bias": bias.predict(people, test.log.item[test.candidates.event]),
        "constant": np.full(len(labels), evaluator.constant_answer(head.metrics, known)),
    }
    result: dict[str, dict[str, Any]] = {}
    for system, values in answers.items():
        details = predictions.details.get(task) if system == MODEL else None
        found, _ = evaluator.pair_metrics(head.metrics, labels, values, people, task, details)
        measured = [name for name in found if name in evaluator.PAIR_METRICS and np.isfinite(found[name])]
        asked = [n for n in measured if n == measured[0] or (system == MODEL and is_fast(n))]
        intervals = {n: bounds(metric_interval(n, labels, values, people, resamples)) for n in asked}
        result[system] = {**found, "interval": intervals}
    if predicts_means(head.metrics):
        result[MODEL]["calibration"] = reliability(labels, predictions.values[task])
    return result


def _retrieval(
    train: SequenceDataset,
    test: SequenceDataset,
    column: int,
    found: evaluator.Ranking,
    number: int,
    k: int,
    what: LeftOut,
    resamples: int,
) -> dict[str, dict[str, Any]]:
    if not len(found.rows):
        return {}
    event = train.candidates.event[train.own_view & (train.labels()[:, column] > 0)]
    items, users = train.log.item[event] - FIRST_ITEM, train.log.person[event]
    items, users = items[items >= 0], users[items >= 0]
    people = test.people()[found.rows]
    result: dict[str, dict[str, Any]] = {}
    per_list = {MODEL: ranking.single_target_metrics(found.greater, found.ties, ks=[k])}
    lists = {MODEL: found.top_ids}
    baselines: dict[str, EASE | ItemKNN | Popularity] = {"item_knn": ItemKNN(), "popularity": Popularity()}
    ease = EASE()
    if number <= ease.max_items:  # it inverts a dense matrix of the catalog
        baselines["ease"] = ease
    for name, baseline in baselines.items():
        baseline.fit(users, items, number)

        def score(rows: np.ndarray, fitted: EASE | ItemKNN | Popularity = baseline) -> np.ndarray:
            seen = visible_history(test, rows)
            return seen._replace(items=seen.items - FIRST_ITEM).scores(fitted.score)

        ranked = rank_rows(score, test, found.rows, k, what)
        per_list[name] = ranking.single_target_metrics(ranked.greater, ranked.ties, ks=[k])
        lists[name] = ranked.top_ids
    for name, values in per_list.items():
        result[name] = {f"{m}@{k}": float(values[f"{m}@{k}"].mean()) for m in ("ndcg", "recall", "mrr")}
        result[name][f"coverage@{k}"] = ranking.coverage(lists[name], number)
        asked = ("ndcg", "recall", "mrr") if name == MODEL else ("ndcg",)
        intervals = {f"{m}@{k}": bootstrap.bootstrap_mean(values[f"{m}@{k}"], people, n=resamples) for m in asked}
        result[name]["interval"] = {metric: bounds(interval) for metric, interval in intervals.items()}
    return result


def format_report(report: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A text table per task; the best value of each metric is marked with *."""
    lines = []
    for task, systems in of_tasks(report).items():
        names = [name for name in figures(next(iter(systems.values()))) if _is_known(name, systems)]
        lines.append(f"{task:<14}" + "".join(f"{n:>19}" for n in names))
        for system, values in systems.items():
            cells = []
            for name in names:
                column = [s.get(name, np.nan) for s in systems.values()]
                best = np.nanmin(column) if name in LOWER_IS_BETTER else np.nanmax(column)
                value = values.get(name, np.nan)  # a baseline answers with one number: it has no class probabilities
                cells.append(
                    (f"{value:>18.4f}" if np.isfinite(value) else f"{'-':>18}") + ("*" if value == best else " ")
                )
            lines.append(f"  {system:<12}" + "".join(cells))
        for name, (low, high) in systems.get(MODEL, {}).get("interval", {}).items():
            lines.append(f"  {MODEL} {name}: 95% interval over people {low:.4f} .. {high:.4f}")
        lines.append("")
    return "\n".join(lines)


def _is_known(name: str, systems: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether some system has a number there: an AUC of one class, say, is none."""
    return any(np.isfinite(values.get(name, np.nan)) for values in systems.values())
