"""Items and users as clients call for them and change them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from polyrec.core.settings import SettingError, nearest, shown
from polyrec.data.tables import as_array
from polyrec.modules.encoders.item import FIRST_ITEM
from polyrec.serving.state import ServedState


class Unknown(LookupError):
    """Nothing has this id."""


def item_id(state: ServedState, text: str) -> int | str:
    """An item of a path as the catalog writes its ids."""
    if pa.types.is_integer(state.processor.items.ids.type) and text.removeprefix("-").isdecimal():
        number = int(text)
        if str(number) == text and abs(number) < 2**63:
            return number
    return text


def known_item(state: ServedState, text: str) -> dict[str, Any]:
    """What the catalog says of an item.

    Raises:
        Unknown: it is not in the catalog.
    """
    item = item_id(state, text)
    row = state.format.item_row(item)
    if row is None:
        raise Unknown("no such item in the catalog")
    processor = state.processor
    at = row - FIRST_ITEM
    found = {name: _plain(processor.items.table[name][at].as_py()) for name in processor.items.table.column_names}
    found.pop(processor.columns.item, None)
    return {
        "item": processor.items.ids[at].as_py(),
        "attributes": found,
        "hidden": str(item) in state.hidden,
        "events": int(processor.item_counts[row]),
    }


def new_item(
    state: ServedState, text: str, attributes: Mapping[str, Any] | None, hidden: bool | None
) -> dict[str, Any]:
    """The body of a record of an item, checked as the catalog reads it.

    Raises:
        SettingError: names the field.
        Unknown: it is hidden or shown, and not in the catalog.
    """
    item = item_id(state, text)
    known, items = state.format.item_row(item), state.processor.items
    body: dict[str, Any] = {"item_id": item}
    if hidden is not None:
        body["hidden"] = hidden
    if attributes is None:
        if known is None:
            raise Unknown("no such item in the catalog: give its attributes to add it")
        return body
    if known is not None:
        raise SettingError("attributes", "are given, but the item is known: a model that is served keeps its catalog")
    if pa.types.is_integer(items.ids.type) and not isinstance(item, int):
        raise SettingError("item", f"is {shown(item)}; the catalog's ids are whole numbers")
    columns = [name for name in items.table.column_names if name != state.processor.columns.item]
    for name, value in attributes.items():
        if name not in columns:
            raise SettingError(f"attributes.{name}", f"is no column of the catalog; {nearest(name, columns)}")
        try:
            pa.array([value], items.table.schema.field(name).type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            kind = items.table.schema.field(name).type
            raise SettingError(f"attributes.{name}", f"is {shown(value)}; the column has type {kind}") from error
    body["attributes"] = dict(attributes)
    trial = dataclasses.replace(items)
    trial.extend(state.format.items_table([body]), "items", state.processor.columns.item)  # raises as the state would
    return body


def user_attributes(state: ServedState, given: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a user, checked as a request's are.

    Raises:
        ValueError: names the column.
    """
    found = state.processor.request_reader.attributes(given, "user", state.processor.users.encoders)
    for name, value in found.items():
        encoder = state.processor.users.encoders[name]
        if encoder.kind != "text":
            encoder.encode(as_array([value], name), name)
    return found


def _plain(value: Any) -> Any:
    """A value that JSON can hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
