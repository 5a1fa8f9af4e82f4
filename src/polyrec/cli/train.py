"""`polyrec train`: recipe in, run folder out."""

from __future__ import annotations

from pathlib import Path

import yaml
from transformers import EarlyStoppingCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint

from polyrec.cli.evaluate import RECIPE_NAME, report_run
from polyrec.cli.recipe import Recipe
from polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.processing_polyrec import PolyRecProcessor, Splits
from polyrec.training.arguments import PolyRecTrainingArguments
from polyrec.training.trainer import PolyRecTrainer


def prepare(recipe: Recipe) -> tuple[PolyRecProcessor, Splits]:
    """The processor and the split of a recipe."""
    processor = PolyRecProcessor.fit(
        recipe.interactions, recipe.items, recipe.users, tasks=recipe.tasks, columns=recipe.columns, **recipe.processor
    )
    return processor, processor.split(recipe.interactions, **recipe.split)


def train(recipe: Recipe, resume: bool = False) -> dict:
    """Train, keep the best weights, evaluate on the test part, and save all of it.

    The run folder holds the model, the processor, recipe.yaml and metrics.json.

    Returns:
        the report of `polyrec.evaluation.report.compare_with_baselines`.
    """
    processor, parts = prepare(recipe)
    training = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "logging_steps": 10,
        **recipe.training,
    }
    if training["eval_strategy"] != "no" and training["save_strategy"] != "no":
        training = {
            "load_best_model_at_end": True,
            "metric_for_best_model": "mean_improvement",
            "greater_is_better": True,
            **training,
        }
    arguments = PolyRecTrainingArguments(output_dir=recipe.output, **training)
    set_seed(arguments.seed)
    model = PolyRecForRecommendation(processor.model_config(**recipe.model))
    trainer = PolyRecTrainer(
        model, arguments, train_dataset=parts.train, eval_dataset=parts.valid, processing_class=processor
    )
    if recipe.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(recipe.early_stopping_patience))
    trainer.train(
        resume_from_checkpoint=get_last_checkpoint(recipe.output) if resume and Path(recipe.output).exists() else None
    )
    trainer.save_model(recipe.output)
    predictions = trainer.predict(parts.test)
    if not trainer.is_world_process_zero():
        return {}
    (Path(recipe.output) / RECIPE_NAME).write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False), encoding="utf-8")
    report = report_run(model, parts.train, parts.test, predictions, arguments, Path(recipe.output) / "metrics.json")
    print(f"saved to {recipe.output}; try: polyrec recommend {recipe.output} --history ID,ID,...")
    return report
