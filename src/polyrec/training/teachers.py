"""The teacher of a training: found by its folder, and checked before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.distillation_config import DistillationConfig
from polyrec.data.sequences import SequenceDataset, WindowDataset
from polyrec.distillation.live import LiveTeacher
from polyrec.distillation.stored import MANIFEST, StoredTeacher
from polyrec.distillation.teacher import Teacher, parts_of
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.training.arguments import PolyRecTrainingArguments


def open_teacher(folder: str | Path, plan: DistillationConfig) -> Teacher:
    """The teacher in a folder: a saved model with its processor, or outputs stored by `polyrec score`.

    Args:
        plan: of the student, which says how long lists are, for which temperature, and whether states or gates are
            asked for.

    Raises:
        ValueError: the folder holds neither; says which teachers are objects of Python alone.
    """
    path = Path(folder)
    is_run = (path / "config.json").exists()
    if not is_run and (path / MANIFEST).exists():  # runs have a manifest of that name, too
        return StoredTeacher(path)
    if not is_run:
        raise ValueError(
            f"teacher={str(folder)!r} holds neither a saved model (config.json) nor stored outputs ({MANIFEST}): "
            "give the folder of a trained run or of `polyrec score`, or pass PolyRecTrainer(..., teacher=...) an "
            "object, e.g. CatalogTeacher"
        )
    if not isinstance(config := AutoConfig.from_pretrained(path), PolyRecConfig):
        raise ValueError(
            f"teacher={str(folder)!r} holds a model of type {config.model_type!r}, and only polyrec models score "
            "batches as they are: let `polyrec score` write its predictions and give their folder"
        )
    return LiveTeacher(
        PolyRecForRecommendation.from_pretrained(path),
        PolyRecProcessor.from_pretrained(path),
        top_k={task: own.top_k for task, own in plan.tasks.items()},
        temperature={task: own.temperature for task, own in plan.tasks.items()},
        states=plan.states is not None,
        gates=plan.gates > 0,
    )


def chosen_teacher(
    args: PolyRecTrainingArguments, model: PolyRecForRecommendation, teacher: Teacher | None
) -> Teacher | None:
    """The teacher that is given, or the one that the arguments name."""
    if args.teacher is None:
        return teacher
    if teacher is not None:
        raise ValueError(f"the trainer is given a teacher and its arguments name another, {args.teacher!r}: give one")
    return open_teacher(args.teacher, _plan_of(model))


def prepare_teacher(
    teacher: Teacher,
    model: PolyRecForRecommendation,
    train: WindowDataset | None,
    judged: SequenceDataset | dict[str, SequenceDataset] | None,
    processor: Any,
) -> None:
    """Check a teacher against the student's plan and data, and for overlap with the student's evaluation rows.

    Args:
        judged: what the student is validated by. Of the training's own log every row that is no training row is held
            out, whatever is validated; rows of another log are held out, too.
    """
    plan = _plan_of(model)
    if not isinstance(processor, PolyRecProcessor) or train is None:
        raise ValueError("a teacher needs to know the data: pass processing_class (the processor) and train_dataset")
    teacher.check_plan(plan, model.gate_sources)
    teacher.prepare(train, processor)
    parts = parts_of(train)
    named = judged if isinstance(judged, dict) else {} if judged is None else {"": judged}
    elsewhere = [part for part in named.values() if not any(part.log is own.log for own in parts)]
    teacher.check_unlearnt(parts, processor, elsewhere)


def _plan_of(model: PolyRecForRecommendation) -> DistillationConfig:
    """What a model that has a teacher is to learn of it."""
    if model.config.student_of is None:
        raise ValueError(
            "a teacher is given but the model's configuration does not say what to learn of it: pass e.g. "
            'distillation={"tasks": {"like": {"alpha": 0.5}}} to processor.model_config'
        )
    return model.config.student_of
