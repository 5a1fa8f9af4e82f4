"""What a distillation has shown: distill.json and distill.md."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from polyrec.core.files import write_atomically
from polyrec.core.schema import TaskConfig
from polyrec.data.sequences import SequenceDataset
from polyrec.distillation.gating import AlphaSelection
from polyrec.distillation.student import GATES, STATES
from polyrec.evaluation.comparison import Effect, Measured, measure
from polyrec.evaluation.comparison_runs import ComparisonRun
from polyrec.evaluation.page import Section, Table, markdown, plain

REPORT_NAME = "distill"
_LEVEL = 0.95
_SYSTEMS = ("teacher", "alone", "student")
WITHOUT = "without_"  # before the name of the soft loss that a system was trained without


@dataclass
class System:
    """What one of the compared systems costs.

    Args:
        parameters, bytes: of its model, and of the file of its weights; None where there is none.
        people_per_second: users served, one candidate and one list of each task per user.
        cost: of its training, see `Cost`.
        peak_memory: most bytes that the process held while it was trained.
    """

    parameters: int | None = None
    bytes: int | None = None
    people_per_second: float | None = None
    cost: dict[str, float] | None = None
    peak_memory: float | None = None


@dataclass
class Study:
    """A distillation and what it has shown; distill.json holds it.

    Args:
        settings, plan: what was asked for, and the plan of the student.
        weights: {task: one weight per teacher} of an ensemble.
        alphas: {task: why it has its alpha}.
        systems: {"teacher", "alone", "student": what it costs}.
        tasks: {task: {"metrics": {metric: {system: value}}, "primary", "people", "gain_over_alone",
            "gain_over_teacher": {metric: Effect}}}.
        brought: {task whose soft loss was left out, or the loss of states or gates: {task: Effect on its primary
            metric}}.
        start: what was taken over from the teacher's weights.
        notes: what to know when reading.
    """

    settings: dict[str, Any]
    plan: dict[str, Any]
    weights: dict[str, list[float]]
    alphas: dict[str, AlphaSelection]
    systems: dict[str, System]
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    brought: dict[str, dict[str, Effect]] = field(default_factory=dict)
    start: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def write_report(
    study: Study,
    runs: Sequence[ComparisonRun],
    tasks: Sequence[TaskConfig],
    dataset: SequenceDataset,
    k: int,
    seed: int,
    folder: Path,
) -> None:
    """Compare the systems on the users of the test set, put what is found into the study, and write and print it."""
    for task in sorted(tasks, key=lambda t: t.name):
        own = [run for run in runs if task.name in run.tasks]
        # One training each: the comparison is over users.
        own = [_with_seed(run, seed) for run in own]
        found = measure(task, own, _SYSTEMS, dataset, k, study.settings["resamples"], seed)
        study.tasks[task.name] = _task(found, {run.variant for run in own})
        for run in own:
            if run.variant.startswith(WITHOUT):
                left_out = run.variant.removeprefix(WITHOUT)
                left_out = left_out if left_out in (STATES, GATES) else left_out.removesuffix("_soft")
                effect = found.effect(found.comparison.primary, "student", run.variant, _LEVEL)
                study.brought.setdefault(left_out, {})[task.name] = effect
    text = markdown("Distillation", _sections(study))
    write_atomically(folder / f"{REPORT_NAME}.json", json.dumps(plain(asdict(study)), indent=2) + "\n")
    write_atomically(folder / f"{REPORT_NAME}.md", text)
    print(text)


def _with_seed(run: ComparisonRun, seed: int) -> ComparisonRun:
    return ComparisonRun(**{**vars(run), "seed": seed})


def _task(found: Measured, systems: set[str]) -> dict[str, Any]:
    comparison = found.comparison
    gains: dict[str, dict[str, Effect]] = {}
    for other in ("alone", "teacher"):
        if other in systems:
            gains[f"gain_over_{other}"] = {
                name: found.effect(name, "student", other, _LEVEL)
                for name, samples in found.samples.items()
                if other in samples and "student" in samples
            }
    return {
        "primary": comparison.primary,
        "people": comparison.users,
        "rows": comparison.rows,
        "metrics": {
            name: {variant: values[0] for variant, values in metric.values.items() if variant in _SYSTEMS}
            for name, metric in comparison.metrics.items()
        },
        "higher_is_better": {name: metric.higher_is_better for name, metric in comparison.metrics.items()},
        **gains,
    }


def _sections(study: Study) -> list[Section]:
    systems = [name for name in _SYSTEMS if name in study.systems]
    found = [_task_section(name, task, systems) for name, task in study.tasks.items()]
    found.append(_belief_section(study))
    if study.brought:
        found.append(_brought_section(study.brought, list(study.tasks)))
    found.append(_cost_section(study.systems))
    return [*found, Section("How to read this", _how_to_read(study))]


def _task_section(name: str, task: Mapping[str, Any], systems: Sequence[str]) -> Section:
    columns = [(f"gain_over_{other}", f"gain over {other}") for other in ("alone", "teacher")]
    columns = [(key, title) for key, title in columns if key in task]
    rows = []
    for metric, values in task["metrics"].items():
        label = f"**{metric}**" if metric == task["primary"] else metric
        better = "higher" if task["higher_is_better"][metric] else "lower"
        cells = [f"{values[s]:.4f}" if s in values else "" for s in systems]
        gains = [_gain(task[key].get(metric)) for key, _ in columns]
        rows.append([f"{label} ({better} is better)", *cells, *gains])
    points = [f"{task['rows']:,} test rows of {task['people']:,} users; {task['primary']} decides."]
    return Section(f"Task `{name}`", points, Table(["metric", *systems, *(title for _, title in columns)], rows))


def _gain(effect: Effect | None) -> str:
    if effect is None:
        return ""
    return f"{effect.gain:+.4f} [{effect.low:+.4f}, {effect.high:+.4f}] {effect.verdict}"


def _belief_section(study: Study) -> Section:
    def said(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    rows = [
        [f"`{name}`", said(b.teacher), said(b.baseline), said(b.alone), f"{b.planned:g}", f"{b.alpha:.3g}", b.reason]
        for name, b in study.alphas.items()
    ]
    points = [
        "By the validation set: 1 - loss / loss of a constant, and NDCG of lists, whose baseline is popularity. A "
        "teacher that is no better than the baseline is not used (alpha 0); one that is worse than the student "
        "alone keeps the share of alpha that it reaches of the student's improvement over the baseline."
    ]
    for task, own in study.weights.items():
        points.append(f"Weights of the teachers for `{task}`: {', '.join(f'{w:.2f}' for w in own)}.")
    header = ["task", "teacher", "baseline", "alone", "alpha planned", "alpha", "why"]
    return Section("Weight of the teacher", points, Table(header, rows))


def _brought_section(brought: Mapping[str, Mapping[str, Effect]], tasks: Sequence[str]) -> Section:
    titles = {STATES: "loss of states", GATES: "loss of gates"}
    rows = [
        [titles.get(left, f"soft loss of `{left}`"), *(_gain(row.get(name)) for name in tasks)]
        for left, row in brought.items()
    ]
    points = ["What each soft loss brought: the student minus one that was trained without it, primary metrics."]
    return Section("Which loss brought what", points, Table(["", *(f"`{name}`" for name in tasks)], rows))


def _cost_section(systems: Mapping[str, System]) -> Section:
    def number(value: float | None, form: str = ",.0f", scale: float = 1.0) -> str:
        return "" if value is None or not math.isfinite(value) else format(value / scale, form)

    rows = [
        [
            name,
            number(s.parameters),
            number(s.bytes, ",.2f", 2**20),
            number(s.people_per_second),
            number(None if s.cost is None else s.cost["cpu_seconds"], ",.1f"),
            number(None if s.cost is None else s.cost["epochs"], ".1f"),
            number(s.peak_memory, ",.0f", 2**20),
        ]
        for name, s in systems.items()
    ]
    header = ["system", "parameters", "file, MiB", "users per second", "training, cpu-seconds", "epochs",
              "peak memory of training, MiB"]  # fmt: skip
    points = [
        "Users per second: all pair tasks about one item and the best items of each list, each user once, the "
        "systems in turns in one run on one machine. Memory is that of the whole process."
    ]
    return Section("Size, speed and cost", points, Table(header, rows))


def _started(start: Mapping[str, Any]) -> str:
    """What the student's weights began with."""
    layers = ", ".join(map(str, start["layers"])) or "none"
    items = start["items_kept"]
    kept = "" if items is None else f"; its id embeddings hold {items:.1%} of the squared length of the teacher's"
    return (
        f"The student began with {start['parameters']:,} numbers of the first teacher (layers of its history encoder: "
        f"{layers}){kept}; the student alone began at random."
    )


def _how_to_read(study: Study) -> list[str]:
    alone = ["The student alone has the split, inputs, budget, seed and size of the student, and no teacher."]
    alone = alone if "alone" in study.systems else []
    return [
        "A gain is the student's value minus the other's, its sign turned where less is better. Intervals (95%) "
        f"resample the users of the test set {study.settings['resamples']:,} times, both systems on the same users; "
        "one training each: the chance of training comes on top.",
        *alone,
        *([] if study.start is None else [_started(study.start)]),
        *study.notes,
    ]
