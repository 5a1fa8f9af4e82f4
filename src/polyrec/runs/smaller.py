"""A run in, the same run with fewer bytes and what that changed out: what `polyrec quantize` and `factorize` share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyrec.core.files import write_atomically
from polyrec.core.manifest import read_manifest
from polyrec.data.sequences import SequenceDataset
from polyrec.distillation.live import LiveTeacher
from polyrec.distillation.throughput import one_example_each, users_per_second
from polyrec.evaluation import evaluator
from polyrec.evaluation.page import Section, Table, markdown, plain
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.evaluate import parts_of_run
from polyrec.runs.prepare import read_run
from polyrec.runs.transaction import new_run, place_of
from polyrec.tracking.run_files import RECIPE_NAME
from polyrec.training.arguments import PolyRecTrainingArguments

METRICS_POINT = (
    "Metrics of the test set. Users per second: all pair tasks about one item and the best items of each list, each "
    "user once, in turns on one machine."
)


def write_smaller(
    run: str, place: Path, name: str, title: str, change: Callable[[PolyRecForRecommendation], list[str]]
) -> dict[str, Any]:
    """Change a run's model, save it as a run of its own, and measure both by what their files hold.

    Args:
        run: folder of a trained run; its recipe says where the data lie by which both are measured.
        place: folder of the result.
        name: of the report, <name>.json and <name>.md.
        title: of the report.
        change: the model, in place; returns what to say of it.

    Returns:
        {"before", "after": {"bytes", "parameters", "people_per_second", "metrics" of the test part}, "points"}.
    """
    recipe = read_run(run)
    if place_of(place) == Path(run).resolve():
        raise ValueError("the run itself stays, to go back to: choose another --output")
    arguments = PolyRecTrainingArguments(output_dir=str(place), **recipe.training)
    model, processor = PolyRecForRecommendation.from_pretrained(run), PolyRecProcessor.from_pretrained(run)
    points = change(model)
    *_, test = parts_of_run(run, recipe, "test")
    manifest = read_manifest(run)
    with new_run(place, None if manifest is None else manifest.facts) as draft:
        model.save_pretrained(draft)
        processor.save_pretrained(draft)
        shutil.copy(Path(run) / RECIPE_NAME, draft / RECIPE_NAME)
        report = _compared(run, draft, processor, test, arguments) | {"points": points}
        text = markdown(title, [_section(report)])
        write_atomically(draft / f"{name}.json", json.dumps(plain(report), indent=2) + "\n")
        write_atomically(draft / f"{name}.md", text)
    print(text)
    print(f"written to {place}")
    return report


def _compared(
    run: str, place: Path, processor: PolyRecProcessor, test: SequenceDataset, arguments: PolyRecTrainingArguments
) -> dict[str, Any]:
    """What both runs' files hold."""
    before, after = (
        PolyRecForRecommendation.from_pretrained(folder).to(arguments.device).eval() for folder in (run, place)
    )
    report: dict[str, Any] = {
        "before": _measured(before, Path(run), test, arguments),
        "after": _measured(after, place, test, arguments),
    }
    lists = [t.name for t in processor.tasks if t.ranks_catalog]
    systems = {"before": LiveTeacher(before, processor), "after": LiveTeacher(after, processor)}
    for system, speed in users_per_second(systems, one_example_each(test, lists)).items():
        report[system]["people_per_second"] = speed
    return report


def _measured(
    model: PolyRecForRecommendation, folder: Path, test: SequenceDataset, arguments: PolyRecTrainingArguments
) -> dict[str, Any]:
    predictions = evaluator.predict(
        model,
        test,
        arguments.per_device_eval_batch_size,
        arguments.rank_k,
        arguments.exclude_seen,
        progress=not arguments.disable_tqdm,
    )
    return {
        "bytes": sum(file.stat().st_size for file in folder.glob("model*.safetensors")),
        "parameters": model.num_parameters(),
        "metrics": evaluator.evaluate(model, test, predictions, arguments.rank_k),
    }


def _section(report: dict[str, Any]) -> Section:
    before, after = report["before"], report["after"]
    rows = [_row("file, MiB", before["bytes"] / 2**20, after["bytes"] / 2**20, ".3f")]
    if before["parameters"] and after["parameters"]:  # int8 weights cannot be trained
        rows.append(_row("parameters", before["parameters"], after["parameters"], ",.0f"))
    rows.append(_row("users per second", before["people_per_second"], after["people_per_second"], ",.0f"))
    rows += [_row(name, value, after["metrics"][name], ".4f") for name, value in sorted(before["metrics"].items())]
    points = [*report["points"], METRICS_POINT]
    return Section("Before and after", points, Table(["", "before", "after", "after / before"], rows))


def _row(name: str, before: float, after: float, form: str) -> list[str]:
    return [name, format(before, form), format(after, form), f"{after / before:.3f}" if before else ""]
