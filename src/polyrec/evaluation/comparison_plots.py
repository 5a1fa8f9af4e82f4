"""Plots of a comparison as PNG: gains with intervals, the affinity matrix, training cost. Needs matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from polyrec.evaluation.comparison import Comparison
from polyrec.evaluation.plotting import new_figure, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAINS_NAME, AFFINITY_NAME, COSTS_NAME = "gains.png", "affinity.png", "costs.png"
ALL_SINGLE = "all single-task models"
COLOURS = {"better": "#2a7f4f", "worse": "#b3372f", "unclear": "#7a7a7a"}


def comparison_plots(result: Comparison) -> dict[str, bytes]:
    """{file name: PNG} of the plots for which there are results."""
    plots = {COSTS_NAME: to_png(_costs(result))}
    if any(task.metrics[task.primary].effect is not None for task in result.tasks.values()):
        plots[GAINS_NAME] = to_png(_gains(result))
    if result.affinity:
        plots[AFFINITY_NAME] = to_png(_affinity(result))
    return plots


def _gains(result: Comparison) -> Figure:
    """A forest plot: one line per task, relative gain and interval."""
    rows = [
        (f"{name}\n{task.primary}", effect)
        for name, task in result.tasks.items()
        if (effect := task.metrics[task.primary].effect) is not None
    ]
    figure = new_figure(5.6, 1.2 + 0.6 * len(rows))
    axes = figure.subplots()
    axes.axvline(0, color="black", linewidth=0.8)
    for y, (_, effect) in enumerate(rows):
        colour = COLOURS[effect.verdict]
        axes.plot([100 * effect.relative_low, 100 * effect.relative_high], [y, y], color=colour, linewidth=2.5)
        axes.plot(100 * effect.relative, y, "o", color=colour, markersize=8)
        unit = effect.relative / effect.gain if effect.gain else 0.0
        axes.plot(
            [100 * unit * gain for gain in effect.seeds], [y] * len(effect.seeds), "|", color=colour, markersize=14
        )
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"gain over the single-task model in % (line: {result.level:.0%} interval over users, | one seed)")
    return figure


def _affinity(result: Comparison) -> Figure:
    names = list(result.tasks)
    gain_AB = np.full((len(names), len(names)), np.nan)
    for added, row in result.affinity.items():
        for name, effect in row.items():
            gain_AB[names.index(added), names.index(name)] = 100 * effect.relative
    figure = new_figure(2.5 + 1.1 * len(names), 1.5 + 0.8 * len(names))
    axes = figure.subplots()
    bound = max(1.4 * float(np.abs(gain_AB[np.isfinite(gain_AB)]).max(initial=0.0)), 1e-9)  # dark colours hide text
    image = axes.imshow(gain_AB, cmap="RdYlGn", vmin=-bound, vmax=bound)
    for added, row in result.affinity.items():
        for name, effect in row.items():
            weight = "normal" if effect.verdict == "unclear" else "bold"
            at = (names.index(name), names.index(added))
            text = f"{100 * effect.relative:+.2f}" if np.isfinite(effect.relative) else "-"
            axes.text(*at, text, ha="center", va="center", fontweight=weight)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), [f"adding {name}" for name in names])
    figure.colorbar(image, label="change of the primary metric in %, bold: clear")
    return figure


def _costs(result: Comparison) -> Figure:
    bars = {variant: cost.cpu_seconds for variant, cost in result.costs.items()}
    alone = [bars[f"only_{name}"] for name in result.tasks if f"only_{name}" in bars]
    if len(alone) == len(result.tasks):
        bars[ALL_SINGLE] = sum(alone)
    figure = new_figure(5.6, 1.2 + 0.35 * len(bars))
    axes = figure.subplots()
    colours = ["#30609a" if name == "all" else "#9db6d3" for name in bars]
    axes.barh(list(bars), list(bars.values()), color=colours)
    axes.invert_yaxis()
    axes.set_xlabel("processor seconds of a training")
    return figure
