"""The default recipe on many data sets: what `polyrec train events.csv` gives, beside every simple recommender.

Nothing is set by hand: `polyrec init` finds columns, tasks and settings, the same rule for every log. Each log is cut
by time and leave-one-out (sets of interactions: at random), and every task is measured beside the baselines that fit
it, which tune on validation as the model does (LightGBM among them, if it is installed).

    python scripts/benchmarks/defaults.py --data ../shared/data/ml-100k --output runs/defaults.json

With --development the rows that would test are dropped before anything is read, and the split cuts what is left: for
whoever changes a default. The test part is for the table alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from transformers.utils.logging import disable_progress_bar

from polyrec.data.splitter import Splits
from polyrec.evaluation.baselines import baseline_table
from polyrec.evaluation.metric_names import MODEL, best_system, better_baselines, by_task, figures
from polyrec.evaluation.page import plain
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.init import recipe_of
from polyrec.runs.prepare import prepare
from polyrec.runs.recipe import Recipe, load_recipe
from polyrec.runs.train import build_trainer

SHARES = [0.8, 0.1, 0.1]
SPLITS = {"time": {"by": "time", "fractions": SHARES}, "leave_one_out": {"by": "leave_one_out"}}


def recipes(events: Path, splits: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{name of the split: values of the recipe}; a log whose times are counts, or that has none, is cut one way."""
    values = recipe_of(str(events), None, None, {})
    own = values["split"]["by"]
    wanted = splits if own == "time" else [own]
    return {name: {**values, "split": SPLITS.get(name, values["split"])} for name in wanted}


def without_test(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe of a log without its newest rows: those that its split would test."""
    user, time_of = values["columns"]["user"], values["columns"]["time"]
    rows, by = pd.read_parquet(values["interactions"]), values["split"]["by"]
    if by == "random":
        rows = rows.sample(frac=1 - SHARES[-1], random_state=0).sort_index()
    elif by == "time":
        rows = rows[rows[time_of].rank(method="min", pct=True) <= 1 - SHARES[-1]]
    else:
        rows = rows.sort_values(time_of, kind="stable") if time_of in rows else rows
        rows = rows[rows.groupby(user).cumcount(ascending=False) > 0]
    path = folder / "interactions.parquet"
    rows.to_parquet(path)
    return {**values, "interactions": str(path)}


def one_seed(recipe: Recipe, processor: PolyRecProcessor, parts: Splits, seed: int) -> dict[str, Any]:
    """Train as `polyrec train` does, and measure the test part beside the baselines."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(
            recipe, processor, parts.train, parts.valid, quiet=True, seed=seed, output_dir=folder, save_total_limit=1
        )
        began = time.process_time()
        trainer.train()
        seconds = time.process_time() - began
        found = {name.removeprefix("eval_"): value for name, value in trainer.evaluate(parts.test).items()}
    return {
        "tasks": by_task(found, parts.test.task_names),
        "train_cpu_seconds": seconds,
        "best_validation": trainer.state.best_metric,
        "chosen": {name: str(weight) for name, weight in trainer.validated.items()},
    }


def measured(values: dict[str, Any], seeds: int) -> dict[str, Any]:
    """Figures of one log and split: each seed's, their means, and the baselines."""
    recipe = load_recipe(values, {})
    processor, parts = prepare(recipe)
    baselines = baseline_table(processor, parts, resamples=0)
    runs = [one_seed(recipe, processor, parts, seed) for seed in range(seeds)]
    tasks = {}
    for task, first in runs[0]["tasks"].items():
        means = {name: statistics.mean(run["tasks"][task][name] for run in runs) for name in first}
        tasks[task] = {MODEL: means, **baselines[task]}
    return {"recipe": recipe.to_dict(), "runs": runs, "tasks": tasks}


def lines(name: str, found: dict[str, Any]) -> list[str]:
    """One line per task: the model's metrics, each beside the best baseline; ! where that is better."""
    text = []
    for task, systems in found["tasks"].items():
        better, cells = better_baselines(systems), []
        others = {system: values for system, values in systems.items() if system != MODEL}
        for metric, value in figures(systems[MODEL]).items():
            if any(metric in figures(values) for values in others.values()):
                best = best_system(others, metric)
                mark = "!" if metric in better else " "
                cells.append(f"{metric} {value:.4f}{mark} ({best} {others[best][metric]:.4f})")
        text.append(f"{name:32}{task:18}" + "  ".join(cells))
    return text


def main() -> None:
    """Measure the data sets that are named, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, nargs="+", help="tables of events, or folders with interactions.parquet"
    )
    parser.add_argument("--splits", nargs="+", choices=list(SPLITS), default=list(SPLITS), help="(default: both)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 .. N - 1 (default: %(default)s)")
    parser.add_argument("--development", action="store_true", help="drop the rows that would test, and cut the others")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON to write, after each log")
    options = parser.parse_args()
    disable_progress_bar()
    report: dict[str, Any] = {}
    for data in options.data:
        events = data / "interactions.parquet" if data.is_dir() else data
        for split, values in recipes(events, options.splits).items():
            name = f"{data.name if data.is_dir() else data.stem} {split}"
            with tempfile.TemporaryDirectory() as folder:
                used = without_test(values, Path(folder)) if options.development else values
                report[name] = measured(used, options.seeds)
            print("\n".join(lines(name, report[name])), flush=True)
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(plain(report), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
