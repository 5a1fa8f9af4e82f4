"""The card of a recipe: that of its run (`polyrec card`), and what only a recipe has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import recipe_policy
from recipe_tables import SOURCES

from polyrec.cards.card import write_card as write_run_card
from polyrec.evaluation.metric_names import MODEL, figures, of_tasks
from polyrec.evaluation.metrics import LOWER_IS_BETTER
from polyrec.runs.card_section import About
from polyrec.tracking.run_files import RunFiles

COST_NAME = "cost.json"
_FILES = {"metrics": "metrics.json", "training": "training.json", "cost": COST_NAME, "off_policy": recipe_policy.NAME}


def write_card(name: str, run: Path, cards: Path) -> Path:
    """NAME.md, with its picture, and NAME.json with the figures that it quotes."""
    source = SOURCES[name]
    about = About(name=f"Recipe {name}", datasets=[source.folder], data=[f"{source.about}."])
    path = write_run_card(RunFiles.read(run), cards / f"{name}.md", about)
    found = {key: json.loads((run / file).read_text()) for key, file in _FILES.items() if (run / file).exists()}
    (cards / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    worse = behind(found["metrics"])
    lines = [
        "",
        "## Beside simple baselines",
        "",
        "Better than each of them on every metric of every task." if not worse else "A simple baseline is as good on:",
        "",
        *(f"- {entry}" for entry in worse),
        "",
    ]
    if "off_policy" in found:
        lines += ["## What the policy would have earned", "", *policy_section(found["off_policy"]), ""]
    lines += [
        "## The whole recipe",
        "",
        f"`python scripts/recipes.py {name} --data FOLDER` (which holds `{source.folder}/`): "
        f"{found['cost']['cpu_seconds']} seconds of processor time, tables and evaluation included. All figures: "
        f"[{name}.json]({name}.json).",
        "",
    ]
    path.write_text(path.read_text(encoding="utf-8").rstrip("\n") + "\n" + "\n".join(lines), encoding="utf-8")
    return path


def behind(report: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """ "task, metric: value of polyrec against value of a baseline" wherever that is better or as good."""
    found = []
    for task, systems in of_tasks(report).items():
        for name, own in figures(systems[MODEL]).items():
            sign = -1 if name in LOWER_IS_BETTER else 1
            for system, values in systems.items():
                other = figures(values).get(name)
                if system != MODEL and other is not None and sign * other >= sign * own:
                    found.append(f"{task}, {name}: {own:.4f} against {other:.4f} of {system}")
    return found


def policy_section(found: dict[str, Any]) -> list[str]:
    """The off-policy table and how to read it."""
    rows, clicks = found["rows"], found["clicks"]
    return [
        f"Judged on the {rows['random']:,} uniformly random choices of the test period ({clicks['random']} clicks); "
        f"`bts` made {rows['bts']:,} choices then ({clicks['bts']} clicks). With so few clicks the intervals are wide: "
        "read a difference only where they are apart. Effective rows: (sum of weights)^2 / sum of their squares; where "
        f"they are under {recipe_policy.FEW:.0f}, a resample cannot know of clicks that none of them had, and the "
        "interval is too narrow.",
        "",
        recipe_policy.format_policies(found),
    ]
