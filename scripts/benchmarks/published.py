"""Protocol E: published next-item tables, with the recipe that `polyrec init` writes and nothing else.

Each user's last event tests and the one before validates; the whole catalog is ranked. Papers differ in whether a list
may hold what the user took before (S3-Rec leaves it out, most reproductions of TIGER do not) and in its length, so both
are reported at 5, 10 and 20. Settings come from the log (`polyrec init`), the same rule for every data set; the best
epoch is chosen on validation, baselines are tuned there, and the test part is read once per seed.

    python scripts/benchmarks/published.py --data ../shared/data/amazon_beauty --seeds 3 --output runs/published.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from polyrec.data.splitter import Splits
from polyrec.evaluation.baselines import baseline_table
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.init import recipe_of
from polyrec.runs.prepare import prepare
from polyrec.runs.recipe import Recipe, load_recipe
from polyrec.runs.train import build_trainer
from polyrec.training.trainer import PolyRecTrainer

LENGTHS = (5, 10, 20)
TASK = "next_item"
SELECTION = f"{TASK}_ndcg@10"


def lists(trainer: PolyRecTrainer, part: Any) -> dict[str, float]:
    """{policy metric: value} of a part, with the history left out of lists and in them."""
    found = {}
    for policy, excluded in (("without history", True), ("with history", False)):
        trainer.args.exclude_seen = excluded
        for trainer.args.rank_k in LENGTHS:
            metrics = trainer.evaluate(part)
            for metric in ("ndcg", "recall"):
                name = f"{metric}@{trainer.args.rank_k}"
                found[f"{policy} {name}"] = metrics[f"eval_{TASK}_{name}"]
    return found


def one_seed(recipe: Recipe, processor: PolyRecProcessor, parts: Splits, seed: int) -> dict[str, Any]:
    """Train, and judge the best epoch."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = {"metric_for_best_model": SELECTION, "save_total_limit": 1, "seed": seed, "output_dir": folder}
        trainer = build_trainer(recipe, processor, parts.train, parts.valid, quiet=True, **chosen)
        began = time.process_time()
        trainer.train()
        seconds = time.process_time() - began
        best = trainer.state.best_metric
    return {"test": lists(trainer, parts.test), "validation": best, "train_cpu_seconds": seconds}


def measured(data: Path, seeds: int) -> dict[str, Any]:
    """Figures of one data set: mean and standard deviation over seeds, and the baselines, which tune on validation."""
    values = recipe_of(str(data / "interactions.parquet"), None, None, {})
    recipe = load_recipe(values, {})
    processor, parts = prepare(recipe)
    runs = [one_seed(recipe, processor, parts, seed) for seed in range(seeds)]
    test = {name: [run["test"][name] for run in runs] for name in runs[0]["test"]}
    return {
        "recipe": recipe.to_dict(),
        "validation": [run["validation"] for run in runs],
        "train_cpu_seconds": [run["train_cpu_seconds"] for run in runs],
        "test": {n: {"mean": statistics.mean(v), "std": statistics.pstdev(v)} for n, v in test.items()},
        "baselines": baseline_table(processor, parts, LENGTHS, resamples=0)[TASK],
    }


def show(name: str, found: dict[str, Any]) -> None:
    """Print one data set's table; that of the baselines leaves the history out."""
    print(f"\n{name}: validation {SELECTION} " + " ".join(f"{v:.4f}" for v in found["validation"]))
    for metric, value in found["test"].items():
        print(f"  {metric:26}{value['mean']:.4f} (±{value['std']:.4f})")
    for system, metrics in found["baselines"].items():
        print(f"  {system:26}" + "  ".join(f"{k} {v:.4f}" for k, v in metrics.items() if k in ("ndcg@10", "recall@10")))


def main() -> None:
    """Measure the data sets that are named, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="folders with interactions.parquet")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 .. N - 1 (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON to write, after each data set")
    options = parser.parse_args()
    disable_progress_bar()
    report = {}
    for data in options.data:
        report[data.name] = measured(data, options.seeds)
        show(data.name, report[data.name])
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
