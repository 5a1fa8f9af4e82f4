"""`polyrec evaluate`: the saved model on a part of its recipe's split, beside simple baselines."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from polyrec.cli.prepare import prepare
from polyrec.cli.recipe import Recipe
from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation import evaluator
from polyrec.evaluation.report import compare_with_baselines, format_report
from polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.schema import from_dict
from polyrec.training.arguments import PolyRecTrainingArguments

RECIPE_NAME = "recipe.yaml"


def report_run(
    model: PolyRecForRecommendation,
    train: SequenceDataset,
    test: SequenceDataset,
    predictions: evaluator.Predictions,
    arguments: PolyRecTrainingArguments,
    output: Path | None,
) -> dict:
    """Print the table of one part, and write it as JSON."""
    report = compare_with_baselines(model, train, test, predictions, arguments.rank_k, arguments.exclude_seen)
    print(format_report(report))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def evaluate_run(run: str, part: str = "test", output: str | None = None) -> dict:
    """Evaluate a run folder on the "valid" or "test" part of its own split."""
    path = Path(run) / RECIPE_NAME
    if not path.exists():
        raise ValueError(f"{run} has no {RECIPE_NAME}: it is not a folder written by `polyrec train`")
    recipe = from_dict(Recipe, yaml.safe_load(path.read_text(encoding="utf-8")))
    recipe.check()
    _, parts = prepare(recipe)
    model = PolyRecForRecommendation.from_pretrained(run)
    arguments = PolyRecTrainingArguments(output_dir=run, **recipe.training)
    dataset = parts.valid if part == "valid" else parts.test
    predictions = evaluator.predict(
        model.to(arguments.device),
        dataset,
        arguments.per_device_eval_batch_size,
        arguments.rank_k,
        arguments.exclude_seen,
        progress=True,
    )
    return report_run(model, parts.train, dataset, predictions, arguments, Path(output) if output else None)
