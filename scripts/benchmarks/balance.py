"""What does sharing bring, and what does it cost? Expert layers by loss weightings, on feedback and on impressions.

* quality: a small budget of training (see balance.yaml) on the protocols of `feedback.py` and, with --impressions, of
  `impressions.py`; every layer with `fixed`, every weighting with `shared_bottom` and a few more cells, or all of them
  (--grid full). Nothing is chosen on test or validation here: the last weights count.
* cost: cpu time and peak memory of a training step for ALL cells, relative to shared_bottom+fixed, four pair tasks on a
  batch of ml-100k. Cells are measured in interleaved rounds, one step each, so that a busy machine meets all alike;
  memory is counted by torch's allocator, exactly.

--output is written after each cell and each round, and what is in it already is not measured again.

    python scripts/benchmarks/balance.py --data ../shared/data/ml-100k --impressions ../shared/data/kuairand_late \\
        --threads 1 --output runs/balance.json --markdown runs/balance.md
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import balance_report
import common
import yaml
from balance_grid import REFERENCE, Cell, cross_grid, full_grid

if TYPE_CHECKING:
    from polyrec import PolyRecProcessor, Splits

# How `fitting.load` cuts the log where the protocol's file does not say it.
SPLITS: dict[str, dict[str, Any]] = {"feedback": {"by": "time", "fractions": (0.8, 0.1, 0.1)}, "impressions": {}}
PARTS = ("cost", "quality")


def arguments() -> Namespace:
    """Read the command line and fix the number of threads, before torch is imported."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of ml-100k")
    parser.add_argument("--impressions", type=Path, help="folder of kuairand_late (default: without it)")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="of quality, 0 .. N - 1 (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="T", help="(default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="(default: both)")
    parser.add_argument("--grid", choices=("cross", "full"), default="cross", help="of quality (default: %(default)s)")
    parser.add_argument("--users", type=int, metavar="P", help="of quality, drawn at random (default: all)")
    parser.add_argument("--rounds", type=int, default=25, metavar="R", help="of cost (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON to write, and to go on with")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="tables to write, with a .png beside it")
    parser.add_argument("--config", type=Path, default=common.HERE / "balance.yaml", help="(default: %(default)s)")
    found = parser.parse_args()
    if min(found.seeds, found.threads, found.rounds) < 1 or (found.users is not None and found.users < 1):
        parser.error("--seeds, --threads, --rounds and --users must be at least 1")
    for name in common.THREAD_VARIABLES:
        os.environ[name] = str(found.threads)
    found.output.parent.mkdir(parents=True, exist_ok=True)
    return found


def configurations(args: Namespace) -> dict[str, dict[str, Any]]:
    """The protocols with what balance.yaml changes of them: "feedback", "impressions" and "cost"."""
    own = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    found = {}
    for name, base in (("feedback", "feedback"), ("impressions", "impressions"), ("cost", "feedback")):
        protocol = common.read_config(common.HERE / f"{base}.yaml")
        # The budget is too small for a choice among epochs: the last weights count.
        found[name] = changed(changed(protocol, own[name]), {"training": {"metric_for_best_model": None}})
    return found | {"grid": own["grid"], "reference_seeds": own["reference_seeds"]}


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol with other values; a section keeps what is not changed in it.

    Example:
        >>> changed({"model": {"dropout": 0.2, "pair_size": 8}, "ties": "order"}, {"model": {"dropout": 0.0}})
        {'model': {'dropout': 0.0, 'pair_size': 8}, 'ties': 'order'}
    """
    both = {key: {**config[key], **value} for key, value in changes.items() if isinstance(value, Mapping)}
    return {**config, **changes, **both}


def resume(report: common.Report, users: int | None) -> None:
    """Take over what --output holds already; results of another configuration are refused."""
    content = report.content
    content["config"] = json.loads(json.dumps({**content["config"], "people": users}))
    content["environment"]["commits"] = [content["environment"]["commit"]]
    if not report.path.exists():
        return
    before = json.loads(report.path.read_text(encoding="utf-8"))
    if before["config"] != content["config"]:
        raise ValueError(f"{report.path} was measured with another configuration or --users: choose another --output")
    commits = [*before["environment"]["commits"], *content["environment"]["commits"]]
    content["environment"]["commits"] = list(dict.fromkeys(commits))
    content["systems"] = before["systems"]
    content["cost"] = before.get("cost", {})


def methods() -> list[str]:
    """Methods of aggregation whose packages are installed; others are warned of."""
    from polyrec.modules.weighting.aggregation import METHODS

    found = []
    for method, modules in METHODS.items():
        if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
            common.warn(f"aggregation:{method} is left out, {', '.join(missing)} not installed")
        else:
            found.append(method)
    return found


def cost(args: Namespace, config: Mapping[str, Any], cells: Sequence[Cell], report: common.Report) -> None:
    """Measure steps of all cells, the memory first."""
    import balance_cost
    import fitting

    content: dict[str, Any] = report.content.setdefault("cost", {})
    names = {cell.name for cell in cells}
    # Rounds are compared within themselves: those that lack a cell are of no use.
    done = [found for found in content.get("rounds", []) if set(found) == names]
    content["rounds"] = done
    if len(done) >= args.rounds and names <= set(content.get("peak_bytes", {})):
        return
    processor, data = fitting.load(args.data, config, args.threads, **SPLITS["feedback"])
    with tempfile.TemporaryDirectory() as folder:
        steps = {cell: balance_cost.Step(processor, data, config, folder, cell) for cell in cells}
        batch = steps[REFERENCE].median_batch()
        content["batch"] = balance_cost.about(batch, processor) | {"width": config["model"]["hidden_size"]}
        print(f"cost of {len(cells)} cells on {content['batch']}", flush=True)
        for found in balance_cost.rounds(steps, batch, len(done), args.rounds):
            done.append(found)
            report.write()
            print(f"round {len(done)}/{args.rounds}  {sum(found.values()):.1f} cpu-s", flush=True)
        content["peak_bytes"] = {cell.name: step.peak_bytes(batch) for cell, step in steps.items()}
    content["step"], content["step_error"] = balance_report.relative(done)
    content["seconds"] = sorted(found[REFERENCE.name] for found in done)[len(done) // 2]
    content["bytes"] = content["peak_bytes"][REFERENCE.name]
    content["memory"] = {name: value / content["bytes"] for name, value in content["peak_bytes"].items()}
    report.write()


def quality(
    name: str, folder: Path, args: Namespace, config: Mapping[str, Any], cells: Sequence[Cell], report: common.Report
) -> None:
    """Train the cells that the report does not have yet on a data set."""
    import fitting

    seeds = {cell: args.seeds for cell in cells}
    seeds[REFERENCE] = max(args.seeds, report.content["config"]["reference_seeds"])
    held = report.content["systems"]
    todo = [cell for cell in cells if len(held.get(entry_name(name, cell), {}).get("seeds", [])) < seeds[cell]]
    if not todo:
        return
    with tempfile.TemporaryDirectory() as fewer:
        if args.users is not None:
            folder = with_fewer_users(folder, args.users, config["columns"].get("user", "user_id"), Path(fewer))
        processor, data = fitting.load(folder, config, args.threads, **SPLITS[name])
    for cell in todo:
        print(f"{name}: {cell.name}", flush=True)
        found = {**config, "model": cell.model(config["model"])}
        runs = [train(processor, data, found, seed) for seed in range(seeds[cell])]
        report.add(entry_name(name, cell), common.summarise(runs))


def entry_name(data: str, cell: Cell) -> str:
    """Of a cell in the report's systems."""
    return f"{data}/{cell.name}"


def train(processor: PolyRecProcessor, data: Splits, config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """One run as `common.summarise` wants it."""
    import fitting

    fitted = fitting.fit(processor, data, config, seed)
    tasks = [task.name for task in processor.tasks]
    return {
        "test": metrics(fitted.trainer.evaluate(data.test), tasks),
        "validation": metrics(fitted.log[-1], tasks),  # of the last weights, which are kept
        **fitted.costs,
    }


def metrics(found: Mapping[str, float], tasks: Sequence[str]) -> dict[str, float]:
    """Metrics of `PolyRecTrainer.evaluate` under the names of the report, with the mean improvement."""
    named = common.rename({key.removeprefix("eval_"): value for key, value in found.items()}, tasks)
    return {"mean_improvement": found["eval_mean_improvement"], **named}


def with_fewer_users(folder: Path, users: int, column: str, into: Path) -> Path:
    """A folder with the events of some people, drawn with seed 0, and all other tables as they are."""
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    for path in folder.glob("*.parquet"):
        if path.stem != "interactions":
            (into / path.name).symlink_to(path.resolve())
    table = pq.read_table(folder / "interactions.parquet")
    everyone = pc.unique(table[column]).sort()
    if users < len(everyone):
        drawn = np.sort(np.random.default_rng(0).permutation(len(everyone))[:users])
        table = table.filter(pc.is_in(table[column], everyone.take(drawn)))
    pq.write_table(table, into / "interactions.parquet")
    return into


def show(args: Namespace, report: common.Report) -> None:
    """Print the tables, and write them where asked."""
    systems = report.content["systems"]
    qualities = {
        data: {key.removeprefix(f"{data}/"): entry for key, entry in systems.items() if key.startswith(f"{data}/")}
        for data in SPLITS
    }
    qualities = {data: entries for data, entries in qualities.items() if entries}
    found = balance_report.text(report.content, qualities)
    print(f"\n{found}\nwritten to {args.output}")
    if args.markdown is None:
        return
    args.markdown.parent.mkdir(parents=True, exist_ok=True)
    args.markdown.write_text(found, encoding="utf-8")
    costs = report.content.get("cost", {})
    panels = {f"{key}, relative": costs[key] for key in ("step", "memory") if key in costs}
    for data, entries in qualities.items():
        panels[f"{data}: mean improvement, validation"] = {
            name: entry["validation"]["mean_improvement"] for name, entry in entries.items()
        }
    balance_report.heat_map(args.markdown.with_suffix(".png"), panels)


def main() -> None:
    """Measure what is asked for and not yet there, and write the report."""
    args = arguments()
    config = configurations(args)
    report = common.Report(args, config)
    resume(report, args.users)
    known = methods()
    if "cost" in args.parts:
        cost(args, config["cost"], full_grid(known), report)
    if "quality" in args.parts:
        cells = full_grid(known) if args.grid == "full" else cross_grid(known, config["grid"])
        for name, folder in (("feedback", args.data), ("impressions", args.impressions)):
            if folder is not None:
                quality(name, folder, args, config[name], cells, report)
    report.write()
    show(args, report)


if __name__ == "__main__":
    main()
