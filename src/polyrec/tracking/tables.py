"""Tables of a run's metrics, as cards and reports show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyrec.core.escapes import printable
from polyrec.evaluation.metric_names import best_system, better_baselines, chosen_text, figures, lower_is_better
from polyrec.evaluation.page import Table

_HARMLESS = {"|": "/", "<": "‹", ">": "›", "*": "∗", "`": "'", "[": "(", "]": ")"}

SystemMetrics = Mapping[str, Any]  # {metric: value, "interval": {metric: [low, high]}, ...}


def with_interval(values: SystemMetrics, metric: str) -> str:
    """A metric with its interval, where it has one.

    Example:
        >>> with_interval({"auc": 0.81234, "interval": {"auc": [0.8, 0.82]}}, "auc"), with_interval({}, "auc")
        ('0.8123 [0.8000, 0.8200]', '')
    """
    if metric not in figures(values):
        return ""
    interval = values.get("interval", {}).get(metric)
    ends = "" if interval is None or None in interval else f" [{interval[0]:.4f}, {interval[1]:.4f}]"
    return f"{values[metric]:.4f}{ends}"


def figure_table(systems: Mapping[str, SystemMetrics]) -> Table:
    """A row per system and a column per metric of the first; the best figure of each is bold."""
    names = list(figures(next(iter(systems.values()))))
    best = {name: best_system(systems, name) for name in names}
    rows = []
    for system, values in systems.items():
        cells = [with_interval(values, name) for name in names]
        rows.append(
            [safe(system), *(f"**{c}**" if best[n] == system else c for n, c in zip(names, cells, strict=True))]
        )
    return Table(["", *(f"{name} {'↓' if lower_is_better(name) else '↑'}" for name in names)], rows)


def baseline_points(systems: Mapping[str, SystemMetrics]) -> list[str]:
    """Where a baseline is better than the model, and what validation chose for the baselines.

    Example:
        >>> chosen = {"chosen": {"settings": {"last": 10}, "rows": 7}}
        >>> baseline_points({"polyrec": {"ndcg@10": 0.1}, "ease": {"ndcg@10": 0.2, **chosen}})
        ['**Not first**: `ndcg@10` (`ease` 0.2000).', 'Chosen on validation: `ease` last=10.']
    """
    better = better_baselines(systems)
    first = [f"`{metric}` (`{safe(name)}` {systems[name][metric]:.4f})" for metric, name in better.items()]
    chosen = [f"`{safe(name)}` {text}" for name, values in systems.items() if (text := chosen_text(values))]
    said = ("**Not first**", first, ", "), ("Chosen on validation", chosen, "; ")
    return [f"{what}: {between.join(points)}." for what, points, between in said if points]


def group_rows(groups: Mapping[str, Mapping[str, SystemMetrics]], metric: str) -> list[list[str]]:
    """A row per group of `metrics.json`'s slices: what by, group, rows, users, a metric with its interval."""
    return [
        [safe(by), safe(name), f"{found['rows']:,}", f"{found['people']:,}", with_interval(found, metric) or "too few"]
        for by, members in groups.items()
        for name, found in members.items()
    ]


def safe(text: str) -> str:
    """A value of somebody's data, in a cell of a Markdown table and out of its syntax.

    Example:
        >>> safe("a|b <i>*x*</i>")
        'a/b ‹i›∗x∗‹/i›'
    """
    for mark, harmless in _HARMLESS.items():
        text = text.replace(mark, harmless)
    return printable(" ".join(text.split()))
