"""The JSON schema of a dataclass, as `polyrec.core.settings` reads it: for editors that complete and check recipes."""

from __future__ import annotations

import enum
import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from polyrec.core.documented import field_help
from polyrec.core.ranges import Range
from polyrec.core.registry import Registry
from polyrec.core.settings import annotations_of

Schema = dict[str, Any]
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null", None: "null"}


def object_schema(
    cls: type,
    ranges: Mapping[str, Range] | None = None,
    only: Collection[str] | None = None,
    described: Mapping[str, str] | None = None,
) -> Schema:
    """The schema of a mapping that [`~polyrec.core.settings.read`] makes a dataclass of.

    Args:
        ranges: {field: numbers that make sense}, beside those that the annotations declare.
        only: its fields that may be set; None: all.
        described: {field: what it is}; None: as its docstring says.

    Example:
        >>> from polyrec.runs.recipe import RecipeUpdate
        >>> schema = object_schema(RecipeUpdate, only=["interactions"])
        >>> schema["properties"], schema["required"]
        ({'interactions': {'type': 'string', 'description': 'events that came later.'}}, ['interactions'])
    """
    hints, properties, required = annotations_of(cls), {}, []
    described = field_help(cls) if described is None else described
    for f in fields(cls):
        if not f.init or (only is not None and f.name not in only):
            continue
        properties[f.name] = schema_of(hints[f.name], (ranges or {}).get(f.name))
        if f.name in described:
            properties[f.name]["description"] = described[f.name]
        if f.default not in (MISSING, None) and isinstance(f.default, bool | int | float | str):
            properties[f.name]["default"] = f.default
        if f.default is MISSING and f.default_factory is MISSING:
            required.append(f.name)
    found = {"type": "object", "properties": properties, "additionalProperties": False}
    return found | {"required": required} if required else found


def schema_of(annotation: Any, limits: Range | None = None) -> Schema:
    """The schema of one value.

    Example:
        >>> schema_of(Annotated[int, Range(1)] | None)
        {'anyOf': [{'type': 'integer', 'minimum': 1}, {'type': 'null'}]}
    """
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _annotated(annotation, limits)
    if origin in (Union, types.UnionType):
        return _union(inside, limits)
    if origin is Literal:
        return {"enum": list(inside)}
    kind = origin or annotation
    if kind in _TYPES:
        return {"type": _TYPES[kind]} | (_numbers(limits) if limits is not None and kind in (int, float) else {})
    if not isinstance(kind, type) or kind is object:
        return {}
    if issubclass(kind, enum.Enum):
        return {"enum": [member.value for member in kind]}
    if is_dataclass(kind):
        return object_schema(kind) if kind.__module__.startswith("polyrec.") else {"type": "object"}
    if issubclass(kind, Mapping):
        return {"type": "object"} | ({"additionalProperties": schema_of(inside[1], limits)} if inside else {})
    return _list(kind, inside, limits) if issubclass(kind, Collection) else {}


def _annotated(annotation: Any, limits: Range | None) -> Schema:
    for note in annotation.__metadata__:
        limits = note if isinstance(note, Range) else limits
        if isinstance(note, Registry):  # names that are known without an import; others may be registered
            return {"anyOf": [{"enum": note.names()}, {"type": "string"}]}
    return schema_of(annotation.__origin__, limits)


def _union(inside: Collection[Any], limits: Range | None) -> Schema:
    """Any of some; text beside an enumeration means its values, and a dict beside a dataclass its fields."""
    kinds = [kind for kind in inside if isinstance(kind, type)]
    less: set[type] = {str} if any(issubclass(kind, enum.Enum) for kind in kinds) else set()
    less |= {dict} if any(is_dataclass(kind) for kind in kinds) else set()
    found = [schema_of(kind, limits) for kind in inside if kind not in less]
    return found[0] if len(found) == 1 else {"anyOf": [one for n, one in enumerate(found) if one not in found[:n]]}


def _list(kind: type, inside: tuple[Any, ...], limits: Range | None) -> Schema:
    if kind is tuple and inside and inside[-1] is not Ellipsis:
        return {
            "type": "array",
            "items": schema_of(inside[0], limits),
            "minItems": len(inside),
            "maxItems": len(inside),
        }
    return {"type": "array"} | ({"items": schema_of(inside[0], limits)} if inside else {})


def _numbers(limits: Range) -> Schema:
    low = {"exclusiveMinimum" if limits.open_low else "minimum": limits.low}
    high = {"exclusiveMaximum" if limits.open_high else "maximum": limits.high}
    return {word: limit for word, limit in (low | high).items() if limit is not None}
