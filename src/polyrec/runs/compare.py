"""`polyrec compare`: train every variant with every seed on one split, then say whether the tasks help each other."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from tqdm.auto import tqdm

from polyrec.core.extras import check_extra
from polyrec.core.lock import locked
from polyrec.core.ranges import Range
from polyrec.core.schema import TaskConfig, parse_tasks
from polyrec.core.settings import read_value
from polyrec.core.swap import finish
from polyrec.data.splitter import Splits
from polyrec.evaluation import comparison_report, evaluator
from polyrec.evaluation.comparison import KINDS, Comparison, Variant, compare, plan
from polyrec.evaluation.comparison_runs import ComparisonRun, run_name
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.facts import about_recipe, claim_folder, fingerprint
from polyrec.runs.prepare import prepare
from polyrec.runs.recipe import Recipe
from polyrec.runs.stopping import train_safely
from polyrec.runs.train import build_trainer
from polyrec.runs.transaction import changes, place_of
from polyrec.training.arguments import PolyRecTrainingArguments
from polyrec.training.checkpoints import newest_checkpoint
from polyrec.training.cost import CostMeter, cost_of

_NO_RESULT = ("output", "tune")  # what of a recipe changes no result


def compare_recipe(
    recipe: Recipe,
    seeds: int = 3,
    kinds: Sequence[str] = KINDS,
    resamples: int = 1000,
    html: bool = True,
) -> Comparison:
    """Train what is not trained yet, compare, and write the report into the recipe's output folder.

    Each variant has the split, the inputs, the epochs and the selection by validation of the recipe. Seeds are
    `training.seed`, + 1, + 2, ... and vary all that is drawn (first weights, dropout, order of windows and ties, views,
    delays, negatives, augmentation), but not the split. A finished run is kept in `runs/` and never repeated; one that
    was interrupted goes on from its last checkpoint. More seeds or variants may be asked for later. A folder that
    belongs to another recipe or other data is refused.

    Args:
        kinds: variants to train, see `polyrec.evaluation.comparison.plan`.
        resamples: of the bootstrap over users.
        html: write the page with plots, too; it needs matplotlib.
    """
    read_value(Annotated[int, Range(1, 1_000)], seeds, "--seeds")
    read_value(Annotated[int, Range(1, 1_000_000)], resamples, "--resamples")
    folder, about = place_of(recipe.output), about_recipe(recipe.to_dict(), _NO_RESULT)
    variants = plan([t["name"] for t in recipe.tasks], kinds)
    if html:
        check_extra("matplotlib", "report", "plots", ", or pass --no-html")  # before hours of training, not after
    with locked(folder):
        finish(folder)
        claim_folder(folder, about)
        result = _compare(recipe, folder, about, seeds, variants, resamples)
        with changes(folder) as draft:
            comparison_report.write(result, draft, html=html)
    print(comparison_report.to_markdown(result))
    written = "comparison.json, comparison.md" + (", comparison.html and PNG plots" if html else "")
    print(f"written to {recipe.output}: {written}")
    return result


def _compare(
    recipe: Recipe, folder: Path, about: dict[str, Any], seeds: int, variants: Sequence[Variant], resamples: int
) -> Comparison:
    """Train what is not there yet, and compare."""
    tasks = parse_tasks(recipe.tasks)
    processor, parts = prepare(recipe, verbose=True)
    parts.require("test")
    first = PolyRecTrainingArguments(output_dir=recipe.output, **recipe.training)
    jobs = [(v, first.seed + i) for i in range(seeds) for v in variants]
    runs, drawn_by = [], None
    for number, (variant, seed) in enumerate(
        tqdm(jobs, desc="Comparison", disable=first.disable_tqdm or None), start=1
    ):
        home = folder / "runs" / run_name(variant.name, seed)
        expected = fingerprint({**about, "tasks": variant.tasks, "seed": seed})
        run = ComparisonRun.load_whole(home)
        if run is not None:
            if run.fingerprint != expected:
                raise ValueError(
                    f"{home} does not belong to this recipe and data: delete it, or choose another --output"
                )
            said = "kept"
        else:
            if drawn_by != seed and recipe.split.get("max_delay"):  # delays are drawn with the split
                parts, drawn_by = prepare(recipe, seed)[1], seed
            run = _run(recipe, processor, parts, variant, seed, expected, home)
            said = f"{run.cost.wall_seconds:.0f} s"
        tqdm.write(f"[{number}/{len(jobs)}] {run.name}: trained on {', '.join(variant.tasks)} ({said})")
        runs.append(run)
    result = compare(
        runs,
        tasks,
        parts.test,
        first.rank_k,
        resamples,
        seed=first.seed,
        progress=lambda task: print(f"resampling users: {task}"),
    )
    result.notes += _lost_couplings(tasks, variants)
    return result


def _run(
    recipe: Recipe,
    processor: PolyRecProcessor,
    parts: Splits,
    variant: Variant,
    seed: int,
    expected: str,
    home: Path,
) -> ComparisonRun:
    """Train one variant, predict the test set and save both."""
    work = home.with_name(f".{home.name}.work")
    trainer = build_trainer(
        recipe,
        processor,
        parts.train,
        parts.valid,
        variant.tasks,
        [CostMeter()],
        quiet=True,
        seed=seed,
        data_seed=None,  # or all seeds would read the data in one order, with the same draws
        output_dir=str(work),
        restore_callback_states_from_checkpoint=True,
    )
    train_safely(trainer, newest_checkpoint(work), "the same command")
    predictions = trainer.predictions(parts.test)
    cost = cost_of(trainer)
    metrics = evaluator.evaluate(trainer.model, parts.test, predictions, trainer.args.rank_k)
    run = ComparisonRun(variant.name, variant.tasks, seed, expected, cost, metrics, predictions)
    run.save(home)
    shutil.rmtree(work, ignore_errors=True)  # checkpoints
    return run


def _lost_couplings(tasks: Sequence[TaskConfig], variants: Sequence[Variant]) -> list[str]:
    notes = []
    for task in sorted(tasks, key=lambda t: t.name):
        where = [v.name for v in variants if task.name in v.tasks and task.parent not in v.tasks]
        if task.parent is not None and where:
            notes.append(
                f"`{task.name}` follows from `{task.parent}` ({task.coupling}); where `{task.parent}` is not trained "
                f"it stands on its own: {', '.join(where)}."
            )
    return notes
