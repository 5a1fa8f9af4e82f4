"""The card of a recipe, written of the figures in its run alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import recipe_policy
import yaml
from recipe_tables import SOURCES

from polyrec.evaluation.metrics import LOWER_IS_BETTER
from polyrec.evaluation.report import MODEL

COST_NAME = "cost.json"


def figures(run: Path) -> dict[str, Any]:
    """All that the card quotes: {"metrics": ..., "cost": ..., "off_policy": ...}, of the run's files."""
    files = {"metrics": "metrics.json", "cost": COST_NAME, "off_policy": recipe_policy.NAME}
    return {key: json.loads((run / name).read_text()) for key, name in files.items() if (run / name).exists()}


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The metrics among what a report says of a system."""
    return {name: value for name, value in values.items() if isinstance(value, float | int)}


def behind(report: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """ "task metric (system)" wherever a baseline is better than the model, or as good."""
    found = []
    for task, systems in report.items():
        for name, own in numbers(systems[MODEL]).items():
            sign = -1 if name in LOWER_IS_BETTER else 1
            found += [
                f"{task} {name} ({system})"
                for system, values in systems.items()
                if system != MODEL and name in values and sign * values[name] >= sign * own
            ]
    return found


def metric_table(systems: dict[str, dict[str, Any]]) -> list[str]:
    """A Markdown table of one task."""
    names = list(numbers(systems[MODEL]))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for system, values in systems.items():
        cells = [f"{values[name]:.4f}" if name in values else "-" for name in names]
        for at, name in enumerate(names):
            if system == MODEL and name in values["interval"]:
                cells[at] += " ({:.4f} .. {:.4f})".format(*values["interval"][name])
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return lines


def write_card(name: str, run: Path, cards: Path) -> Path:
    """model_cards/NAME.md, and NAME.json with the figures it quotes."""
    found = figures(run)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    (cards / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"# Recipe `{name}`",
        "",
        f"{SOURCES[name].about}.",
        "",
        f"    python scripts/recipes.py {name} --data FOLDER      # the folder that holds {SOURCES[name].folder}/",
        "",
        f"{found['cost']['cpu_seconds']} cpu-seconds, tables and evaluation included; one seed; test part of the split "
        f"`{json.dumps(recipe['split'])}`; 95% intervals over people in brackets. Settings: "
        f"`scripts/recipes/{name}.yaml`; all figures: [{name}.json]({name}.json).",
        "",
    ]
    tasks = {task["name"]: task for task in recipe["tasks"]}
    for task, systems in found["metrics"].items():
        label = tasks[task].get("label", "")
        lines += [f"## {task} ({tasks[task]['head']}{', `' + label + '`' if label else ''})", ""]
        lines += [*metric_table(systems), ""]
    worse = behind(found["metrics"])
    lines += ["## Where a simple baseline is as good or better", ""]
    lines += ["Nowhere." if not worse else "\n".join(f"- {entry}" for entry in worse), ""]
    if "off_policy" in found:
        lines += ["## What the policy would have earned", "", *policy_section(found["off_policy"]), ""]
    path = cards / f"{name}.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def policy_section(found: dict[str, Any]) -> list[str]:
    """The off-policy table and how to read it."""
    rows, clicks = found["rows"], found["clicks"]
    return [
        f"Judged on the {rows['random']:,} uniformly random choices of the test period ({clicks['random']} clicks); "
        f"`bts` made {rows['bts']:,} choices then ({clicks['bts']} clicks). With so few clicks the intervals are wide: "
        "read a difference only where they are apart.",
        "",
        recipe_policy.format_policies(found),
    ]
