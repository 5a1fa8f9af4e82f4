"""Training curves of one or several runs, from what their trainers have logged. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polyrec.evaluation.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, Any]]
_SMALL = 40  # points up to which each is marked


def series(history: History, name: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one entry of a log, where it has numbers.

    Example:
        >>> series([{"epoch": 0.5, "loss_like": 0.7}, {"epoch": 1.0, "eval_like_auc": 0.6}], "loss_like")
        ([0.5], [0.7])
    """
    found = [(row["epoch"], row[name]) for row in history if row.get(name) is not None and "epoch" in row]
    return [x for x, _ in found], [y for _, y in found]


def task_curves(histories: Mapping[str, History], metrics: Mapping[str, str], stacked: bool = False) -> Figure:
    """For each task its training loss and its metric on the validation set.

    Args:
        histories: {run: what its trainer has logged}; names are shown where there are several.
        metrics: {task: metric}.
        stacked: the two above each other, narrow, instead of side by side.
    """
    across = 1 if stacked else 2
    down = 2 * len(metrics) // across
    figure = new_figure(4.6 if stacked else 8, 0.4 + 2.3 * down)
    panels = figure.subplots(down, across, squeeze=False)
    for (task, metric), pair in zip(metrics.items(), panels.reshape(-1, 2), strict=True):
        lines = (f"loss_{task}", f"{task}: training loss"), (f"eval_{task}_{metric}", f"{task}: {metric}, validation")
        for axes, (key, title) in zip(pair, lines, strict=True):
            for run, history in histories.items():
                epochs, values = series(history, key)
                axes.plot(epochs, values, marker="." if len(epochs) < _SMALL else None, linewidth=1.4, label=run)
            axes.set_title(title, fontsize=10)
            axes.grid(alpha=0.3)
            axes.tick_params(labelsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("epoch", fontsize=9)
    if len(histories) > 1:
        panels[0][0].legend(fontsize=8)
    return figure
