"""What an annotation wants, in words: the end of the messages of `polyrec.core.settings`."""

from __future__ import annotations

import enum
import types
from collections.abc import Collection, Iterable, Mapping
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


def takes_text(annotation: Any) -> bool:
    """Whether an annotation wants text, and nothing else that is not null."""
    annotation = bare(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return all(a is str or a is type(None) for a in get_args(annotation))
    return annotation is str


def choices_of(annotations: Iterable[Any]) -> list[str]:
    """The texts among the values that annotations list."""
    found: list[str] = []
    for annotation in map(bare, annotations):
        if get_origin(annotation) is Literal:
            found += [a for a in get_args(annotation) if isinstance(a, str)]
        elif get_origin(annotation) in (Union, types.UnionType):
            found += choices_of(get_args(annotation))
        elif isinstance(annotation, type) and issubclass(annotation, enum.Enum):
            found += [str(member.value) for member in annotation]
    return found


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
        listed = any(isinstance(a, type) and issubclass(a, enum.Enum) for a in get_args(annotation))
        said = [expected(a, limits) for a in get_args(annotation) if not (listed and a is str)]
        return " or ".join(dict.fromkeys(said))
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
