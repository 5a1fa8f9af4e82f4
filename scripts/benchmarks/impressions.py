"""Protocol D: impressions with four kinds of feedback (click, long view, like, watch time), one model for all.

All exposures in time order; from timestamp 1651330969 on they test, the last 10% before it validate. The same weights
answer twice:

* (no prefix) prequential: everything strictly before the row's second is visible, the test period included;
* `frozen/`: nothing from the test period (for validation rows: from the validation period) on is visible but the row's
  own context.

`seen/` counts only people known from before the test. Per-person AUC (GAUC) is reported, but only its frozen value says
something: see `polyrec.evaluation.metrics.grouped_auc`. `item_statistics.parquet`, which holds the future, is not read.

Beside polyrec, the systems are polyrec with one part taken away, so that it is visible what each part brings:
`no_statistics` (running statistics), `no_past` (the table of what people did before the log), `no_attention` (of the
candidate over the events), `no_sequence` (no events are read at all: statistics only), `no_delay` (rows of training
always know everything before them), `random_ids` (id vectors start at random and are learnt) and `ple_uncertainty`
(the layer and the weighting that many take first).

    python scripts/benchmarks/impressions.py --data ../shared/data/kuairand_late --seeds 3 --threads 1 \\
        --systems polyrec,no_statistics,no_past,no_attention,no_sequence --output runs/impressions.json
"""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import common

if TYPE_CHECKING:
    import fitting
    import numpy as np

    from polyrec.data.sequences import SequenceDataset

TASKS = ("click", "long_view", "like")
METRICS = (*(f"{task}/{m}" for task in TASKS for m in ("auc", "gauc", "logloss")), "watch/rmse", "watch/mae")
VIEWS = ("", "seen/", "frozen/", "frozen/seen/")
COSTS = ("train_cpu_seconds", "train_wall_seconds", "rows_per_cpu_second", "parameters")

# What each variant changes: {dotted key of the configuration: value}.
VARIANTS: dict[str, dict[str, Any]] = {
    "polyrec": {},
    "no_statistics": {"processor.statistics": False},
    "no_past": {"columns.prior_history": None},
    "no_attention": {"model.candidate_attention_heads": 0},
    "no_sequence": {
        "model.candidate_attention_heads": 0,
        "processor.max_history": 1,
        "columns.prior_history_length": 0,
    },
    "no_delay": {"split.max_delay": 0, "split.delayed_share": None},
    "random_ids": {"model.item_cooccurrence": 0, "model.freeze_item_ids": False, "model.item_id_dropout": 0.3},
    "ple_uncertainty": {"model.experts": "ple", "model.expert_options": {}, "model.weighting": "uncertainty"},
}


def polyrec(args: Namespace, config: Mapping[str, Any]) -> dict[str, Any]:
    """Train with every seed and score both views of validation and test."""
    import fitting  # here, because the number of threads must be set before torch is imported

    processor, data = fitting.load(args.data, config, args.threads)
    views = {
        part: {"": rows, "frozen/": processor.without_updates(rows, _begin(rows))}
        for part, rows in (("valid", data.valid), ("test", data.test))
    }
    # Known from before the test: from the validation rows, too.
    known = {"valid": data.train.user_codes(), "test": _users(data.train, data.valid)}
    runs = []
    for seed in range(args.seeds):
        fitted = fitting.fit(processor, data, config, seed)
        runs.append(
            {
                "test": _score(fitted, views["test"], known["test"]),
                "validation": _score(fitted, views["valid"], known["valid"]),
                **fitted.costs,
                "rows_per_cpu_second": fitting.labelled(data.train) * fitted.epochs / fitted.clock.cpu,
                "log": fitted.log,
            }
        )
    return common.summarise(runs)


def _begin(dataset: SequenceDataset) -> float:
    """Time of a data set's first row, seconds."""
    return float(dataset.log.time[dataset.candidates.event].min())


def _users(*parts: SequenceDataset) -> np.ndarray:
    import numpy as np

    return np.concatenate([part.user_codes() for part in parts])


def _score(fitted: fitting.Fit, views: Mapping[str, SequenceDataset], known: np.ndarray) -> dict[str, float]:
    import numpy as np

    from polyrec.evaluation import evaluator

    result: dict[str, float] = {}
    for prefix, rows in views.items():
        groups = {"seen": np.isin(rows.user_codes(), known)}
        found = evaluator.evaluate(fitted.model, rows, fitted.trainer.predictions(rows), groups=groups)
        result |= {prefix + name: value for name, value in common.rename(found, fitted.model.pair_tasks).items()}
    return result


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with other values under dotted keys.

    Example:
        >>> changed({"model": {"dropout": 0.2}}, {"model.dropout": 0.0})
        {'model': {'dropout': 0.0}}
    """
    found = copy.deepcopy(dict(config))
    for key, value in changes.items():
        *path, last = key.split(".")
        section = found
        for name in path:
            section = section[name]
        section[last] = value
    return found


def main() -> None:
    """Run the systems asked for and write the report."""
    args = common.arguments(__doc__, "impressions.yaml", tuple(VARIANTS))
    config = common.read_config(args.config, args.epochs)
    report = common.Report(args, config)
    for system in args.systems:
        report.add(system, polyrec(args, changed(config, VARIANTS[system])))
    report.write()
    report.show([view + metric for view in VIEWS for metric in METRICS] + list(COSTS))


if __name__ == "__main__":
    main()
