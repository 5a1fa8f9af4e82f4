"""What commands of the command line share: the flags of a recipe, and how it is read."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyrec.core.settings import nearest
from polyrec.core.swap import recover
from polyrec.runs.recipe import Recipe, load_recipe, parse_override, parse_task, read_recipe_file

COLUMN_FLAGS = ("user", "item", "time", "time_format")
Commands = Any  # argparse does not name the type of add_subparsers


def add_recipe(parser: argparse.ArgumentParser, output: str) -> None:
    """What every command has that reads a recipe."""
    parser.add_argument(
        "recipe",
        nargs="?",
        help="YAML file; its keys are the options below plus columns, split, processor, model, training, tune. Or an "
        "event log: columns are found and tasks proposed as in `polyrec init`",
    )
    parser.add_argument("--interactions", metavar="PATH", help="event log, .parquet or .csv")
    parser.add_argument("--items", metavar="PATH", help="item attributes")
    parser.add_argument("--users", metavar="PATH", help="user attributes")
    add_columns(parser)
    parser.add_argument(
        "--prior-history", metavar="PATH", help="items that users interacted with before the log: lists of item ids"
    )
    parser.add_argument(
        "--task",
        action="append",
        metavar="NAME=HEAD[:LABEL]",
        help="e.g. next_item=retrieval, 'like=binary:rating >= 4'; repeat",
    )
    parser.add_argument("--output", metavar="DIR", help=output)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="e.g. training.num_train_epochs=3 or tasks.like.weight=0.5; repeat",
    )


def add_columns(parser: argparse.ArgumentParser) -> None:
    """The flags that say which column is what."""
    for role in ("user", "item", "time"):
        more = "; row: rows are in order of time; none: there are no times" if role == "time" else ""
        parser.add_argument(f"--{role}", metavar="COLUMN", help=f"{role} column of the event log{more}")
    parser.add_argument(
        "--time-format", metavar="FORMAT", help="format of times that are not ISO 8601, e.g. %%d.%%m.%%Y"
    )


def cutoffs(text: str) -> list[int]:
    """List cut-offs from text.

    Example:
        >>> cutoffs("3,5,10")
        [3, 5, 10]
    """
    try:
        found = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of cut-offs >= 1: give e.g. 3,5,10")
    return found


def chosen_flags(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The flags among some that were given; the others keep the defaults of what reads them."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def add_import(command: argparse.ArgumentParser) -> None:
    """The flag of commands that build or load a model."""
    command.add_argument(
        "--import",
        action="append",
        default=[],
        dest="imports",
        metavar="NAME",
        help="module or .py file that registers heads or other parts of your own; repeat",
    )


def read_recipe(options: argparse.Namespace, suffix: str = "", imports: bool = True) -> Recipe:
    """The recipe of a command; without --output its own output, `suffix` added.

    Args:
        imports: import what it names in `import:`.
    """
    overrides: dict[str, Any] = {}
    if options.task:
        overrides["tasks"] = [parse_task(text) for text in options.task]
    overrides |= chosen_flags(options, ("interactions", "items", "users", "prior_history", "output"))
    given = chosen_flags(options, COLUMN_FLAGS)
    values = _of_table(options, given) if options.recipe is not None else None
    if values is None:
        overrides |= {f"columns.{name}": value for name, value in given.items()}
    overrides |= dict(parse_override(text) for text in options.set)
    recipe = load_recipe(options.recipe if values is None else values, overrides, imports)
    recipe.imports = list(dict.fromkeys([*recipe.imports, *options.imports]))
    if options.output is None:
        recipe.output += suffix
    recipe.check()
    return recipe


def _of_table(options: argparse.Namespace, given: dict[str, str]) -> dict[str, Any] | None:
    """The values of a recipe if a command was given a table of events in its place."""
    from polyrec.data.tables import is_table

    if not is_table(options.recipe):
        return None
    if options.interactions is not None:
        raise ValueError(f"the event log is given twice, as {options.recipe} and as --interactions: leave one out")
    from polyrec.runs.init import recipe_of

    return recipe_of(options.recipe, options.items, options.users, given)


def check_run_folders(options: argparse.Namespace) -> None:
    """Refuse a run that does not exist, with the most similar folder beside it.

    A name whose parent is no folder may be one on the Hub.
    """
    given = [getattr(options, "run_folder", None), *getattr(options, "run_folders", [])]
    for name in filter(None, given):
        path = Path(name)
        beside = path.parent
        if recover(path).exists() or not beside.is_dir() or (beside == Path() and not name.startswith(".")):
            continue
        folders = [str(p) for p in sorted(beside.iterdir()) if p.is_dir() and not p.name.startswith(".")]
        raise ValueError(f"no such run: {name}; {nearest(name, folders)}")


def recorded_imports(options: argparse.Namespace) -> str:
    """The end of a message about an unknown part: what the recipe of the run imports."""
    run = getattr(options, "run_folder", None)
    if run is None or not (path := Path(run) / "recipe.yaml").is_file():
        return ""
    names = read_recipe_file(path).get("import")
    if not isinstance(names, list) or not names:
        return ""
    return "; this run was trained with " + " ".join(f"--import {name}" for name in names)


def json_line(row: Any) -> str:
    """A row as JSON that the output can hold: what its encoding lacks is escaped."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    return json.dumps(row, ensure_ascii=not encoding.startswith("utf"), default=str)
