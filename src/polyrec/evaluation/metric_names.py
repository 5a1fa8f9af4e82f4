"""Names of metrics, "<group>/<task>_<metric>", taken apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from polyrec.evaluation.metrics import LOWER_IS_BETTER

MODEL = "polyrec"  # among the systems of a report
# Facts about lists, and what a constant is best at: no system is better by them.
_NO_ACCURACY = ("coverage", "novelty", "diversity", "calibration_error", "interval_coverage")


def of_tasks(report: Mapping[str, Any]) -> dict[str, Any]:
    """The tasks of metrics.json; keys that begin with "_" are facts about data and evaluation, not tasks.

    Example:
        >>> of_tasks({"like": {"polyrec": {"auc": 0.8}}, "_data": {"rows": 10}})
        {'like': {'polyrec': {'auc': 0.8}}}
    """
    return {name: systems for name, systems in report.items() if not name.startswith("_")}


def figures(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics among what a report says of a system, which are its numbers.

    Example:
        >>> figures({"auc": 0.8, "interval": {"auc": [0.7, 0.9]}})
        {'auc': 0.8}
    """
    return {name: value for name, value in values.items() if isinstance(value, float | int)}


def lower_is_better(metric: str) -> bool:
    """Of a metric by its name, the length of lists left out.

    Example:
        >>> lower_is_better("rmse"), lower_is_better("ndcg@10")
        (True, False)
    """
    return metric.partition("@")[0] in LOWER_IS_BETTER


def best_system(systems: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    """The system that is best by a metric, of equal ones the first."""
    found = {n: v[metric] for n, v in systems.items() if metric in figures(v) and np.isfinite(v[metric])}
    return (min if lower_is_better(metric) else max)(found or systems, key=lambda name: found.get(name, 0.0))


def as_shown(value: float) -> str:
    """A figure as tables show it: figures that differ in further digits are equal."""
    return f"{value:.4f}"


def better_baselines(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """{metric: the best baseline}, of each metric of accuracy by which some baseline is better than the model.

    Figures that tables show as equal are equal.

    Example:
        >>> better_baselines({"polyrec": {"auc": 0.7, "logloss": 0.5}, "bias": {"auc": 0.8, "logloss": 0.6}})
        {'auc': 'bias'}
    """
    found = {}
    for metric, value in figures(systems.get(MODEL, {})).items():
        if metric.partition("@")[0] not in _NO_ACCURACY and np.isfinite(value):
            best = best_system(systems, metric)
            if best != MODEL and as_shown(value) != as_shown(systems[best][metric]):
                found[metric] = best
    return found


def chosen_text(values: Mapping[str, Any]) -> str:
    """The settings of a baseline for users to read; empty if it has none.

    Example:
        >>> chosen_text({"chosen": {"settings": {"last": None, "decay": 0.9}, "rows": 10}})
        'last=all decay=0.9'
        >>> chosen_text({"chosen": {"settings": {"last": 10}, "rows": 0}})
        'last=10 (default)'
    """
    chosen = values.get("chosen", {})
    settings = chosen.get("settings", {})
    text = " ".join(f"{name}={'all' if value is None else value}" for name, value in settings.items())
    return text + " (default)" * bool(text and chosen.get("rows") == 0)


def day(seconds: float) -> str:
    """The date of a time, as ISO writes it.

    Example:
        >>> day(86_400.0)
        '1970-01-02'
    """
    return str(np.datetime64(int(seconds), "s").astype("datetime64[D]"))


def by_task(found: Mapping[str, float], tasks: Iterable[str], group: str = "") -> dict[str, dict[str, float]]:
    """Metrics of one group (default: of all rows), {task: {metric: value}}; those of no task are left out.

    Example:
        >>> found = {"like_auc": 0.8, "like_it_auc": 0.7, "mean_improvement": 0.1, "new/like_auc": 0.6}
        >>> by_task(found, ["like", "like_it"])
        {'like': {'auc': 0.8}, 'like_it': {'auc': 0.7}}
        >>> by_task(found, ["like"], group="new")
        {'like': {'auc': 0.6}}
    """
    result: dict[str, dict[str, float]] = {}
    longest_first = sorted(tasks, key=len, reverse=True)
    for key, value in found.items():
        place, _, name = key.rpartition("/")
        task = next((task for task in longest_first if name.startswith(f"{task}_")), None)
        if place == group and task is not None:
            result.setdefault(task, {})[name.removeprefix(f"{task}_")] = value
    return result
