"""Protocol B: how will a person like it? One multi-task model, scored by what it may know when it answers.

All events in time order: the first 80% train, the next 10% validate, the rest test. The model learns next item, like,
love and rating together. The same weights answer three times:

* (no prefix) prequential: everything strictly before the row is visible, the test period included;
* `frozen/`: nothing after the training period is visible;
* `frozen_valid/`: nothing after the validation period is visible (what PEERS.md table B calls frozen; for validation
  rows it is the same as `frozen/`).

`seen/` counts only people known from training, 1,418 of 10,000 test rows of ml-100k. Weights are chosen on validation;
the test set is read once per seed and view.

    python scripts/benchmarks/feedback.py --data ../shared/data/ml-100k --seeds 3 --threads 2 \\
        --systems polyrec,lightgbm --output runs/feedback.json
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import common
import peers

if TYPE_CHECKING:
    import fitting
    import numpy as np

    from polyrec import PolyRecProcessor, Splits
    from polyrec.data.sequences import SequenceDataset

METRICS = tuple(f"{task}/{m}" for task in ("like", "love") for m in ("auc", "gauc", "logloss"))
METRICS += ("rating/rmse", "rating/mae")
VIEWS = ("", "seen/", "frozen/", "frozen/seen/", "frozen_valid/", "frozen_valid/seen/")
COSTS = ("train_cpu_seconds", "train_wall_seconds", "rows_per_cpu_second", "parameters")


def polyrec(args: Namespace, config: Mapping[str, Any]) -> dict[str, Any]:
    """Train polyrec with every seed and score every view of validation and test."""
    import fitting  # here, because the number of threads must be set before torch is imported

    processor, data = fitting.load(args.data, config, args.threads, by="time", fractions=(0.8, 0.1, 0.1))
    views = {part: _views(processor, data, part) for part in ("valid", "test")}
    runs = []
    for seed in range(args.seeds):
        fitted = fitting.fit(processor, data, config, seed)
        rows = fitting.labelled(data.train) * fitted.epochs
        runs.append(
            {
                "test": _score(fitted, views["test"], data.train.user_codes()),
                "validation": _score(fitted, views["valid"], data.train.user_codes()),
                **fitted.costs,
                "rows_per_cpu_second": rows / fitted.clock.cpu,
                "log": fitted.log,
            }
        )
    return common.summarise(runs)


def _views(processor: PolyRecProcessor, data: Splits, part: str) -> dict[str, SequenceDataset]:
    """The same rows by what is known when they are answered."""
    rows = getattr(data, part)
    cutoffs = {"frozen/": _begin(data.valid), "frozen_valid/": _begin(rows)}
    return {"": rows} | {view: processor.without_updates(rows, cutoff) for view, cutoff in cutoffs.items()}


def _begin(dataset: SequenceDataset) -> float:
    """Time of a data set's first row, seconds."""
    return float(dataset.log.time[dataset.candidates.event].min())


def _score(fitted: fitting.Fit, views: Mapping[str, SequenceDataset], known: np.ndarray) -> dict[str, float]:
    import numpy as np

    from polyrec.evaluation import evaluator

    result: dict[str, float] = {}
    tasks = fitted.model.pair_tasks
    for prefix, rows in views.items():
        groups = {"seen": np.isin(rows.user_codes(), known)}
        found = evaluator.evaluate(fitted.model, rows, fitted.trainer.predictions(rows), groups=groups)
        result |= {prefix + name: value for name, value in common.rename(found, tasks).items()}
    return result


def main() -> None:
    """Run the systems asked for and write the report."""
    args = common.arguments(__doc__, "feedback.yaml", ("polyrec", "lightgbm"))
    config = common.read_config(args.config, args.epochs)
    report = common.Report(args, config)
    for system in args.systems:
        report.add(system, polyrec(args, config) if system == "polyrec" else peers.lightgbm(args))
    report.write()
    report.show([view + metric for view in VIEWS for metric in METRICS] + list(COSTS))


if __name__ == "__main__":
    main()
