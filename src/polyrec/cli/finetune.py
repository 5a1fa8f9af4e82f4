"""`polyrec finetune`: a trained run in, the same run with one task trained further out."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polyrec.cli.evaluate import report_run
from polyrec.cli.prepare import RECIPE_NAME, prepare, read_run
from polyrec.cli.recipe import Recipe
from polyrec.evaluation import evaluator
from polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.processing_polyrec import PolyRecProcessor, Splits
from polyrec.tracking.run_files import METRICS_NAME
from polyrec.training.arguments import PolyRecTrainingArguments
from polyrec.training.finetune import FinetuneSettings, finetune

REPORT_NAME = "finetune.json"


def finetune_run(run: str, settings: FinetuneSettings, output: str | None = None) -> dict[str, Any]:
    """Train one task of a saved run further.

    Args:
        run: folder written by `polyrec train`.
        output: folder of the result; None: the run itself if other tasks stay as they are, else `<run>-<task>`.

    Returns:
        the report of `polyrec.training.finetune.finetune`, which is appended to finetune.json.
    """
    recipe = read_run(run)
    if recipe.updates:
        raise ValueError(f"{run} has been updated, which no validation part is left out of: fine-tune before updates")
    place = Path(output or (run if settings.scope == "task" else f"{run.rstrip('/')}-{settings.task}"))
    _, parts = prepare(recipe)
    parts.require("valid", "test")
    processor = PolyRecProcessor.from_pretrained(run)
    model = PolyRecForRecommendation.from_pretrained(run)
    report = {"settings": asdict(settings), **finetune(model, processor, parts, settings, recipe.training)}
    place.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(place)
    processor.save_pretrained(place)
    if place.resolve() != Path(run).resolve():
        shutil.copy(Path(run) / RECIPE_NAME, place / RECIPE_NAME)
    history = json.loads((place / REPORT_NAME).read_text("utf-8")) if (place / REPORT_NAME).exists() else []
    (place / REPORT_NAME).write_text(json.dumps([*history, report], indent=2) + "\n", encoding="utf-8")
    _show(report, place)
    _write_metrics(model, processor, parts, recipe, place)
    return report


def _write_metrics(
    model: PolyRecForRecommendation, processor: PolyRecProcessor, parts: Splits, recipe: Recipe, place: Path
) -> None:
    """Judge by the test part anew: figures of the model before would be told of this one, by its card for instance."""
    arguments = PolyRecTrainingArguments(output_dir=str(place), **recipe.training)
    predictions = evaluator.predict(
        model, parts.test, arguments.per_device_eval_batch_size, arguments.rank_k, arguments.exclude_seen
    )
    report_run(
        *(model, parts.train, parts.test, predictions, arguments, place / METRICS_NAME, processor, recipe.slices)
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
        print(f"bit-equal answers before and after: {', '.join(kept)}")
    if changed:
        print(f"answers that changed: {', '.join(changed)}")
    best = f"best epoch {report['best_epoch']}" if report["best_epoch"] else "no epoch was better than the start"
    print(f"{report['trained_parameters']:,} parameters trained in {report['cpu_seconds']:.1f} cpu-seconds; {best}")
    print(f"saved to {place}")
