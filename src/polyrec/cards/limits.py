"""What a run's own metrics say against its model."""

from __future__ import annotations

from polyrec.core.escapes import sentence
from polyrec.evaluation.metric_names import MODEL, best_system
from polyrec.evaluation.page import Section, Table
from polyrec.runs.card_section import About
from polyrec.tracking.run_files import RunFiles
from polyrec.tracking.tables import group_rows, with_interval

_FEW_USERS = 30  # under which an interval over users is rough


def limits(run: RunFiles, about: About) -> Section:
    """Baselines that win, cold starts, popularity bias, and what the recipe adds."""
    points = []
    for task in run.tasks:
        points += [*_beaten(run, task), *_cold(run, task), *_popular(run, task)]
    return Section("Limits", [*points, *map(sentence, about.limits)])


def slice_sections(run: RunFiles) -> list[Section]:
    """For each task, its first metric in groups of rows."""
    found: list[Section] = []
    for task in run.tasks:
        metric = run.primary(task)
        rows = group_rows(run.metrics[task][MODEL].get("slices", {}), metric)
        if rows:
            points = [f"Groups of the test set; under {_FEW_USERS} users an interval is rough."] if not found else []
            header = ["by", "group", "rows", "users", f"{metric} [95%]"]
            found.append(Section(f"Where `{task}` errs", points, Table(header, rows)))
    return found


def _beaten(run: RunFiles, task: str) -> list[str]:
    metric, systems = run.primary(task), run.metrics[task]
    best = best_system(systems, metric)
    if best == MODEL:
        return []
    figures = f"{with_interval(systems[best], metric)} against {with_interval(systems[MODEL], metric)}"
    return [f"`{task}`: the baseline `{best}` is better than this model in {metric} ({figures})."]


def _cold(run: RunFiles, task: str) -> list[str]:
    """Of the groups about which least is known, as many as there are."""
    metric, said = run.primary(task), []
    whole = with_interval({metric: run.metrics[task][MODEL][metric]}, metric)
    for group, values in run.metrics[task][MODEL].get("cold_start", {}).items():
        if values.get("rows") and values.get(metric) is not None and group in ("new_items", "history_0"):
            who = "items never seen in training" if group == "new_items" else "users without a history"
            said.append(
                f"`{task}`, {who}: {metric} {values[metric]:.4f} of {values['rows']:,} rows ({whole} over all)."
            )
    return said


def _popular(run: RunFiles, task: str) -> list[str]:
    shares = run.metrics[task][MODEL].get("popularity")
    if shares is None:
        return []
    listed, consumed = shares["recommended"], shares["taken"]
    return [
        f"`{task}`: {100 * listed['head']:.1f}% of what is recommended are the most popular items, which have a third "
        f"of the training events, and {100 * consumed['head']:.1f}% of what users consumed; of the rarest items it is "
        f"{100 * listed['tail']:.1f}% and {100 * consumed['tail']:.1f}%."
    ]
