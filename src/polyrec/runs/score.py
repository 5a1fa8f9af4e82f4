"""`polyrec score`: a teacher's outputs on a recipe's data, in files to train students on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from polyrec.core.distillation_config import DistillationConfig
from polyrec.core.registry import nearest
from polyrec.data.sequences import SequenceDataset
from polyrec.data.splitter import Splits
from polyrec.distillation.classical import RECOMMENDERS, CatalogTeacher
from polyrec.distillation.cross_encoder_teacher import CrossEncoderTeacher
from polyrec.distillation.ensemble import EnsembleTeacher
from polyrec.distillation.live import LiveTeacher
from polyrec.distillation.stored import write_outputs
from polyrec.distillation.teacher import Teacher
from polyrec.distillation.trees import LightGBMTeacher
from polyrec.models.cross_encoder.configuration_cross_encoder import PolyRecCrossEncoderConfig
from polyrec.models.cross_encoder.modeling_cross_encoder import PolyRecCrossEncoder
from polyrec.models.cross_encoder.processing_cross_encoder import PolyRecCrossEncoderProcessor
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.distill_settings import ScoreSettings
from polyrec.runs.prepare import prepare
from polyrec.runs.recipe import Recipe
from polyrec.training.arguments import PolyRecTrainingArguments

TREES = "lightgbm"  # fitted on the training set like the classical recommenders


def score(names: str, recipe: Recipe, output: str, settings: ScoreSettings) -> Path:
    """Score a split of a recipe's data with one teacher, or several as an ensemble.

    Args:
        names: folders of trained runs or names of classical recommenders, separated by commas; "A@B" is the
            cross-encoder of folder A, which reranks the lists of B.
        output: folder of the outputs; an interrupted one is continued.
    """
    processor, parts = prepare(recipe)
    teacher = build_teacher(names, recipe, processor, parts, settings)
    dataset: SequenceDataset = parts._asdict()[settings.split]
    device = PolyRecTrainingArguments(output_dir=output, **recipe.training).device
    teacher.to(device)
    judged = [part for name, part in parts._asdict().items() if name != "train"]
    teacher.prepare(dataset, processor, judged)
    folder = write_outputs(
        teacher,
        dataset,
        processor,
        output,
        settings.shard_rows,
        settings.batch_size,
        device,
        progress=True,
        unlabelled=settings.unlabelled,
    )
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(
        f"{dataset.num_candidates:,} candidates scored for {', '.join((*teacher.pair_tasks, *teacher.list_tasks))}: "
        f"{size / 2**20:.1f} MiB in {folder}"
    )
    return folder


def build_teacher(
    names: str, recipe: Recipe, processor: PolyRecProcessor, parts: Splits, settings: ScoreSettings
) -> Teacher:
    """The teacher of some names, see [`score`]; classical ones are fitted on the training set."""
    found = [_one(name.strip(), recipe, processor, parts, settings) for name in names.split(",") if name.strip()]
    if not found:
        raise ValueError("no teacher given: name a folder of a trained run, or e.g. ease")
    return found[0] if len(found) == 1 else EnsembleTeacher(found, top_k=_lists(recipe, settings)["top_k"])


def _one(name: str, recipe: Recipe, processor: PolyRecProcessor, parts: Splits, settings: ScoreSettings) -> Teacher:
    lists = _lists(recipe, settings)
    if name in RECOMMENDERS:
        return CatalogTeacher(name, parts.train, processor, trust=settings.skip_overlap_check, **lists)
    if name == TREES:
        return LightGBMTeacher(parts.train, processor, trust=settings.skip_overlap_check)
    name, _, lists_of = name.partition("@")
    if not Path(name).is_dir():
        raise ValueError(
            f"there is no run folder {name!r}; classical teachers {nearest(name, sorted([*RECOMMENDERS, TREES]))}"
        )
    if isinstance(AutoConfig.from_pretrained(name), PolyRecCrossEncoderConfig):
        first = _one(lists_of, recipe, processor, parts, settings) if lists_of else None
        reader = PolyRecCrossEncoderProcessor.from_pretrained(name)
        return CrossEncoderTeacher(
            PolyRecCrossEncoder.from_pretrained(name), reader, first, settings.skip_overlap_check
        )
    if lists_of:
        raise ValueError(f"{name!r} is no cross-encoder: only those rerank the lists of another teacher (A@B)")
    model = PolyRecForRecommendation.from_pretrained(name)
    return LiveTeacher(model, PolyRecProcessor.from_pretrained(name), trust=settings.skip_overlap_check, **lists)


def _lists(recipe: Recipe, settings: ScoreSettings) -> dict[str, Any]:
    """How long lists are and for which temperature, as the flags or the recipe's plan say."""
    plan: Mapping[str, Any] = recipe.model.get("distillation") or {}
    tasks = DistillationConfig.parse(plan, [t["name"] for t in recipe.tasks]).tasks if plan else {}
    top_k = {name: own.top_k for name, own in tasks.items()} if settings.top_k is None else settings.top_k
    if settings.temperature is not None:
        return {"top_k": top_k, "temperature": settings.temperature}
    return {"top_k": top_k, "temperature": {name: own.temperature for name, own in tasks.items()}}
