"""What a recipe says of model, training, card and slices, checked before its tables are read. Imports torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from polyrec.core.backbones import TextConfig
from polyrec.core.configuration_polyrec import RANGES, PolyRecConfig
from polyrec.core.registry import HEADS
from polyrec.core.schema import TaskConfig, parse_tasks
from polyrec.core.settings import SettingError, check_keys, nearest, read_arguments, section, shown
from polyrec.evaluation.slices import check_slices
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.recipe import Recipe
from polyrec.training.arguments import RANGES as TRAINING_RANGES
from polyrec.training.arguments import PolyRecTrainingArguments

OF_TRANSFORMERS = ("attn_implementation",)  # what a recipe's model may have beside our own arguments
_NOT_SET = ("tasks", "features", "num_items", "format_version", "int8", "task_adapters")  # of the data, or of commands


def check_sections(recipe: Recipe) -> None:
    """Refuse what a training would refuse after its tables were read, or after its last epoch.

    Raises:
        ValueError: section, key, value and what it must be.
    """
    recipe.check()
    model_keys = model_arguments()
    if "tasks" in recipe.model:
        raise ValueError("model.tasks: tasks belong at the top of a recipe, not into its model section")
    check_keys(recipe.model, (*model_keys, *OF_TRANSFORMERS), "model")
    read_arguments(PolyRecConfig, recipe.model, "model", RANGES, only=set(recipe.model) & set(model_keys) - {"text"})
    read_arguments(TextConfig, recipe.model.get("text") or {}, "model.text")  # beside those of `processor.text`
    training = read_arguments(PolyRecTrainingArguments, recipe.training, "training", TRAINING_RANGES)
    with section("training"):
        PolyRecTrainingArguments.check_names(training)
    _check_metric(training, parse_tasks(recipe.tasks))
    _check_tasks_named(recipe)
    check_writable(recipe.output)


def check_with_data(recipe: Recipe, processor: PolyRecProcessor) -> None:
    """Refuse what only the tables can tell, before training: attributes by which metrics are sliced."""
    check_slices(recipe.slices, processor)


def check_writable(output: str) -> None:
    """Refuse a folder that cannot be made or written to."""
    place = Path(output)
    for folder in (place, *place.parents):
        if folder.is_dir():
            if not os.access(folder, os.W_OK | os.X_OK):
                raise SettingError("output", f"is {shown(output)}: no permission to write into {folder}")
            return
        if folder.exists():
            raise SettingError("output", f"is {shown(output)}, but {folder} is a file: name a folder for the run")


def model_arguments() -> list[str]:
    """What a recipe may say of its model, beside what transformers knows."""
    ours = [base for base in PolyRecConfig.__mro__ if base.__module__.startswith("polyrec.")]
    declared = {name for base in ours for name in base.__annotations__}
    return [f.name for f in fields(PolyRecConfig) if f.name in declared and f.name not in _NOT_SET]


def _check_metric(training: Mapping[str, Any], tasks: list[TaskConfig]) -> None:
    """Refuse a `metric_for_best_model` that no evaluation of these tasks gives."""
    metric = training.get("metric_for_best_model")
    if metric is None:
        return
    k = training.get("rank_k", PolyRecTrainingArguments.rank_k)
    known = ["mean_improvement"]
    for task in tasks:
        names = HEADS.get(task.head).metrics
        if task.ranks_catalog:
            names = [*(f"{name}@{k}" for name in ("ndcg", "recall", "mrr", "coverage", "novelty")), "recall@100"]
        known += [f"{task.name}_{name}" for name in names]
    if metric.removeprefix("eval_") not in known:
        raise SettingError("training.metric_for_best_model", f"is {metric!r}; {nearest(metric, known)}")


def _check_tasks_named(recipe: Recipe) -> None:
    """Refuse settings of tasks that the recipe does not have."""
    names = [task.name for task in parse_tasks(recipe.tasks)]
    places = {
        "columns.weight": recipe.columns.get("weight"),
        "columns.propensity": recipe.columns.get("propensity"),
        "split.keep_negatives": recipe.split.get("keep_negatives"),
        "training.task_epochs": recipe.training.get("task_epochs"),
    }
    for place, values in places.items():
        for name in values or {}:
            if name not in names:
                raise SettingError(place, f"names the task {name!r}; {nearest(name, names)}")
