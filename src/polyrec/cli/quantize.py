"""`polyrec quantize`: a run in, the same run with weights of 8 bits and what that changed out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from polyrec.cli.evaluate import parts_of_run
from polyrec.cli.prepare import RECIPE_NAME, read_run
from polyrec.data.sequences import SequenceDataset
from polyrec.distillation.live import LiveTeacher
from polyrec.evaluation import evaluator
from polyrec.evaluation.page import Section, Table, markdown, plain
from polyrec.evaluation.throughput import one_question_each, people_per_second
from polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.processing_polyrec import PolyRecProcessor
from polyrec.training.arguments import PolyRecTrainingArguments

REPORT_NAME = "quantize"


def quantize_run(run: str, output: str | None = None) -> dict[str, Any]:
    """Write a run with weights of 8 bits.

    Args:
        run: folder of a trained run; its recipe says where the data lie by which both are measured.
        output: folder of the result; None: `<run>-int8`.

    Returns:
        the report: {"before", "after": {"bytes", "people_per_second", "metrics" of the test part}}, which is also
        written as quantize.json and quantize.md.
    """
    recipe, place = read_run(run), Path(output or f"{run.rstrip('/')}-int8")
    if place.resolve() == Path(run).resolve():
        raise ValueError("weights of 8 bits are not trained further, so the run itself stays: choose another --output")
    arguments = PolyRecTrainingArguments(output_dir=str(place), **recipe.training)
    model, processor = PolyRecForRecommendation.from_pretrained(run), PolyRecProcessor.from_pretrained(run)
    model.quantize()
    _, test = parts_of_run(run, recipe, "test")
    model.save_pretrained(place)
    processor.save_pretrained(place)
    shutil.copy(Path(run) / RECIPE_NAME, place / RECIPE_NAME)
    # What the files hold is what is measured.
    before, after = (
        PolyRecForRecommendation.from_pretrained(folder).to(arguments.device).eval() for folder in (run, place)
    )
    report = {
        "before": _measured(before, Path(run), test, arguments),
        "after": _measured(after, place, test, arguments),
    }
    lists = [t.name for t in processor.tasks if t.ranks_catalog]
    systems = {"before": LiveTeacher(before, processor), "after": LiveTeacher(after, processor)}
    for name, speed in people_per_second(systems, one_question_each(test, lists)).items():
        report[name]["people_per_second"] = speed
    text = markdown("Weights of 8 bits", [_section(report)])
    (place / f"{REPORT_NAME}.json").write_text(json.dumps(plain(report), indent=2) + "\n", encoding="utf-8")
    (place / f"{REPORT_NAME}.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"written to {place}")
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
        "metrics": evaluator.evaluate(model, test, predictions, arguments.rank_k),
    }


def _section(report: dict[str, Any]) -> Section:
    before, after = report["before"], report["after"]
    rows = [
        _row("file, MiB", before["bytes"] / 2**20, after["bytes"] / 2**20, ".3f"),
        _row("people per second", before["people_per_second"], after["people_per_second"], ",.0f"),
    ]
    rows += [_row(name, value, after["metrics"][name], ".4f") for name, value in sorted(before["metrics"].items())]
    points = [
        "Metrics of the test part. People per second: all pair tasks about one item and the best items of each list, "
        "each person once, in turns on one machine."
    ]
    return Section("Before and after", points, Table(["", "before", "after", "after / before"], rows))


def _row(name: str, before: float, after: float, form: str) -> list[str]:
    return [name, format(before, form), format(after, form), f"{after / before:.3f}" if before else ""]
