"""`polyrec train | evaluate | recommend`. Only what a command needs is imported, so `--help` is quick."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from polyrec.cli.recipe import load_recipe, parse_override, parse_task


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="polyrec", description="One multi-task recommender model from an event log.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a model from a YAML recipe, from flags, or from both (flags win)")
    train.add_argument(
        "recipe",
        nargs="?",
        help="YAML file; its keys are the flags below plus columns, split, processor, model, training",
    )
    train.add_argument("--interactions", metavar="PATH", help="event log, .parquet or .csv")
    train.add_argument("--items", metavar="PATH", help="item attributes")
    train.add_argument("--users", metavar="PATH", help="attributes of people")
    train.add_argument(
        "--task",
        action="append",
        metavar="NAME=HEAD[:LABEL]",
        help="e.g. next_item=retrieval, 'like=binary:rating >= 4'; repeat",
    )
    train.add_argument("--output", metavar="DIR", help="folder of the run (default: runs/latest)")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="e.g. training.num_train_epochs=3; repeat",
    )
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output folder")

    evaluate = commands.add_parser("evaluate", help="metrics of a trained run beside simple baselines")
    evaluate.add_argument("run", help="folder written by `polyrec train`")
    evaluate.add_argument(
        "--part", choices=["valid", "test"], default="test", help="which part of the split (default: test)"
    )
    evaluate.add_argument("--output", metavar="FILE", help="also write the metrics as JSON")

    recommend = commands.add_parser("recommend", help="recommend items to one person")
    recommend.add_argument("run", help="folder of a saved model and processor")
    recommend.add_argument(
        "--history",
        default="",
        metavar="IDS",
        help="item ids, oldest first, separated by commas; or a .parquet/.csv file of events",
    )
    recommend.add_argument(
        "--user", action="append", default=[], metavar="COLUMN=VALUE", help="an attribute of the person; repeat"
    )
    recommend.add_argument("-k", type=int, default=10, help="number of recommendations (default: 10)")
    recommend.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors that a user can mend are one line, not a traceback."""
    options = build_parser().parse_args(arguments)
    try:
        if options.command == "train":
            overrides: dict[str, Any] = dict(parse_override(text) for text in options.set)
            for name in ("interactions", "items", "users", "output"):
                if getattr(options, name) is not None:
                    overrides[name] = getattr(options, name)
            if options.task:
                overrides["tasks"] = [parse_task(text) for text in options.task]
            recipe = load_recipe(options.recipe, overrides)
            recipe.check()
            from polyrec.cli.train import train

            train(recipe, resume=options.resume)
        elif options.command == "evaluate":
            from polyrec.cli.evaluate import evaluate_run

            evaluate_run(options.run, options.part, options.output)
        else:
            from polyrec.cli.recommend import recommend

            recommend(options.run, options.history, options.user, options.k, options.json)
    except ValueError as error:
        print(f"polyrec {options.command}: {error}", file=sys.stderr)
        return 2
    return 0
