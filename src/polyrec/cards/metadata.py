"""The front of a card, as the Hub reads it: licence, data, base model, results of each task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from polyrec.evaluation.metric_names import MODEL, figures
from polyrec.runs.card_section import About
from polyrec.tracking.run_files import RunFiles

LIBRARY = "polyrec"


def card_data(run: RunFiles, about: About) -> ModelCardData:
    """What the Hub indexes; every value of `model-index` is one of metrics.json, unrounded."""
    teachers = teacher_names(run)
    tags = ["recommendation", "recommender-system", "multi-task", *sorted({t.head for t in run.tasks.values()})]
    more: dict[str, Any] = {}
    if teachers:
        more["distilled-from"] = teachers
        tags.append("distillation")
    if run.emissions:
        more["co2_eq_emissions"] = {
            "emissions": 1000 * float(run.emissions["emissions"]),  # grams, the file has kilograms
            "source": "codecarbon",
            "training_type": "pre-training",
        }
    return ModelCardData(
        license=about.license,
        language=about.language or None,
        library_name=LIBRARY,
        tags=[*dict.fromkeys([*tags, *about.tags])],
        datasets=about.datasets or None,
        base_model=base_models(run) or None,
        model_name=about.name or run.name,
        eval_results=_results(run, about),
        **more,
    )


def base_models(run: RunFiles) -> list[str]:
    """Pretrained models inside this one, by their name on the Hub; folders of one machine say nothing elsewhere."""
    inside = [run.config.get("text"), run.config.get("history_backbone")]
    names = [backbone["model"] for backbone in inside if backbone and backbone.get("model")]
    return [name for name in names if name.count("/") <= 1 and not Path(name).exists()]


def teacher_names(run: RunFiles) -> list[str]:
    """Who taught a student: runs by their folder's name, classical recommenders by theirs."""
    settings = run.distillation.get("settings", {})
    runs = [Path(name).name for name in settings.get("teachers", [])]
    return [*runs, *settings.get("classical", [])]


def _results(run: RunFiles, about: About) -> list[EvalResult] | None:
    name = about.datasets[0] if about.datasets else "the run's own data"
    found = []
    for task in run.tasks:
        values = run.metrics[task][MODEL]
        for metric, value in figures(values).items():
            interval = values.get("interval", {}).get(metric)
            found.append(
                EvalResult(
                    task_type="recommendation",
                    task_name="Recommendation",
                    dataset_type=name,
                    dataset_name=name,
                    dataset_split="test",
                    metric_type=metric,
                    metric_name=f"{task}: {metric}",
                    metric_value=value,
                    metric_args={"task": task, **({"interval_95_over_people": interval} if interval else {})},
                )
            )
    return found or None
