"""The page of one or several runs: curves, figures, calibration, groups in which they err, examples, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polyrec.data.report import DataReport
from polyrec.evaluation.metric_names import MODEL, by_task
from polyrec.evaluation.page import Section, Table, html_page
from polyrec.evaluation.plotting import to_png
from polyrec.reporting.examples import Example, example_sections
from polyrec.reporting.plots import affinity_plot, calibration_plot, lines_plot, slice_names, slice_plot
from polyrec.tracking.curves import task_curves
from polyrec.tracking.run_files import RunFiles
from polyrec.tracking.tables import baseline_points, figure_table, safe, with_interval

Runs = Mapping[str, RunFiles]


def report_page(runs: Sequence[RunFiles], examples: Mapping[str, Sequence[Example]] | None = None) -> str:
    """HTML that asks for nothing outside itself.

    Args:
        runs: to be shown side by side.
        examples: {name of a run: people that it answered}, see [`run_names`].
    """
    named = run_names(runs)
    plots: dict[str, bytes] = {}
    found = [_about(named), *_data(named)]
    for task in dict.fromkeys(task for run in runs for task in run.tasks):
        found += _task(task, {name: run for name, run in named.items() if task in run.tasks}, plots)
    found += _sharing(named, plots)
    for name, users in (examples or {}).items():
        found += example_sections(name, users)
    found.append(Section("How to read this", _how_to_read()))
    return html_page("polyrec: " + ", ".join(named), found, plots)


def run_names(runs: Sequence[RunFiles]) -> dict[str, RunFiles]:
    """Runs by the name of their folder, with a number where two have the same."""
    found: dict[str, RunFiles] = {}
    for run in runs:
        same = sum(other.name == run.name for other in found.values())
        found[f"{run.name} ({same + 1})" if same else run.name] = run
    return found


def _about(runs: Runs) -> Section:
    rows, data = [], {}
    for name, run in runs.items():
        training = run.training
        cost, facts = training.get("cost", {}), training.get("data", {})
        data[name] = facts.get("fingerprints", {}).get("data")
        rows.append(
            [
                name,
                f"{facts['events']:,}" if facts else "",
                f"{facts['people']:,}" if facts else "",
                f"{facts['items']:,}" if facts else "",
                f"{cost['parameters']:,.0f}" if cost else "",
                f"{cost['epochs']:g}" if cost else "",
                f"{cost['wall_seconds']:,.1f}" if cost else "",
                f"`{data[name]}`" if data[name] else "unknown",
            ]
        )
    points = []
    if len(runs) > 1 and (len(set(data.values())) > 1 or None in data.values()):
        points.append("**These runs do not all have the same data: their figures cannot be compared.**")
    header = ["run", "events", "users", "items", "parameters", "epochs", "seconds", "data"]
    return Section("Runs", points, Table(header, rows))


def _data(runs: Runs) -> list[Section]:
    """What the processors found in the tables, once for runs that found the same."""
    found: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        facts = run.facts.get("_data")
        if facts and facts not in found.values():
            found[name] = facts
    sections = []
    for name, facts in found.items():
        report = DataReport.from_dict(facts)
        points = [f"**{safe(text)}**" for text in report.warnings]
        points += [f"{line}: {safe(text)}" for line, text in report.lines()]
        table = Table(*report.split_table()) if report.split else None
        sections.append(Section("Data" if len(found) == 1 else f"Data ({name})", points, table))
    return sections


def _task(task: str, runs: Runs, plots: dict[str, bytes]) -> list[Section]:
    first = next(iter(runs.values()))
    metric = first.primary(task)
    # Baselines are those of the first run: they depend on the data alone.
    systems = {name: run.metrics[task][MODEL] for name, run in runs.items()}
    systems |= {name: values for name, values in first.metrics[task].items() if name != MODEL}
    points = [f"Test set; `{metric}` decides; best in bold.", *baseline_points(first.metrics[task])]
    found = [Section(f"Task `{task}`", points, figure_table(systems))]
    histories = {name: run.history for name, run in runs.items() if run.history}
    if histories:
        name = f"curves {task}"
        plots[name] = to_png(task_curves(histories, {task: metric}, stacked=True))
        found.append(Section(f"`{task}`: training", plot=name, beside=True))
    judged = {n: run.metrics[task][MODEL].get("calibration") for n, run in runs.items()}
    curves = {n: curve for n, curve in judged.items() if curve and curve["rows"]}
    if curves:
        name = f"calibration {task}"
        plots[name] = to_png(calibration_plot(curves))
        found.append(Section(f"`{task}`: calibration", plot=name, beside=True))
    return [*found, *_slices(task, metric, runs, plots)]


def _slices(task: str, metric: str, runs: Runs, plots: dict[str, bytes]) -> list[Section]:
    by_run = {name: run.metrics[task][MODEL].get("slices", {}) for name, run in runs.items()}
    groups = slice_names(by_run, metric)
    if not groups:
        return []
    name = f"slices {task}"
    plots[name] = to_png(slice_plot(by_run, metric))
    rows = []
    for by, group in groups:
        values = [slices.get(by, {}).get(group, {}) for slices in by_run.values()]
        held = next(v for v in values if v)
        rows.append(
            [
                f"{safe(by)}: {safe(group)}",
                f"{held['rows']:,}",
                f"{held['people']:,}",
                *(with_interval(v, metric) for v in values),
            ]
        )
    table = Table(["group", "rows", "users", *(f"{metric}, {run}" for run in by_run)], rows)
    return [Section(f"`{task}`: where it errs", table=table, plot=name, beside=True)]


def _sharing(runs: Runs, plots: dict[str, bytes]) -> list[Section]:
    """What the tasks do to each other in training: gradients, weights, gates."""
    found: list[Section] = []
    for run_name, run in runs.items():
        figure = affinity_plot(run.history, list(run.tasks))
        if figure is not None:
            name = f"affinity {run_name}"
            plots[name] = to_png(figure)
            points = ["Mean cosine between gradients of tasks: below 0 they pull the shared part apart."]
            found.append(Section(f"Task affinities ({run_name})", points, plot=name, beside=bool(found)))
        if gates := _gates(run):
            points = ["Shares of what each task takes of the experts, means over the candidates of the last log line."]
            found.append(Section(f"Gates ({run_name})", points, gates, beside=bool(found)))
    histories = {name: run.history for name, run in runs.items()}
    tasks = list(dict.fromkeys(task for run in runs.values() for task in run.tasks))
    figure = lines_plot(histories, "weight_", tasks)
    if figure is not None:
        plots["weights"] = to_png(figure)
        found.append(Section("Weights of the tasks' losses", plot="weights", beside=bool(found)))
    return found


def _gates(run: RunFiles) -> Table | None:
    """A row per task and source of its gates, as last logged; None of a model without gates."""
    logged = [{k.removeprefix("gate_"): v for k, v in row.items() if k.startswith("gate_")} for row in run.history]
    last: dict[str, float] = next((row for row in reversed(logged) if row), {})
    shares = by_task(last, run.tasks)
    rows = [[f"`{task}`", name, f"{share:.3f}"] for task, own in shares.items() for name, share in own.items()]
    return Table(["task", "source", "share"], rows) if rows else None


def _how_to_read() -> list[str]:
    return [
        "Intervals hold 95% of resamples of the test users; they say nothing about the chance of training.",
        "Groups: popularity is of the item (head: the most popular items that have a third of the training events), "
        "history the number of earlier events that were visible, activity thirds of the users by training events, "
        "time quarters of the test rows. Groups of few users have wide or rough intervals.",
        "Calibration: rows are sorted by prediction and cut into ten parts.",
        "Examples are users of the data; their last event was hidden from the model here, though it may have been in "
        "its training. ◀ marks it where it was recommended.",
    ]
