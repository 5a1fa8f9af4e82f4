"""Flags of rules: what a list may hold and in which order."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from polyrec.cli.flags import add_fields, chosen_flags
from polyrec.core.documented import field_help, sentence
from polyrec.core.rules import Rules
from polyrec.core.settings import SettingError

_TEXTS = {
    "where": "CONDITION",
    "seen": "CONDITION",
    "score": "SCORE",
    "diversity": "STRENGTH",
    "explore": "TEMPERATURE",
}
_IDS = ("candidates", "exclude")
_PAIRS = {"at_most": "COLUMN=N", "pins": "RANK=ID", "boosts": "CONDITION=NUMBER"}


def add_rules(parser: argparse.ArgumentParser) -> None:
    """What commands have that make lists.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_rules(parser)
        >>> parser.parse_args(["--where", "year > 2000", "--at-most", "genre=2"]).at_most
        ['genre=2']
    """
    about = field_help(Rules)
    parser.add_argument("--rules", metavar="FILE", help="a YAML or JSON file of rules; the flags below come on top")
    add_fields(parser, Rules, _TEXTS, others=())
    for name in _IDS:
        parser.add_argument(f"--{name}", metavar="IDS", help=f"{sentence(about[name])}, separated by commas")
    for name, written in _PAIRS.items():
        text = f"{sentence(about[name])}; repeat"
        parser.add_argument(_flag(name), dest=name, action="append", metavar=written, help=text.replace("%", "%%"))


def _flag(name: str) -> str:
    """Each use of the flag gives one of several."""
    return f"--{name.removesuffix('s').replace('_', '-')}"


def read_rules(options: argparse.Namespace, read_items: Callable[[str, str], list[Any]]) -> Rules | None:
    """The rules that flags describe; None = there are none.

    Args:
        read_items: gives ids, separated by commas, the type that the catalog's have; beside them the name of the flag.
    """
    given: dict[str, Any] = {} if options.rules is None else _read_file(options.rules)
    given |= chosen_flags(options, list(_TEXTS))
    for name in _IDS:
        if getattr(options, name) is not None:
            given[name] = read_items(getattr(options, name), f"--{name}")
    for name in _PAIRS:
        for text in getattr(options, name) or ():
            key, equals, value = text.rpartition("=")
            if not equals:
                raise SettingError(_flag(name), f"is {text!r}: write {_PAIRS[name]}")
            given.setdefault(name, {})[key.strip()] = _value(name, value.strip(), read_items)
    return Rules.from_dict(given) if given else None


def _value(name: str, text: str, read_items: Callable[[str, str], list[Any]]) -> Any:
    if name == "pins":
        [item] = read_items(text, "--pin") or [text]
        return item
    try:
        return int(text) if name == "at_most" else float(text)
    except ValueError:
        return text  # which the rule refuses with its name


def _read_file(path: str) -> dict[str, Any]:
    text = Path(path).read_text(encoding="utf-8")
    found = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no mapping of rules, such as 'where: price <= 20'")
    return found
