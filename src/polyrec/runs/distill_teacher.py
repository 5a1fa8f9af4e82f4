"""Teachers of `polyrec distill`: built, evaluated on the validation set, and made one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from polyrec.core.distillation_config import DistillationConfig, TaskDistillation
from polyrec.core.registry import HEADS
from polyrec.core.schema import TaskConfig, parse_tasks
from polyrec.data.sequences import SequenceDataset
from polyrec.data.splitter import Splits
from polyrec.distillation.classical import CatalogTeacher
from polyrec.distillation.cross_encoder_teacher import CrossEncoderTeacher
from polyrec.distillation.ensemble import EnsembleTeacher, validation_weights
from polyrec.distillation.live import LiveTeacher
from polyrec.distillation.predictions import teacher_predictions
from polyrec.distillation.soft_losses.base import kind_of
from polyrec.distillation.stored import StoredTeacher
from polyrec.distillation.teacher import Teacher
from polyrec.evaluation.evaluator import Predictions, improvements
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.distill_settings import DistillSettings
from polyrec.runs.recipe import Recipe
from polyrec.runs.score import ScoreSettings, build_teacher
from polyrec.training.arguments import PolyRecTrainingArguments

_JUDGED_LIST = 5000  # items of a list by which a teacher is evaluated: the whole catalog, if it is no larger


def planned(recipe: Recipe, settings: DistillSettings) -> Recipe:
    """The recipe with a plan for every task: its own, or the defaults; flags win over both."""
    tasks = {t.name: t for t in parse_tasks(recipe.tasks)}
    given = recipe.model.get("distillation")
    plan = DistillationConfig.parse(given or {"tasks": {name: {} for name in tasks}}, tasks)
    found = {name: _flagged(tasks[name], own, settings) for name, own in plan.tasks.items()}
    return with_plan(recipe, replace(plan, tasks=found))


def with_plan(recipe: Recipe, plan: DistillationConfig | None) -> Recipe:
    """The recipe with another plan, or without any."""
    model = {name: value for name, value in recipe.model.items() if name != "distillation"}
    return replace(recipe, model=model if plan is None else {**model, "distillation": asdict(plan)})


def _flagged(task: TaskConfig, own: TaskDistillation, settings: DistillSettings) -> TaskDistillation:
    known = kind_of(HEADS.get(task.head)).losses
    loss = known.get(next(iter(known)) if own.loss == "auto" else own.loss)
    if settings.alpha is not None:
        own = replace(own, alpha=settings.alpha)
    if settings.temperature is not None and loss is not None and loss.tempered:
        own = replace(own, temperature=settings.temperature)
    return own


def build_members(recipe: Recipe, processor: PolyRecProcessor, parts: Splits, settings: DistillSettings) -> list[Any]:
    """Each teacher that is asked for, runs first."""
    score, plan = ScoreSettings(skip_overlap_check=settings.skip_overlap_check), recipe.model["distillation"]
    members: list[Teacher] = [
        build_teacher(name, recipe, processor, parts, score) for name in (*settings.teachers, *settings.classical)
    ]
    if settings.teacher_outputs is not None:
        members.append(StoredTeacher(settings.teacher_outputs, trust=settings.skip_overlap_check))
    for member in members:
        if isinstance(member, LiveTeacher):
            member.states, member.gates = plan["states"] is not None, plan["gates"] > 0
    return members


def run_folders(names: Sequence[str]) -> list[Path]:
    """Folders of trained runs among names of teachers, see `polyrec.runs.score.score`.

    Example:
        >>> run_folders(["ease,item_knn", "reranker@nowhere"])
        []
    """
    parts = [Path(part.strip()) for name in names for part in re.split("[,@]", name)]
    return list(dict.fromkeys(part for part in parts if part.is_dir()))


def models_of(teacher: Teacher) -> list[Any]:
    """The models of a teacher."""
    if isinstance(teacher, EnsembleTeacher):
        return [model for member in teacher.teachers for model in models_of(member)]
    if isinstance(teacher, CrossEncoderTeacher):
        return [teacher.model, *([] if teacher.first_stage is None else models_of(teacher.first_stage))]
    return [teacher.model] if isinstance(teacher, LiveTeacher) else []


def answered_plan(recipe: Recipe, members: Sequence[Teacher], settings: DistillSettings, own: bool) -> Recipe:
    """The recipe with a plan for the tasks of any teacher.

    Args:
        own: whether the recipe came with a plan, which then must fit as it is.
    """
    plan = DistillationConfig.parse(recipe.model["distillation"], [t["name"] for t in recipe.tasks])
    if own:
        return recipe
    lists = {name: (m.temperature(name), m.top_k(name)) for m in reversed(members) for name in m.list_tasks}
    answered = {*lists, *(name for m in members for name in m.pair_tasks)}
    tasks = {name: task for name, task in plan.tasks.items() if name in answered}
    if not tasks:
        raise ValueError(
            f"the teachers predict {', '.join(sorted(answered)) or 'nothing'}, and the recipe needs "
            f"{', '.join(sorted(plan.tasks))}: they have no task in common"
        )
    for name in lists.keys() & tasks.keys():  # stored lists have theirs
        temperature, top_k = lists[name]
        if settings.temperature is not None:
            temperature = settings.temperature
        tasks[name] = replace(tasks[name], temperature=temperature, top_k=top_k)
    return with_plan(recipe, replace(plan, tasks=tasks))


class Evaluator:
    """Evaluates teachers on the validation and the test set.

    Args:
        model: of the student's shape and catalog, whose heads say what outputs mean.
    """

    def __init__(
        self,
        model: PolyRecForRecommendation,
        processor: PolyRecProcessor,
        parts: Splits,
        arguments: PolyRecTrainingArguments,
    ) -> None:
        self.model, self.processor, self.parts, self.arguments = model, processor, parts, arguments
        self.judged = [parts.valid, parts.test]

    def prepared(self, teacher: Teacher, part: SequenceDataset) -> Teacher:
        """Check a teacher against all that is evaluated, and bind it to a part."""
        teacher.to(self.arguments.device)
        teacher.prepare(part, self.processor, self.judged)
        return teacher

    def predictions(self, teacher: Teacher, part: SequenceDataset) -> Predictions:
        """Predictions for a split."""
        return teacher_predictions(
            self.prepared(teacher, part),
            self.model.heads,
            part,
            self.processor.num_items,
            self.arguments.per_device_eval_batch_size,
            self.arguments.rank_k,
            self.arguments.exclude_seen,
            progress=not self.arguments.disable_tqdm,
        )

    def improvements(self, predictions: Predictions, part: SequenceDataset) -> dict[str, float]:
        """The improvement of each task over a constant prediction, see `evaluator.evaluate`; NDCG of lists."""
        return improvements(self.model, part, predictions, self.arguments.rank_k)

    def longest(self, teacher: Teacher) -> Teacher:
        """The teacher with lists that are long enough for evaluation."""
        return teacher.listing(min(self.processor.num_items, _JUDGED_LIST))

    def popularity(self) -> dict[str, float]:
        """NDCG of the most popular items on the validation set, by retrieval task that needs no query."""
        found = {}
        for task in (t.name for t in self.processor.tasks if t.head == "retrieval"):
            popular = CatalogTeacher("popularity", self.parts.train, self.processor, task=task)
            predictions = self.predictions(self.longest(popular), self.parts.valid)
            found[task] = self.improvements(predictions, self.parts.valid)[task]
        return found


def joined(
    members: Sequence[Teacher], evaluator: Evaluator, recipe: Recipe
) -> tuple[Teacher, Teacher | None, dict[str, Any]]:
    """One teacher of all, and the same with lists for evaluation (None: it has no outputs on other splits).

    The weights of several are chosen on the validation set.

    Returns:
        the teacher, the one to be evaluated, {task: one weight per member}.
    """
    plan = recipe.model["distillation"]["tasks"]
    stored = any(isinstance(member, StoredTeacher) for member in members)
    if len(members) == 1:
        return members[0], None if stored else evaluator.longest(members[0]), {}
    weights: dict[str, list[float]] = {}
    if not stored:
        part = evaluator.parts.valid
        said = [evaluator.improvements(evaluator.predictions(evaluator.longest(m), part), part) for m in members]
        weights = validation_weights({task: [own.get(task, 0.0) for own in said] for task in plan})
    top_k = {task: own["top_k"] for task, own in plan.items()}
    whole = EnsembleTeacher(members, weights, top_k)
    if stored:
        return whole, None, weights
    return (
        whole,
        EnsembleTeacher([evaluator.longest(m) for m in members], weights, evaluator.processor.num_items),
        weights,
    )
