"""What a run has left in its folder, read for cards and reports: no model is loaded and no table is opened."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from polyrec.core.manifest import check_manifest, read_manifest
from polyrec.core.older_files import saved_files, with_new_keys
from polyrec.core.schema import TaskConfig, parse_tasks
from polyrec.core.yaml_text import read_yaml
from polyrec.evaluation.metric_names import MODEL, figures, of_tasks
from polyrec.tracking.training_file import TRAINING_NAME

METRICS_NAME = "metrics.json"
RECIPE_NAME = "recipe.yaml"
_FILES = (RECIPE_NAME, METRICS_NAME, "config.json", TRAINING_NAME, "distill.json")
_EMISSIONS_NAME = "emissions.csv"  # of codecarbon, which transformers calls if it is installed


def missing(folder: Path, name: str) -> ValueError:
    """The error that a folder lacks a file of a run, with what to do instead."""
    if name == METRICS_NAME:
        fix = f"evaluate it first: polyrec evaluate {folder} --output {folder / name}"
    elif name == RECIPE_NAME and (folder / "config.json").exists():
        fix = (
            "trainer.save_model writes the model alone, which does not know its tables and split; use "
            "trainer.evaluate(test) in Python, or train from a recipe: polyrec train recipe.yaml"
        )
    else:
        fix = "it is not a folder written by `polyrec train`"
    return ValueError(f"{folder} has no {name}: {fix}")


@dataclass(frozen=True)
class RunFiles:
    """The files of a run.

    Args:
        folder: of the run.
        recipe: recipe.yaml.
        metrics: tasks of metrics.json, {task: {system: {metric: value, ...}}}.
        config: config.json of the model.
        training: training.json; empty if the run was trained before there was one.
        distillation: distill.json of a student, else empty.
        emissions: the last line of emissions.csv, else empty.
        facts: keys of metrics.json that begin with "_", e.g. "_data", what its `DataReport` says.
    """

    folder: Path
    recipe: dict[str, Any]
    metrics: dict[str, dict[str, dict[str, Any]]]
    config: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    distillation: dict[str, Any] = field(default_factory=dict)
    emissions: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read a folder written by `polyrec train` or `polyrec distill`."""
        home = Path(folder)
        for name in (RECIPE_NAME, METRICS_NAME, "config.json"):
            if not (home / name).exists():
                raise missing(home, name)
        held = read_manifest(home)
        if held is not None:  # what was written later, such as figures of `polyrec evaluate`, is not in it
            check_manifest(home, [name for name in _FILES if name in held.files])
        emissions = home / _EMISSIONS_NAME
        rows = list(csv.DictReader(emissions.read_text().splitlines())) if emissions.exists() else []
        metrics = _read(home / METRICS_NAME)
        tasks = of_tasks(metrics)
        return cls(
            home,
            _recipe(home / RECIPE_NAME),
            tasks,
            _read(home / "config.json"),
            _read(home / TRAINING_NAME),
            _read(home / "distill.json"),
            rows[-1] if rows else {},
            {name: found for name, found in metrics.items() if name not in tasks},
        )

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.resolve().name

    @property
    def tasks(self) -> dict[str, TaskConfig]:
        """Those with figures, by name, in alphabetical order."""
        known = {name for name, systems in self.metrics.items() if figures(systems[MODEL])}
        return {t.name: t for t in sorted(parse_tasks(self.recipe["tasks"]), key=lambda t: t.name) if t.name in known}

    def primary(self, task: str) -> str:
        """The main metric of a task, of those that it has."""
        return next(iter(figures(self.metrics[task][MODEL])))

    @property
    def history(self) -> list[dict[str, Any]]:
        """What its trainer has logged."""
        return self.training.get("history", [])

    @property
    def sources(self) -> list[Any]:
        """Everything that a card or report may quote figures from."""
        return [self.metrics, self.facts, self.training, self.recipe, self.config, self.distillation, self.emissions]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): the file is damaged") from error


def _recipe(path: Path) -> Any:
    try:
        found = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text ({error}): the file is damaged") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no mapping: the file is damaged")
    with saved_files():
        return with_new_keys(found)
