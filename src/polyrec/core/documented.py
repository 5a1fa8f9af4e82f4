"""What the docstring of a dataclass says of its fields: help of flags and descriptions in editors come from there."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

_ENTRY = re.compile(r" {4}(\w+(?:, \w+)*): (.*)")
_LINK = re.compile(r"\[`~?(?:\w+\.)*(\w+)`\]")


@functools.cache
def field_help(cls: type) -> dict[str, str]:
    """{field: its entry under "Args:"}, of a class and its bases; fields of other libraries have a "help" of their own.

    Example:
        >>> from polyrec.core.schema import TaskConfig
        >>> field_help(TaskConfig)["parent"]
        'name of the task this one follows from (a purchase follows a click); needs a `coupling`.'
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            found |= {f.name: f.metadata["help"] for f in fields(base) if f.metadata.get("help")}
        if base.__module__.startswith("polyrec."):
            found |= arguments_help(base)
    return found


def arguments_help(documented: Any) -> dict[str, str]:
    """{argument: its entry under "Args:"} of the docstring of a class or a function."""
    return dict(_entries(documented.__doc__ or ""))


def _entries(docstring: str) -> Iterator[tuple[str, str]]:
    names: list[str] = []
    text = ""
    inside = False
    for line in [*inspect.cleandoc(docstring).splitlines(), "end"]:
        entry = _ENTRY.fullmatch(line)
        if names and (entry or not line.startswith(" ")):
            yield from ((name, _LINK.sub(r"\1", text)) for name in names)
            names = []
        if not line.startswith(" ") and line:
            inside = line == "Args:"
        elif inside and entry:
            names, text = entry[1].split(", "), entry[2]
        else:
            text += f" {line.strip()}"


def with_help(cls: Any) -> Any:
    """Class decorator: fields say under "help", where `HfArgumentParser` looks, what the docstring says of them."""
    for f in fields(cls):
        if f.name in cls.__annotations__:
            f.metadata = {**f.metadata, "help": field_help(cls)[f.name]}  # type: ignore[assignment]
    return cls


def sentence(text: str) -> str:
    """The first sentence, without its full stop.

    Example:
        >>> sentence("folder of a run, e.g. runs/a. It is made.")
        'folder of a run, e.g. runs/a'
    """
    return re.split(r"(?<!e\.g)\.(?:\s+(?=[A-Z\"])|$)", text, maxsplit=1)[0]
