"""`polyrec finetune`: a trained run in, the same run with one task trained further out."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polyrec.core.files import write_atomically
from polyrec.core.lock import locked
from polyrec.core.swap import finish
from polyrec.data.splitter import Splits
from polyrec.evaluation import evaluator
from polyrec.models.polyrec.fingerprint import fingerprint, item_digest
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.evaluate import report_run
from polyrec.runs.facts import about_run
from polyrec.runs.prepare import read_run, split_of_run
from polyrec.runs.recipe import Recipe
from polyrec.runs.transaction import drafted, place_of
from polyrec.tracking.run_files import METRICS_NAME, RECIPE_NAME
from polyrec.tracking.training_file import TRAINING_NAME
from polyrec.training.arguments import PolyRecTrainingArguments
from polyrec.training.finetune import finetune
from polyrec.training.settings import FinetuneSettings

REPORT_NAME = "finetune.json"


def finetune_run(
    run: str, settings: FinetuneSettings, output: str | None = None, again: bool = False
) -> dict[str, Any]:
    """Train one task of a saved run further.

    Args:
        run: folder written by `polyrec train`.
        output: folder of the result; None: the run itself if other tasks stay as they are, else `<run>-<task>`.
        again: train once more what was trained last, with the same settings.

    Returns:
        the report of `polyrec.training.finetune.finetune`, which is appended to finetune.json.
    """
    place = Path(output or (run if settings.scope == "task" else f"{run.rstrip('/')}-{settings.task}"))
    target = place_of(place)
    with locked(target):  # from the first look at the run: of two at a time one would be lost
        finish(target)
        return _finetune(run, settings, place, target, again)


def _finetune(run: str, settings: FinetuneSettings, place: Path, target: Path, again: bool) -> dict[str, Any]:
    recipe = read_run(run)
    before = target / REPORT_NAME
    history = json.loads(before.read_text("utf-8")) if before.exists() else []
    if not again and target == Path(run).resolve() and history and history[-1]["settings"] == asdict(settings):
        raise ValueError(
            f"{run} has already been fine-tuned just so, so there is nothing to do; --again trains it once more"
        )
    if recipe.updates:
        raise ValueError(f"{run} has been updated and has no validation set: fine-tune before updates")
    fitted, parts = split_of_run(run, recipe)  # knows the training rows, which the saved one does not
    parts.require("valid", "test")
    processor = PolyRecProcessor.from_pretrained(run)
    model = PolyRecForRecommendation.from_pretrained(run)
    report = {"settings": asdict(settings), **finetune(model, fitted, parts, settings, recipe.training)}
    facts = about_run(recipe.to_dict()) | {"items": item_digest(processor), "processor": fingerprint(processor)}
    with drafted(target, facts) as draft:
        model.save_pretrained(draft)
        processor.save_pretrained(draft)
        for name in (RECIPE_NAME, TRAINING_NAME):
            if (Path(run) / name).exists():
                shutil.copy(Path(run) / name, draft / name)
        write_atomically(draft / REPORT_NAME, json.dumps([*history, report], indent=2) + "\n")
        _show(report, place)
        _write_metrics(model, processor, parts, recipe, draft)
    return report


def _write_metrics(
    model: PolyRecForRecommendation, processor: PolyRecProcessor, parts: Splits, recipe: Recipe, place: Path
) -> None:
    """Evaluate by the test set anew: figures of the model before would be shown for this one, e.g. in its card."""
    arguments = PolyRecTrainingArguments(output_dir=str(place), **recipe.training)
    predictions = evaluator.predict(
        model, parts.test, arguments.per_device_eval_batch_size, arguments.rank_k, arguments.exclude_seen
    )
    report_run(
        *(model, parts.train, parts.test, predictions, arguments, place / METRICS_NAME, processor, recipe.slices),
        valid=parts.valid,
    )


def _show(report: dict[str, Any], place: Path) -> None:
    task, before, after = report["settings"]["task"], report["before"], report["after"]
    print(f"{'metric of the validation part':34s} {'before':>9s} {'after':>9s}")
    for name in sorted(after):
        own = name.startswith(f"{task}_")
        if own or not any(name.startswith(f"{other}_") and same for other, same in report["others"].items()):
            print(f"{name:34s} {before[name]:9.4f} {after[name]:9.4f}")
    kept = [name for name, same in report["others"].items() if same]
    changed = [name for name, same in report["others"].items() if not same]
    if kept:
        print(f"bit-equal predictions before and after: {', '.join(kept)}")
    if changed:
        print(f"predictions that changed: {', '.join(changed)}")
    best = f"best epoch {report['best_epoch']}" if report["best_epoch"] else "no epoch was better than the start"
    print(f"{report['trained_parameters']:,} parameters trained in {report['cpu_seconds']:.1f} cpu-seconds; {best}")
    print(f"saved to {place}")
