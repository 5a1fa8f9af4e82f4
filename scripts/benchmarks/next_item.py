"""Protocol A: what does a person take next? One multi-task model, measured on its lists and on its training speed.

Each person's last event tests and the one before validates, in (time, file order) order; the whole catalog is ranked
without the person's history. The model learns next item, like, love and rating together. Weights are chosen by
validation NDCG@10; the test set is read once per seed.

`polyrec_text` is the same model with the items' texts (--model, frozen) for items without a trained id vector; on the
items that all know it is to be as good.

Speed is trained sequence positions per wall second (`…_cpu`: per cpu second, steadier on a shared machine): those that
have seen at least one event and whose next item is known (the same 97,171 of ml-100k that RecBole turns into prefixes).
Peers run in fp32; systems are measured one after the other with the same number of threads.

    python scripts/benchmarks/next_item.py --data ../shared/data/ml-100k --seeds 3 --threads 2 \\
        --systems polyrec,rectools,recbole --output runs/next_item.json
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import common
import peers

METRICS = peers.METRICS_A
BEST_PEER_VALIDATION = 0.1215  # NDCG@10 of RecBole's SASRec and GRU4Rec, PEERS.md table A
COSTS = ("train_cpu_seconds", "train_wall_seconds", "train_cpu_seconds_to_pass_peer", "parameters")
SPEEDS = ("positions_per_second_fp32", "positions_per_second_bf16", "examples_per_second", "examples_per_second_cpu")


def polyrec(args: Namespace, config: Mapping[str, Any]) -> dict[str, Any]:
    """Train and test polyrec with every seed, then measure its speed."""
    import fitting  # here, because the number of threads must be set before torch is imported

    processor, data = fitting.load(args.data, config, args.threads, by="leave_one_out")
    tasks = [task.name for task in processor.tasks]
    runs = []
    for seed in range(args.seeds):
        fitted = fitting.fit(processor, data, config, seed)
        runs.append(
            {
                "test": _metrics(fitted.trainer.evaluate(data.test), tasks),
                "validation": _metrics(fitted.trainer.evaluate(data.valid), tasks),
                **fitted.costs,
                "train_cpu_seconds_to_pass_peer": _cpu_seconds_to_pass(fitted.log),
                "log": fitted.log,
            }
        )
    entry = common.summarise(runs)
    for precision in ("fp32", "bf16") if args.speed_seconds else ():
        wall, cpu = fitting.throughput(processor, data, config, args.speed_seconds, bf16=precision == "bf16")
        entry |= {f"positions_per_second_{precision}": wall, f"positions_per_second_{precision}_cpu": cpu}
    return entry


def with_text(config: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The configuration with a frozen text encoder that speaks for items whose id is unknown or dropped."""
    text = {"model": model, "template": "{title} ({release_year}). {genres}"}
    changes = {"text": {"fusion": "fallback", "start": "collaborative"}, "item_id_dropout": 0.1}
    return {
        **config,
        "processor": {**config["processor"], "text": text},
        "model": {**config["model"], **changes},
    }


def _metrics(found: Mapping[str, float], tasks: list[str]) -> dict[str, float]:
    named = common.rename({k.removeprefix("eval_"): v for k, v in found.items()}, tasks, bare="next_item")
    return {k: v for k, v in named.items() if not k.endswith("gauc")}  # there is one row a person


def _cpu_seconds_to_pass(log: list[dict[str, float]]) -> float | None:
    """Training time until validation first passed the best peer's; None if it never did."""
    passed = (entry["cpu_seconds"] for entry in log if entry["eval_next_item_ndcg@10"] > BEST_PEER_VALIDATION)
    return next(passed, None)


def main() -> None:
    """Run the systems asked for and write the report."""
    args = common.arguments(__doc__, "next_item.yaml", ("polyrec", "polyrec_text", *peers.PROTOCOL_A), model=None)
    if "polyrec_text" in args.systems and args.model is None:
        raise SystemExit("polyrec_text needs --model, e.g. --model sentence-transformers/all-MiniLM-L6-v2")
    config = common.read_config(args.config, args.epochs)
    report = common.Report(args, config)
    for system in args.systems:
        if system in peers.PROTOCOL_A:
            report.add(system, peers.next_item(system, args))
        else:
            report.add(system, polyrec(args, config if system == "polyrec" else with_text(config, args.model)))
    report.ratio("rectools_fp32", "positions_per_second_fp32", "rectools")
    report.ratio("rectools_bf16", "positions_per_second_bf16", "rectools")
    report.ratio("recbole", "positions_per_second_fp32", "recbole")
    report.write()
    report.show([*METRICS, *COSTS, *SPEEDS])


if __name__ == "__main__":
    main()
