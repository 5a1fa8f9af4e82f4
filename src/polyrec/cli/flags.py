"""What commands of the command line share: the flags of a recipe, and how it is read."""

from __future__ import annotations

import argparse
import json
import sys
import types
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from polyrec.core.documented import field_help, sentence
from polyrec.core.schema import Columns
from polyrec.core.setting_words import bare, takes_list
from polyrec.core.settings import SettingError, annotations_of, nearest
from polyrec.core.swap import recover
from polyrec.runs.recipe import Recipe, load_recipe, parse_override, parse_task, read_recipe_file

# Fields that flags set, and how the flag is written, see `add_fields`.
COLUMN_FLAGS = {"user": "COLUMN", "item": "COLUMN", "time": "COLUMN", "time_format": "FORMAT"}
_RECIPE_FLAGS = {"interactions": "PATH", "items": "PATH", "users": "PATH", "prior_history": "PATH", "cache_dir": "DIR"}
Commands = Any  # argparse does not name the type of add_subparsers


def add_fields(
    parser: argparse.ArgumentParser, cls: type, spelled: Mapping[str, str], others: Collection[str] | None = None
) -> None:
    """Flags that set fields of a dataclass: type, choices, default and help are those of the field.

    A flag is named after its field ("--top-k" sets `top_k`), and "--no-top-k" where it turns off what is on by default.
    A list is given by repeating its flag.

    Args:
        spelled: {field: how it is written}, any of another flag ("--teacher"), a short one beside it ("-k") and what
            stands for the value in the help ("RUN").
        others: further fields that have flags; None: all.

    Example:
        >>> from polyrec.runs.recipe import RecipeUpdate
        >>> parser = argparse.ArgumentParser()
        >>> add_fields(parser, RecipeUpdate, {"holdout": "-s SHARE"}, others=())
        >>> parser.parse_args(["--holdout", "0.2"])
        Namespace(holdout=0.2)
    """
    for f in fields(cls):
        if f.name not in spelled and others is not None and f.name not in others:
            continue
        name, default, words = f.name, f.default, spelled.get(f.name, "").split()
        named = [word for word in words if word.startswith("-")]
        if not any(word.startswith("--") for word in named):
            named.append(f"--{'no-' * (default is True)}{name.replace('_', '-')}")
        how = _how(annotations_of(cls)[name], default)
        if metavar := [word for word in words if not word.startswith("-")]:
            how["metavar"] = metavar[0]
        text = "do not " * (default is True) + sentence(field_help(cls).get(name, ""))
        if not (isinstance(default, bool) or default in (None, MISSING, "", ()) or "(default" in text):
            text = f"{text} (default: {default})".strip()
        text += "; repeat" * (how.get("action") == "append")
        how["required"] = default is MISSING and f.default_factory is MISSING
        parser.add_argument(*named, dest=name, default=None, help=text.replace("%", "%%"), **how)


def _how(annotation: Any, default: Any) -> dict[str, Any]:
    """Arguments of `add_argument` that follow from what a field takes."""
    kind = bare(annotation)
    if get_origin(kind) in (Union, types.UnionType):
        return _how(get_args(kind)[0], default)
    if kind is bool:
        return {"action": "store_false" if default is True else "store_true"}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if takes_list(kind):
        return {"action": "append"}
    return {"type": kind}


def read_fields(options: argparse.Namespace, cls: type) -> Any:
    """The dataclass that flags describe; fields that no flag was given for keep their defaults."""
    try:
        return cls(**chosen_flags(options, [f.name for f in fields(cls)]))
    except SettingError as error:
        flag = error.name.rpartition(".")[2].replace("_", "-")
        raise SettingError(f"--{flag}", error.problem) from error


def add_recipe(parser: argparse.ArgumentParser, output: str, metavar: str = "DIR") -> None:
    """What every command has that reads a recipe."""
    parser.add_argument(
        "recipe",
        nargs="?",
        help="YAML file; its keys are the options below plus columns, split, processor, model, training, tune. Or an "
        "event log: columns are found and tasks proposed as in `polyrec init`",
    )
    add_fields(parser, Recipe, _RECIPE_FLAGS, others=())
    parser.add_argument("--output", metavar=metavar, help=output)  # each command has a default of its own
    add_fields(parser, Columns, COLUMN_FLAGS, others=())
    parser.add_argument(
        "--task",
        action="append",
        metavar="NAME=HEAD[:LABEL]",
        help="e.g. next_item=retrieval, 'like=binary:rating >= 4'; repeat",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="e.g. training.num_train_epochs=3 or tasks.like.weight=0.5; repeat",
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


def chosen_flags(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The flags among some that were given; the others keep the defaults of what reads them."""
    return {name: value for name in names if (value := getattr(options, name, None)) is not None}


def add_index(parser: argparse.ArgumentParser) -> None:
    """How lists of a large catalog are found."""
    parser.add_argument(
        "--index",
        choices=("auto", "exact", "faiss"),
        default="auto",
        help="how lists are found: exact scores all items, faiss those that an index finds, auto (default) is faiss "
        "from 300,000 items on, if it is installed",
    )


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
    overrides |= chosen_flags(options, [*_RECIPE_FLAGS, "output"])
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
