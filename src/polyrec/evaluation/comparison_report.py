"""A comparison to read: JSON, Markdown, and one HTML page that needs nothing beside itself."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from polyrec.core.files import write_atomically
from polyrec.evaluation.comparison import Comparison, Effect, TaskComparison
from polyrec.evaluation.comparison_plots import AFFINITY_NAME, ALL_SINGLE, COSTS_NAME, GAINS_NAME, comparison_plots
from polyrec.evaluation.comparison_runs import Cost
from polyrec.evaluation.page import Section, Table, html_page, markdown, plain

_MARKS = {"better": "▲", "worse": "▼", "unclear": ""}


def findings(result: Comparison) -> list[str]:
    """What was found, in plain sentences; negative transfer first."""
    said: list[tuple[str, str]] = []
    for name, task in result.tasks.items():
        effect = task.metrics[task.primary].effect
        if effect is not None:
            said.append((effect.verdict, _transfer(name, task, effect, result)))
    for added, row in result.affinity.items():
        said += [
            (effect.verdict, f"Adding `{added}` to the other tasks makes `{name}` worse: {_gain(effect, result)}.")
            for name, effect in row.items()
            if effect.verdict == "worse"
        ]
    return [text for _, text in sorted(said, key=lambda pair: ("worse", "better", "unclear").index(pair[0]))]


def _transfer(name: str, task: TaskComparison, effect: Effect, result: Comparison) -> str:
    values = task.metrics[task.primary].values
    together, alone = np.mean(values["all"]), np.mean(values[f"only_{name}"])
    figures = f"{task.primary} {together:.4f} with all tasks, {alone:.4f} alone; {_gain(effect, result)}"
    if effect.verdict == "worse":
        return f"Transfer is NEGATIVE for `{name}`: learning the other tasks with it makes it worse ({figures})."
    if effect.verdict == "better":
        return f"Transfer is positive for `{name}`: learning the other tasks with it makes it better ({figures})."
    doubt = "the interval includes 0" if effect.low <= 0 <= effect.high else "the seeds disagree"
    return f"No clear transfer for `{name}`: {doubt} ({figures})."


def _gain(effect: Effect, result: Comparison) -> str:
    return (
        f"gain {effect.gain:+.4f}, {result.level:.0%} interval over users {effect.low:+.4f} to {effect.high:+.4f}, "
        f"seeds {' '.join(f'{x:+.4f}' for x in effect.seeds)}"
    )


def sections(result: Comparison) -> list[Section]:
    """The whole report, whatever it will be written as."""
    found = [Section("Findings", findings(result))]
    if any(t.metrics[t.primary].effect for t in result.tasks.values()):
        found.append(Section("Gain of learning all tasks together", plot=GAINS_NAME))
    found += [_task_section(name, task, result) for name, task in result.tasks.items()]
    if result.affinity:
        found.append(_affinity_section(result))
    found.append(_cost_section(result))
    return [*found, Section("How to read this", _how_to_read(result) + result.notes)]


def _task_section(name: str, task: TaskComparison, result: Comparison) -> Section:
    variants = [v for v in result.costs if v in task.metrics[task.primary].values]
    rows = []
    for metric, found in task.metrics.items():
        cells = [_spread(found.values[v]) if v in found.values else "" for v in variants]
        effect = found.effect
        cells_of_effect = ["", "", ""]
        if effect is not None:
            cells_of_effect = [_interval(effect), _percent(effect.relative), effect.verdict]
        label = f"**{metric}**" if metric == task.primary else metric
        rows.append(
            [f"{label} ({'higher' if found.higher_is_better else 'lower'} is better)", *cells, *cells_of_effect]
        )
    points = [f"{task.rows:,} test rows of {task.users:,} users; {task.primary} decides."]
    return Section(
        f"Task `{name}`", points, Table(["metric", *variants, "gain over alone", "relative", "verdict"], rows)
    )


def _affinity_section(result: Comparison) -> Section:
    names = list(result.tasks)
    rows = [
        [f"adding `{added}`"]
        + [f"{_percent(row[n].relative)} {_MARKS[row[n].verdict]}".strip() if n in row else "" for n in names]
        for added, row in result.affinity.items()
    ]
    points = [
        "How much better (+) or worse (−) the primary metric of the column's task is with all tasks than without the "
        "row's task; ▲ and ▼ are clear, the rest may be chance."
    ]
    return Section("Task affinity", points, Table(["", *(f"`{n}`" for n in names)], rows), AFFINITY_NAME)


def _cost_section(result: Comparison) -> Section:
    rows = [_cost_row(variant, cost) for variant, cost in result.costs.items()]
    points = ["Mean over seeds of one training, with the validation after each epoch."]
    alone = [result.costs[f"only_{name}"] for name in result.tasks if f"only_{name}" in result.costs]
    if len(alone) == len(result.tasks):
        total, multi = Cost.total(alone), result.costs["all"]
        rows.append(_cost_row(ALL_SINGLE, total))
        points.append(
            f"{len(alone)} single-task models together took {total.cpu_seconds / max(multi.cpu_seconds, 1e-9):.2f} "
            f"times the processor time of the multi-task model and have {total.parameters / multi.parameters:.2f} "
            "times its parameters."
        )
    header = ["model", "processor seconds", "wall seconds", "epochs", "parameters"]
    return Section("Training cost", points, Table(header, rows), COSTS_NAME)


def _cost_row(name: str, cost: Cost) -> list[str]:
    numbers = [f"{cost.cpu_seconds:,.1f}", f"{cost.wall_seconds:,.1f}", f"{cost.epochs:.1f}", f"{cost.parameters:,.0f}"]
    return [name, *numbers]


def _how_to_read(result: Comparison) -> list[str]:
    count = len(result.seeds)
    return [
        "A gain is the value with all tasks minus the value of the other model, its sign turned where less is better: "
        "positive means that sharing helps.",
        f"Intervals ({result.level:.0%}) come of {result.resamples:,} resamples of the users of the test set, both "
        "models on the same users and seed, averaged over seeds. They are not corrected for the number of tasks.",
        f"Seeds: {', '.join(map(str, result.seeds))}. Values are means over them ± standard deviation. "
        + (
            "With one seed, the chance of training is not measured at all."
            if count == 1
            else "A verdict needs an interval without 0 and the same sign with every seed."
        ),
        "All models have the same split, inputs, epochs and batches; each keeps the weights that predict its own tasks "
        "best on the validation set.",
        "Inputs are the same too: a single-task model still sees the past labels of all tasks as events and running "
        "statistics. The difference is what sharing the learning does, not what the other tasks' data tells.",
    ]


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")


def _percent(relative: float) -> str:
    return f"{relative:+.2%}" if np.isfinite(relative) else "-"


def _interval(effect: Effect) -> str:
    return f"{effect.gain:+.4f} [{effect.low:+.4f}, {effect.high:+.4f}]"


# ------------------------------------------------------------------ formats
def to_json(result: Comparison) -> str:
    """Everything, with NaN as null."""
    return json.dumps(plain(asdict(result) | {"findings": findings(result)}), indent=2) + "\n"


def to_markdown(result: Comparison) -> str:
    """The report without plots."""
    return markdown("Multi-task against single-task models", sections(result))


def to_html(result: Comparison, plots: dict[str, bytes]) -> str:
    """One page with the plots ({name: PNG}) inside."""
    return html_page("Multi-task against single-task models", sections(result), plots)


def write(result: Comparison, folder: Path, html: bool = True) -> None:
    """Write comparison.json and comparison.md, and with `html` the page and its plots as PNG files."""
    write_atomically(folder / "comparison.json", to_json(result))
    write_atomically(folder / "comparison.md", to_markdown(result))
    if html:
        plots = comparison_plots(result)
        for name, png in plots.items():
            write_atomically(folder / name, png)
        write_atomically(folder / "comparison.html", to_html(result, plots))
