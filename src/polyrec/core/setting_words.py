"""What an annotation wants, in words: the end of the messages of `polyrec.core.settings`."""

from __future__ import annotations

import enum
import types
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from polyrec.core.ranges import Range


def bare(annotation: Any) -> Any:
    """An annotation without what `Annotated` adds."""
    while get_origin(annotation) is Annotated:
        annotation = annotation.__origin__
    return annotation


def takes_list(annotation: Any) -> bool:
    """Whether an annotation wants a list."""
    annotation = bare(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return any(takes_list(a) for a in get_args(annotation))
    kind = get_origin(annotation) or annotation
    return isinstance(kind, type) and issubclass(kind, Collection) and not issubclass(kind, str | bytes | Mapping)


def choices(annotation: Any) -> list[str]:
    """The texts among the values that an annotation lists."""
    if get_origin(bare(annotation)) is Literal:
        return [a for a in get_args(bare(annotation)) if isinstance(a, str)]
    if get_origin(bare(annotation)) in (Union, types.UnionType):
        return [c for a in get_args(bare(annotation)) for c in choices(a)]
    return []


def expected(annotation: Any, limits: Range | None = None) -> str:
    """What an annotation wants, in words.

    Example:
        >>> expected(Annotated[int, Range(1)] | None), expected(Literal["s", "ms"]), expected(list[str])
        ('a whole number >= 1 or null', "'s' or 'ms'", 'a list of texts')
    """
    origin = get_origin(annotation)
    if origin is Annotated:
        own = next((a for a in annotation.__metadata__ if isinstance(a, Range)), None)
        return expected(annotation.__origin__, own or limits)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(expected(a, limits) for a in get_args(annotation)))
    if origin is Literal:
        return " or ".join(repr(a) for a in get_args(annotation))
    kind = origin or annotation
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    if kind in words:
        return f"{words[kind]} {limits}".strip() if limits is not None and kind in (int, float) else words[kind]
    if not isinstance(kind, type):
        return "another value"
    if issubclass(kind, enum.Enum):
        return f"one of {', '.join(str(member.value) for member in kind)}"
    if is_dataclass(kind):
        return f"a mapping of {', '.join(f.name for f in fields(kind))}"
    if issubclass(kind, Mapping):
        return "a mapping"
    if issubclass(kind, Collection):
        return _expected_list(kind, get_args(annotation), limits)
    return f"a {kind.__name__}"


def _expected_list(kind: type, inside: tuple[Any, ...], limits: Range | None) -> str:
    if kind is tuple and inside and inside[-1] is not Ellipsis:
        return f"a list of {len(inside)}: {', '.join(expected(a, limits) for a in inside)}"
    entries = {"text": "texts", "a number": "numbers", "a whole number": "whole numbers"}
    entry = "" if not inside or inside[0] is Any else expected(inside[0], limits)
    return f"a list of {entries.get(entry, entry)}" if entry else "a list"
