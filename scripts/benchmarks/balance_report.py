"""What `balance.py` found, as ratios, as Markdown and as a picture. Needs no torch."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from balance_grid import REFERENCE, Cell

PRIMARY = ("ndcg@10", "auc", "rmse", "mae")  # the first that a task has stands for it in tables
# (what, cells that it is about, key of the cost, bound)
TARGETS: tuple[tuple[str, Callable[[Cell], bool], str, float], ...] = (
    ("ple+uncertainty, step time", lambda cell: cell == Cell("ple", "uncertainty"), "step", 1.2),
    (
        "any aggregation with shared_bottom, step time",
        lambda cell: cell.aggregates and cell.experts == REFERENCE.experts,
        "step",
        1.5,
    ),
    ("any aggregation with any layer, step time", lambda cell: cell.aggregates, "step", 1.5),
    ("ple+uncertainty, peak memory", lambda cell: cell == Cell("ple", "uncertainty"), "memory", 1.3),
    ("any cell, peak memory", lambda cell: True, "memory", 1.3),
)


def relative(rounds: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """How many times the reference's time each cell takes, and how far that may be off by chance (one standard error).

    Times are divided by the median of their round first, so that a slow round counts like any other, and by the
    reference's median over rounds at last.

    Args:
        rounds: {name: seconds} of all cells, each.

    Example:
        >>> calm, busy = {"shared_bottom+fixed": 1.0, "ple+fixed": 2.0}, {"shared_bottom+fixed": 2.0, "ple+fixed": 4.0}
        >>> relative([calm, busy])[0]
        {'shared_bottom+fixed': 1.0, 'ple+fixed': 2.0}
    """
    levels = [statistics.median(found.values()) for found in rounds]
    shares = {name: [found[name] / level for found, level in zip(rounds, levels, strict=True)] for name in rounds[0]}
    medians = {name: statistics.median(values) for name, values in shares.items()}
    reference = medians[REFERENCE.name]
    ratios = {name: value / reference for name, value in medians.items()}
    return ratios, {name: _median_error(values) / reference for name, values in shares.items()}


def _median_error(values: Sequence[float]) -> float:
    """Standard error of a median, from the middle half of the values, as if they were normal."""
    if len(values) < 4:
        return float("nan")
    first, _, third = statistics.quantiles(values, n=4)
    return 1.2533 * (third - first) / 1.349 / len(values) ** 0.5


def targets(cost: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lines that compare the costliest cell of each target with its bound."""
    lines = []
    for what, concerns, key, bound in TARGETS:
        found = {name: value for name, value in cost[key].items() if concerns(Cell.parse(name))}
        if found:
            name = max(found, key=found.__getitem__)
            verdict = "kept" if found[name] <= bound else "MISSED"
            at = "" if name in what else f" ({name})"
            lines.append(f"{what}: {found[name]:.2f}x{at}, at most {bound}x: {verdict}")
    return lines


def grid_table(values: Mapping[str, float], digits: int = 2) -> list[str]:
    """A Markdown table of weightings by expert layers; "-" where a cell has no value."""
    experts, weightings = axes(values)
    rows = [["", *experts]]
    for weighting in weightings:
        found = (values.get(Cell(layer, weighting).name) for layer in experts)
        rows.append([weighting, *("-" if value is None else f"{value:.{digits}f}" for value in found)])
    return markdown(rows)


def axes(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Expert layers and weightings of cells, in the order in which they come."""
    cells = [Cell.parse(name) for name in names]
    return list(dict.fromkeys(c.experts for c in cells)), list(dict.fromkeys(c.weighting for c in cells))


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, the first row its header.

    Example:
        >>> markdown([["", "auc"], ["ple", "0.78"]])
        ['| | auc |', '|---|---|', '| ple | 0.78 |']
    """
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0].replace("|  |", "| |"), "|" + "---|" * len(rows[0]), *lines[1:]]


def quality_table(entries: Mapping[str, Mapping[str, Any]], cost: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Quality by cells, the best on validation first, with what a step costs.

    Args:
        entries: {name of the cell: what `common.summarise` made of its runs}.
        cost: `step` and `memory`, {name of the cell: ratio}; may be empty.
    """
    metrics = primary(next(iter(entries.values()))["validation"])
    header = ["", "mean improvement, validation", "test", *(f"{m.replace('/', ' ')}, test" for m in metrics)]
    rows = [[*header, "step time", "peak memory"]]
    for name in sorted(entries, key=lambda name: -entries[name]["validation"]["mean_improvement"]):
        entry = entries[name]
        spread = f" (.{round(1e4 * entry['std']['mean_improvement']):04d})" if len(entry["seeds"]) > 1 else ""
        row = [name, f"{entry['validation']['mean_improvement']:.4f}", f"{entry['mean_improvement']:.4f}{spread}"]
        row += [f"{entry[m]:.4f}" for m in metrics]
        rows.append(
            row + [f"{cost[key][name]:.2f}" if name in cost.get(key, {}) else "-" for key in ("step", "memory")]
        )
    return markdown(rows)


def primary(metrics: Iterable[str]) -> list[str]:
    """One metric for each task, of those named "<task>/<metric>".

    Example:
        >>> primary(["like/logloss", "like/auc", "rating/mae", "rating/rmse", "mean_improvement"])
        ['like/auc', 'rating/rmse']
    """
    found: dict[str, list[str]] = {}
    for name in metrics:
        task, _, metric = name.rpartition("/")
        if task and metric in PRIMARY:
            found.setdefault(task, []).append(metric)
    return [f"{task}/{min(known, key=PRIMARY.index)}" for task, known in found.items()]


def text(content: Mapping[str, Any], qualities: Mapping[str, Mapping[str, Any]]) -> str:
    """The report in Markdown.

    Args:
        content: of the JSON file.
        qualities: {data set: its entries}.
    """
    lines: list[str] = []
    cost = content.get("cost", {})
    if "step" in cost:
        batch, worst = cost["batch"], max(cost["step_error"].values())
        lines += [
            f"## Cost of a training step relative to {REFERENCE.name}",
            "",
            f"{len(batch['tasks'])} pair tasks ({', '.join(batch['tasks'])}) of ml-100k, width {batch['width']}, "
            f"{batch['windows']} windows, {batch['real_candidates']} candidates, {batch['threads']} thread(s); "
            f"{REFERENCE.name}: {1000 * cost['seconds']:.0f} ms and {cost['bytes'] / 2**20:.1f} MiB.",
            "",
            f"Step time (cpu; median of {len(cost['rounds'])} interleaved rounds; chance: up to {worst:.3f}):",
            "",
            *grid_table(cost["step"]),
            "",
            "Peak memory of tensors (parameters, optimizer, gradients, activations; exact):",
            "",
            *grid_table(cost["memory"]),
            "",
            *(f"* {line}" for line in targets(cost)),
            "",
        ]
    for name, entries in qualities.items():
        lines += [f"## Quality: {name}", "", *quality_table(entries, cost), ""]
    return "\n".join(lines)


def heat_map(path: Path, panels: Mapping[str, Mapping[str, float]]) -> bool:
    """Draw one grid of weightings by expert layers for each panel, {title: {cell: value}}; False without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    experts, weightings = axes(name for values in panels.values() for name in values)
    size = (1.5 + len(panels) * (1.2 + 0.62 * len(experts)), 1.6 + 0.32 * len(weightings))
    figure, places = pyplot.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for place, (title, values) in zip(places[0], panels.items(), strict=True):
        known = [
            [values.get(Cell(layer, weighting).name, float("nan")) for layer in experts] for weighting in weightings
        ]
        place.imshow(known, cmap="viridis", aspect="auto")
        low, high = min(values.values()), max(values.values())
        for row, found in enumerate(known):
            for column, value in enumerate(found):
                if value == value:
                    dark = value < (low + high) / 2  # viridis begins dark
                    shown = f"{value:.2f}" if high > 1 else f"{value:.3f}"
                    place.text(column, row, shown, ha="center", va="center", fontsize=7, color="w" if dark else "k")
        place.set_xticks(range(len(experts)), experts, rotation=45, ha="right")
        place.set_yticks(range(len(weightings)), weightings)
        place.set_title(title, fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return True
