"""`polyrec evaluate`: the saved model on a part of its recipe's split, beside simple baselines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from polyrec.core.files import write_atomically
from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation import evaluator
from polyrec.evaluation.baselines.table import released_at
from polyrec.evaluation.cold_start import cold_start, format_cold_start
from polyrec.evaluation.page import plain
from polyrec.evaluation.protocol import EVALUATION, evaluation_facts, format_facts
from polyrec.evaluation.report import MODEL, compare_with_baselines, format_report
from polyrec.evaluation.slices import popularity_bias, slice_groups, sliced
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.facts import check_data
from polyrec.runs.prepare import read_run, split_of_run
from polyrec.runs.recipe import Recipe
from polyrec.runs.transaction import put_file
from polyrec.runs.update import continue_run
from polyrec.training.arguments import PolyRecTrainingArguments
from polyrec.training.update import NEW


def report_run(
    model: PolyRecForRecommendation,
    train: SequenceDataset,
    test: SequenceDataset,
    predictions: evaluator.Predictions,
    arguments: PolyRecTrainingArguments,
    output: Path | None,
    processor: PolyRecProcessor,
    slices: Sequence[str] = (),
    part: str = "test",
    write: Callable[[Path, str], None] = write_atomically,
    valid: SequenceDataset | None = None,
    ks: Sequence[int] | None = None,
) -> dict:
    """Print the table of one split, and write it as JSON, with metrics of groups of rows.

    Args:
        valid: validation rows, which choose the baselines' settings; None: their defaults.
        ks: cut-offs of lists, the first decides; None: the training's `rank_k`. Lists of `predictions` are as long.
        part: which one it is, "test" or "valid".
        write: how; of a run that is there, its manifest changes, too.
        slices: attributes of items or users to group by, see `polyrec.evaluation.slices`.
    """
    facts: dict[str, Any] = {"part": part, "tasks": {}}
    known = {EVALUATION: facts}
    if processor.data_report is not None:
        known["_data"] = processor.data_report.to_dict()
    if not test.num_candidates:
        print(f"the split leaves no {part} rows: there are no figures")
        return _written(known, output, write)
    ks = list(ks or (arguments.rank_k,))
    began = time.perf_counter()
    report = compare_with_baselines(
        *(model, train, test, predictions, ks, arguments.exclude_seen),
        valid=valid if valid is not None and valid.num_candidates else None,
        released=released_at(processor),
    )
    spent = time.perf_counter() - began
    facts["tasks"] = evaluation_facts(model, test, predictions, arguments.exclude_seen)
    print(format_report(report) + format_facts(facts["tasks"]) + f"\nbaselines: {spent:,.1f} seconds")
    cold = cold_start(model, test, predictions, ks[0])
    print(format_cold_start(cold))
    for task, groups in cold.items():
        report[task][MODEL]["cold_start"] = groups
    if output is not None:
        counts = model.item_encoder.counts.cpu().numpy()
        members = slice_groups(train, test, processor, counts, tuple(slices))
        for task, found in sliced(model, test, predictions, members, ks[0]).items():
            report[task][MODEL]["slices"] = found
        for task, ranking in predictions.rankings.items():
            if task in report:
                lists = replace(ranking, top_ids=ranking.top_ids[:, : ks[0]])
                report[task][MODEL]["popularity"] = popularity_bias(test, lists, counts)
    return _written(report | known, output, write)


def _written(report: dict, output: Path | None, write: Callable[[Path, str], None]) -> dict:
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write(output, json.dumps(plain(report), indent=2) + "\n")
    return report


def evaluate_run(run: str, part: str = "test", output: str | None = None, ks: Sequence[int] | None = None) -> dict:
    """Evaluate a run folder on the "valid" or "test" part of its own split.

    The test set of a run that has been updated is what the last update held out.

    Args:
        ks: cut-offs of lists, the first decides; None: the training's `rank_k`.
    """
    recipe = read_run(run)
    train, valid, dataset = parts_of_run(run, recipe, part)
    model = PolyRecForRecommendation.from_pretrained(run)
    arguments = PolyRecTrainingArguments(output_dir=run, **recipe.training)
    predictions = evaluator.predict(
        model.to(arguments.device),
        dataset,
        arguments.per_device_eval_batch_size,
        max(ks or (arguments.rank_k,)),
        arguments.exclude_seen,
        progress=True,
        workers=arguments.dataloader_num_workers,
    )
    path, processor = Path(output) if output else None, PolyRecProcessor.from_pretrained(run)
    shown = processor, recipe.slices, part, put_file
    return report_run(model, train, dataset, predictions, arguments, path, *shown, valid, ks)


def parts_of_run(
    run: str, recipe: Recipe, part: str
) -> tuple[SequenceDataset, SequenceDataset | None, SequenceDataset]:
    """The training rows of a run, its validation rows, if any, and the rows that are asked for, "valid" or "test"."""
    if recipe.updates:
        return _updated_parts(run, recipe, part)
    _, parts = split_of_run(run, recipe)
    return parts.train, parts.valid, parts.valid if part == "valid" else parts.test


def _updated_parts(run: str, recipe: Recipe, part: str) -> tuple[SequenceDataset, None, SequenceDataset]:
    if part == "valid":
        raise ValueError(f"{run} has been updated and has no validation set: evaluate its test set")
    check_data(run, recipe.to_dict())
    processor = PolyRecProcessor.from_pretrained(run)
    log, statistics, parts = continue_run(recipe, processor)
    train = processor.training_set(log, parts.trained | parts.new, statistics)
    return train, None, processor.evaluation_set(log, parts.held[NEW], statistics)
