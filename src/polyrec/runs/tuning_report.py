"""The trials of a search, to read: JSON, a Markdown table, and plots where matplotlib is installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyrec.core.files import write_atomically
from polyrec.evaluation.plotting import new_figure, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna.trial import FrozenTrial

TRIALS_NAME, TABLE_NAME, PLOT_NAME = "trials.json", "trials.md", "trials.png"


def write_trials(trials: Sequence[FrozenTrial], metric: str, folder: Path) -> None:
    """Write trials.json, trials.md (best first) and, with matplotlib, trials.png.

    Args:
        metric: what the trials were evaluated by.
    """
    rows = [_row(trial) for trial in trials]
    write_atomically(folder / TRIALS_NAME, json.dumps({"metric": metric, "trials": rows}, indent=2) + "\n")
    write_atomically(folder / TABLE_NAME, to_markdown(rows, metric))
    if importlib.util.find_spec("matplotlib") is not None:
        write_atomically(folder / PLOT_NAME, to_png(_plot(rows, metric)))


def to_markdown(rows: Sequence[dict[str, Any]], metric: str) -> str:
    """A table of the trials, the best first, those without a result last."""
    keys = list(dict.fromkeys(key for row in rows for key in row["values"]))
    ordered = sorted(rows, key=lambda row: (row["state"] != "complete", -(row["result"] or -np.inf)))
    lines = ["| trial | state | epochs | " + " | ".join([metric, *keys]) + " |", "| --- " * (4 + len(keys)) + "|"]
    for row in ordered:
        result = "" if row["result"] is None else f"{row['result']:.5f}"
        values = [_short(row["values"].get(key, "")) for key in keys]
        lines.append(f"| {row['trial']} | {row['state']} | {row['epochs']} | " + " | ".join([result, *values]) + " |")
    return "# Trials, evaluated on the validation set\n\n" + "\n".join(lines) + "\n"


def _row(trial: FrozenTrial) -> dict[str, Any]:
    """Plain values of one trial; the result of a pruned one is that of its last epoch."""
    steps = trial.intermediate_values
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        "result": trial.value,
        "epochs": max(steps, default=0),
        "seconds": None if trial.duration is None else trial.duration.total_seconds(),
        "values": trial.params,
    }


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plot(rows: Sequence[dict[str, Any]], metric: str) -> Figure:
    """Results in the order of the trials, and against each value that was searched."""
    done = [row for row in rows if row["state"] == "complete"]
    keys = list(dict.fromkeys(key for row in done for key in row["values"]))
    figure = new_figure(4 * min(len(keys) + 1, 3), 3 * (len(keys) // 3 + 1))
    axes = figure.subplots(len(keys) // 3 + 1, min(len(keys) + 1, 3), squeeze=False).flatten()
    results = [row["result"] for row in done]
    axes[0].plot([row["trial"] for row in done], results, "o", color="#9db6d3")
    axes[0].step([row["trial"] for row in done], np.maximum.accumulate(results), where="post", color="#30609a")
    axes[0].set_xlabel("trial (line: best so far)")
    axes[0].set_ylabel(f"{metric}\n(validation set)")
    for at, key in zip(axes[1:], keys, strict=False):
        values = [row["values"].get(key) for row in done]
        wide = all(isinstance(v, float) and v > 0 for v in values) and max(values) > 20 * min(values)
        plain = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        at.plot(values if plain else [str(v) for v in values], results, "o", color="#9db6d3")
        if wide:
            at.set_xscale("log")
            at.tick_params(axis="x", which="minor", labelbottom=False)
        at.set_xlabel(key)
    for at in axes[len(keys) + 1 :]:
        at.set_visible(False)
    return figure
