"""Plots of a report, narrow enough for a telephone. Need matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polyrec.evaluation.plotting import new_figure
from polyrec.tracking.curves import History, series

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 4.6


def calibration_plot(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """What was predicted against what happened, a line per run; on the diagonal a prediction means what it says.

    Args:
        curves: {run: see `polyrec.evaluation.reliability.reliability`}.
    """
    figure = new_figure(_WIDTH, 4.2)
    axes = figure.subplots()
    ends = [x for curve in curves.values() for x in (*curve["predicted"], *curve["observed"])]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="black", linewidth=0.8, linestyle=":")
    for run, curve in curves.items():
        axes.plot(curve["predicted"], curve["observed"], "o-", markersize=4, label=run)
    axes.set_xlabel("mean prediction of a tenth of the rows")
    axes.set_ylabel("mean of what happened")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def slice_plot(by_run: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]], metric: str) -> Figure:
    """A metric with its interval in each group of rows, a colour per run.

    Args:
        by_run: {run: {by: {group: {metric: value, "interval": {metric: [low, high]}}}}}.
    """
    labels = slice_names(by_run, metric)
    figure = new_figure(_WIDTH, 0.9 + 0.26 * len(labels))
    axes = figure.subplots()
    for number, (run, groups) in enumerate(by_run.items()):
        shift = 0.5 * (number + 0.5) / len(by_run) - 0.25
        drawn = [(y + shift, groups.get(by, {}).get(name, {})) for y, (by, name) in enumerate(labels)]
        drawn = [(y, values) for y, values in drawn if metric in values]
        colour = f"C{number}"
        for y, values in drawn:
            low, high = values["interval"].get(metric, [values[metric]] * 2)
            if None not in (low, high):
                axes.plot([low, high], [y, y], color=colour, linewidth=1.5)
        axes.plot(
            [values[metric] for _, values in drawn], [y for y, _ in drawn], "o", color=colour, markersize=4, label=run
        )
    axes.set_yticks(range(len(labels)), [f"{by}: {name}"[:34] for by, name in labels], fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel(metric)
    axes.grid(axis="x", alpha=0.3)
    if len(by_run) > 1:
        axes.legend(fontsize=8)
    return figure


def slice_names(by_run: Mapping[str, Any], metric: str) -> list[tuple[str, str]]:
    """(by, group) of all groups in which some run has the metric, in their order."""
    found = {
        (by, name): None
        for groups in by_run.values()
        for by, members in groups.items()
        for name, values in members.items()
        if metric in values
    }
    return list(found)


def affinity_plot(history: History, tasks: Sequence[str]) -> Figure | None:
    """Mean cosine between the gradients of each two tasks; None where the loss weighting did not compare them."""
    cosine_TT = np.full((len(tasks), len(tasks)), np.nan)
    for i, one in enumerate(tasks):
        for j, other in enumerate(tasks[i + 1 :], start=i + 1):
            values = series(history, f"cosine_{one}_{other}")[1]
            if values:
                cosine_TT[i, j] = cosine_TT[j, i] = np.mean(values)
    if np.isnan(cosine_TT).all():
        return None
    figure = new_figure(_WIDTH, 1.5 + 0.5 * len(tasks))
    axes = figure.subplots()
    image = axes.imshow(cosine_TT, cmap="RdYlGn", vmin=-1, vmax=1)
    for i, j in np.argwhere(~np.isnan(cosine_TT)):
        axes.text(j, i, f"{cosine_TT[i, j]:+.2f}", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
    axes.set_yticks(range(len(tasks)), tasks)
    figure.colorbar(image)
    return figure


def lines_plot(histories: Mapping[str, History], prefix: str, names: Sequence[str]) -> Figure | None:
    """One line per run and name of what was logged as `<prefix><name>`; None where nothing was.

    Args:
        prefix: e.g. "weight_".
        names: e.g. of tasks.
    """
    lines = {
        f"{name} ({run})" if len(histories) > 1 else name: found
        for run, history in histories.items()
        for name in names
        if (found := series(history, f"{prefix}{name}"))[0]
    }
    if not lines:
        return None
    figure = new_figure(_WIDTH, 3.2)
    axes = figure.subplots()
    for name, (epochs, values) in lines.items():
        axes.plot(epochs, values, label=name, linewidth=1.4)
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
