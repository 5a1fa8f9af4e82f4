"""Items and users as clients call for them and change them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from polyrec.core.settings import SettingError, nearest, shown
from polyrec.data.tables import as_array
from polyrec.models.polyrec.attribute_change import prepared_model_change
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import FIRST_ITEM
from polyrec.serving.events import EventFormat
from polyrec.serving.records import Record
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
        ValueError: the item is new, and the model cannot take new ones.
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
    # These raise what the state would.
    if known is not None:
        for name, value in state.format.attributes(body).items():
            if (encoder := items.encoders.get(name)) is not None and encoder.kind != "text":
                encoder.encode(value, f"attributes.{name}")
    else:
        state.model.refuse_int8("new items")
        trial = dataclasses.replace(items)
        trial.extend(state.format.items_table([body]), "items", state.processor.columns.item)
    return body


def restore_items(
    model: PolyRecForRecommendation, processor: PolyRecProcessor, base: PolyRecProcessor, records: Iterable[Record]
) -> None:
    """Let a model of a run know the items as the processor of a snapshot has them.

    Args:
        base: the run's own processor, which may change.
        records: of items, that the snapshot knows.
    """
    text = model.item_encoder.text
    if text is not None and text.fallback:
        # Where a text puts a new item depends on the texts of that time, so that records come one after the other.
        state = ServedState(model, base)
        for record in records:
            state.control(record, changes=True)
        return
    form, there, named = EventFormat(processor), model.config.num_items, dict[int, set[str]]()
    for record in records:
        body = json.loads(record.body)
        row = form.item_row(body["item_id"])
        if row is not None and row < there and "attributes" in body:
            named.setdefault(row, set()).update(form.attributes(body))
    if named:
        rows, columns = np.array(sorted(named)), sorted(set[str]().union(*named.values()))
        values = {
            name: processor.items.table[name].combine_chunks().take(pa.array(rows - FIRST_ITEM)) for name in columns
        }
        prepared_model_change(model, processor, rows, values)()
        if processor.columns.item_time in columns:
            model.load_times(processor)
    if processor.num_items != there:
        model.extend(processor)


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
