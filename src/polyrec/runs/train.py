"""`polyrec train`: recipe in, run folder out; and the one way in which every command builds a model and its trainer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed

from polyrec.core.bars import without_bars
from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.files import write_atomically
from polyrec.core.lock import locked
from polyrec.core.schema import parse_tasks
from polyrec.core.settings import section
from polyrec.core.swap import beside, publish
from polyrec.data.sequences import SequenceDataset
from polyrec.data.splitter import Splits
from polyrec.distillation.teacher import Teacher
from polyrec.models.polyrec.fingerprint import fingerprint, item_digest
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.evaluate import report_run
from polyrec.runs.facts import about_run
from polyrec.runs.prepare import prepare
from polyrec.runs.recipe import Recipe
from polyrec.runs.recipe_checks import check_sections, check_with_data
from polyrec.runs.stopping import train_safely
from polyrec.runs.transaction import complete, place_of, training_draft
from polyrec.tracking.facts import data_facts
from polyrec.tracking.run_files import METRICS_NAME, RECIPE_NAME
from polyrec.tracking.training_file import training_facts, write_training
from polyrec.training.arguments import HUB_ARGUMENTS, PolyRecTrainingArguments
from polyrec.training.checkpoints import newest_checkpoint
from polyrec.training.cost import CostMeter, cost_of
from polyrec.training.progress import TrainingLines
from polyrec.training.trainer import PolyRecTrainer

SELECTION_METRIC = "mean_improvement"  # of the validation set: what a search maximises


def build_config(recipe: Recipe, processor: PolyRecProcessor, tasks: Sequence[str] | None = None) -> PolyRecConfig:
    """The model configuration of a recipe, of all tasks or of some.

    The inputs are those of the full recipe for any set of tasks. A task whose parent is left out stands on its own; a
    task that is alone has weight 1 and no loss weighting, because there is nothing to weigh.

    Args:
        tasks: names of the tasks to learn; None = all.
    """
    known = {t.name: t for t in parse_tasks(recipe.tasks)}
    learnt = []
    with section("model"):
        whole = processor.model_config(**recipe.model)
    for task in whole.task_configs:
        if tasks is not None and task.name not in tasks:
            continue
        own = known[task.name]  # a search changes these after the processor was fitted
        task = replace(task, weight=own.weight, options={**task.options, **own.options})
        if tasks is None or task.parent in tasks:
            task = replace(task, coupling_options=own.coupling_options)
        else:
            task = replace(task, parent=None, coupling=None, coupling_options={})
        learnt.append(task)
    options: dict[str, Any] = {**recipe.model, "tasks": learnt}
    if tasks is not None and len(learnt) == 1:
        options |= {"tasks": [replace(learnt[0], weight=1.0)], "weighting": "fixed", "weighting_options": {}}
    return processor.model_config(**options)


def build_trainer(
    recipe: Recipe,
    processor: PolyRecProcessor,
    train: SequenceDataset,
    valid: SequenceDataset,
    tasks: Sequence[str] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    quiet: bool = False,
    teacher: Teacher | None = None,
    may_push: bool = False,
    trainer_class: type[PolyRecTrainer] = PolyRecTrainer,
    **overrides: Any,
) -> PolyRecTrainer:
    """A fresh model, seeded, and its trainer.

    Args:
        train, valid: what it learns from, and what chooses the weights to keep; no other part can be reached from here.
        tasks: names of the tasks to learn; None = all.
        callbacks: further ones.
        quiet: no progress bar and no log lines of its own; the caller shows progress over many trainings.
        teacher: whose outputs are distilled; the recipe says how (`model.distillation`).
        may_push: obey the recipe's arguments about the Hub; a training inside a comparison or search never pushes.
        trainer_class: of the trainer.
        overrides: training arguments that replace those of the recipe (seed, output_dir, ...).
    """
    if not valid.num_candidates:
        asked = {"early_stopping_patience": recipe.early_stopping_patience, **recipe.training, **overrides}
        patient = [name for name in ("task_patience", "early_stopping_patience") if asked.get(name)]
        if patient:
            raise ValueError(
                f"{patient[0]} needs validation rows and the split leaves none: give it a share of the log"
            )
        print("the split leaves no validation rows: nothing is evaluated in training, and its last weights are kept")
        overrides |= {"eval_strategy": "no", "load_best_model_at_end": False}
    arguments = _arguments(recipe, quiet, may_push, **overrides)
    if recipe.model.get("distillation") and teacher is None and arguments.teacher is None:
        raise ValueError(
            "the recipe says what to learn of a teacher (model.distillation) and names none: run `polyrec distill "
            "RECIPE --teacher RUN`, give the folder of a run or of stored outputs as training.teacher, or leave "
            "model.distillation out"
        )
    set_seed(arguments.seed)
    model = PolyRecForRecommendation(build_config(recipe, processor, tasks))
    trainer = trainer_class(
        model,
        arguments,
        train_dataset=train,
        eval_dataset=valid,
        processing_class=processor,
        teacher=teacher,
        callbacks=[*callbacks],
    )
    if quiet:
        trainer.remove_callback(TrainingLines)
    if recipe.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(recipe.early_stopping_patience))
    return trainer


def _arguments(
    recipe: Recipe, quiet: bool = False, may_push: bool = False, **overrides: Any
) -> PolyRecTrainingArguments:
    """The training arguments of a recipe, see [`build_trainer`]."""
    given = {name: value for name, value in recipe.training.items() if may_push or name not in HUB_ARGUMENTS}
    training = {
        "output_dir": recipe.output,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "logging_steps": 10,
        "restore_callback_states_from_checkpoint": True,  # the patience of early stopping goes on where it stood
        **given,
        **overrides,
    }
    if quiet:
        training["disable_tqdm"] = True
    keep_best = training.pop("keep_best", None) is not False
    if "no" not in (training["eval_strategy"], training["save_strategy"]):
        training.setdefault("load_best_model_at_end", keep_best)
    return PolyRecTrainingArguments(**training, keep_best=False)


def save_training(trainer: PolyRecTrainer, processor: PolyRecProcessor, parts: Splits, folder: str | Path) -> None:
    """Write what a training with a [`CostMeter`] was, for model cards and reports."""
    state = trainer.state
    facts = training_facts(
        asdict(cost_of(trainer)),
        data_facts(processor, parts),
        state.log_history,
        seed=trainer.args.seed,
        device=trainer.args.device.type,
        threads=torch.get_num_threads(),
        processes=trainer.args.world_size,
        best={"step": state.best_global_step, "metric": state.best_metric, "by": trainer.args.metric_for_best_model},
    )
    write_training(folder, facts)


def train(recipe: Recipe, resume: bool = False) -> dict:
    """Train, keep the best weights, evaluate on the test set, and save all of it.

    The run folder holds the model, the processor, recipe.yaml, metrics.json and training.json. It is drafted beside its
    place and replaces what is there at the end, as a whole; checkpoints of a training lie in the draft.

    Args:
        resume: go on from the newest complete checkpoint, which must be of this recipe and this data.

    Returns:
        the report of `polyrec.evaluation.report.compare_with_baselines`.

    Raises:
        ValueError: another process writes the run, or the training to resume is another one.
        Interrupted: a signal came; the run that was there is as it was.
    """
    check_sections(recipe)
    place, about = place_of(recipe.output), about_run(recipe.to_dict())
    draft = beside(place, "draft")
    arguments = _arguments(recipe, output_dir=str(draft))
    with ExitStack() as stack:
        with arguments.main_process_first(local=False):
            if arguments.process_index == 0:
                stack.enter_context(locked(place))
                training_draft(place, "train", about, resume)
        processor, parts = prepare(recipe, verbose=True)
        check_with_data(recipe, processor)
        own = _own_places(recipe, place, draft)
        trainer = build_trainer(
            *(recipe, processor, parts.train, parts.valid), callbacks=[CostMeter()], may_push=True, **own
        )
        trainer.facts = about
        train_safely(trainer, newest_checkpoint(draft) if resume else None)
        with without_bars(when=True):  # a line an evaluation is enough
            trainer.save_model(str(draft))
        for name, weight in trainer.validated.items():
            print(f"{name}: {weight}")
        part = "test" if parts.test.num_candidates else "valid"
        judged = getattr(parts, part)
        predictions = trainer.predictions(judged)
        if not trainer.is_world_process_zero():
            return {}
        write_atomically(draft / RECIPE_NAME, yaml.safe_dump(recipe.to_dict(), sort_keys=False))
        save_training(trainer, processor, parts, draft)
        if part == "valid":
            print("the split leaves no test rows: figures are those of the validation rows, which chose the weights")
        report = report_run(
            *(trainer.model, parts.train, judged, predictions, trainer.args, draft / METRICS_NAME),
            *(processor, recipe.slices, part),
            valid=parts.valid,
        )
        name_place(draft / "training_args.json", place)
        complete(draft, about | {"items": item_digest(processor), "processor": fingerprint(processor)})
        publish(draft, place)
    print(f"saved to {recipe.output}; try: polyrec recommend {recipe.output} --history ID,ID,...")
    return report


def _own_places(recipe: Recipe, place: Path, draft: Path) -> dict[str, Any]:
    """Training arguments of a training that is drafted: its folder, and the name on the Hub of the run's folder."""
    found: dict[str, Any] = {"output_dir": str(draft)}
    if recipe.training.get("push_to_hub") and recipe.training.get("hub_model_id") is None:
        found["hub_model_id"] = place.name
    return found


def name_place(path: Path, place: Path) -> None:
    """Let training_args.json name the run's folder, not the one in which it was drafted."""
    values = json.loads(path.read_text(encoding="utf-8"))
    write_atomically(path, json.dumps({**values, "output_dir": str(place)}, indent=2) + "\n")
