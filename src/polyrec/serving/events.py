"""Events as clients send them: checked, and read as the log's own table is read."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from polyrec.core.schema import label_columns
from polyrec.core.settings import SettingError, as_number, nearest, shown
from polyrec.data.event_log import EventLog
from polyrec.data.tables import as_array
from polyrec.data.times import read_time
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import FIRST_ITEM
from polyrec.serving.records import Kind, Record

VARIANT = "served_variant"  # of a stored event: what its user sees, where a server has variants
AHEAD = 86_400.0  # seconds that an event's time may lie in the future: clocks differ, and one far ahead makes all late
_LONGEST = 4_096  # characters of a text, and values of a list
_to_json = json.JSONEncoder(separators=(",", ":")).encode  # `json.dumps` makes an encoder for each event
_from_json = json.JSONDecoder().raw_decode  # bodies begin and end without blanks
_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


class Event(NamedTuple):
    """A stored event: sequence number, user as text, seconds, and the columns of the log."""

    seq: int
    user: str
    time: float
    columns: dict[str, Any]


class EventFormat:
    """What events of one model's log look like.

    Args:
        processor: of the model.
    """

    def __init__(self, processor: PolyRecProcessor) -> None:
        self.processor = processor
        self.assigned: Callable[[str], str] | None = None  # the variant of a user, which events keep
        own, reader = processor.columns, processor.request_reader
        keys = (own.user, own.item, own.time)
        self.columns = [name for name in reader.event_columns if name not in keys]
        measured = [] if processor.statistics is None else processor.statistics.measures
        encoders = {**reader.feedback, **reader.context}
        numeric = {name for name, encoder in encoders.items() if encoder.kind == "numeric"}
        rules = [task.parsed_label for task in processor.tasks]
        numeric |= {rule.column for rule in rules if rule is not None and not rule.words}
        self._numeric = numeric | {*measured}
        self._lists = {name for name, encoder in encoders.items() if encoder.kind in ("multi", "embedding")}
        # Columns that are read of any table, so that they must be there.
        self._read = list(
            dict.fromkeys([*reader.feedback, *label_columns(processor.tasks), *reader.context, *measured])
        )
        if own.query is not None:
            self._read.append(own.query)
        if own.query_item is not None:
            self._read.append(own.query_item)

    def record(self, event: Mapping[str, Any], where: str) -> Record:
        """An event as it is stored.

        Args:
            event: `user_id`, `item_id`, maybe `timestamp` (default: now) and `event_id`, and columns of the log.
            where: the field that holds it, for messages.

        Raises:
            SettingError: names the field.
        """
        body = {key: value for key, value in event.items() if key != "event_id" and value is not None}
        now = time.time()
        when = self._time(body.get("timestamp"), f"{where}.timestamp", now)
        body["timestamp"] = when
        for name, value in body.items():
            if name not in ("user_id", "item_id", "timestamp"):
                self._check(name, value, where)
        if self.assigned is not None:
            body[VARIANT] = self.assigned(str(body["user_id"]))
        event_id = event.get("event_id")
        return Record(Kind.EVENT, _to_json(body), event_id, str(body["user_id"]), when, columns=body)

    def _time(self, given: Any, where: str, now: float) -> float:
        if given is None:
            return now
        if type(given) in (int, float) and abs(given) < 1e11:
            found = float(given)
        else:
            try:
                found = read_time(given, what=where)
            except ValueError as error:
                raise SettingError(where, str(error).removeprefix(where).strip()) from error
        if found > now + AHEAD or not math.isfinite(found):
            raise SettingError(where, f"is {shown(given)}, in the future: give seconds since 1970 or ISO text")
        return found

    def _check(self, name: str, value: Any, where: str) -> None:
        if name not in self.columns:
            raise SettingError(f"{where}.{name}", f"is no column of the model's log; {nearest(name, self.columns)}")
        if name in self._numeric:
            if type(value) is float and abs(value) < 1e300:  # nearly all of them
                return
            number = None if isinstance(value, str) else as_number(value)
            if not isinstance(value, bool) and (number is None or not abs(number) < 1e300):
                raise SettingError(f"{where}.{name}", f"is {shown(value)}; it must be a finite number")
            return
        if isinstance(value, str) and len(value) <= _LONGEST:
            return
        several = isinstance(value, list) and name in self._lists and len(value) <= _LONGEST
        parts = value if several else [value]
        if not all(_is_scalar(part) for part in parts):
            allowed = "a value or a list of values" if name in self._lists else "a number or a text"
            raise SettingError(f"{where}.{name}", f"is {shown(value)}; it must be {allowed}")

    def read(self, record: Record) -> Event:
        """A stored event; of one that is damaged nothing is known, and counting it fails."""
        columns = record.columns
        if columns is None:
            try:
                columns = _from_json(record.body)[0]
            except ValueError:
                columns = {}
        return _event(record, columns)

    def read_all(self, records: Sequence[Record]) -> list[Event]:
        """Stored events, each as [`read`] reads it; many bodies are parsed in a fraction of the time."""
        if len(records) > 1 and all(record.columns is None for record in records):
            try:
                bodies = json.loads(f"[{','.join([record.body for record in records])}]")
            except ValueError:  # one is damaged
                bodies = []
            if len(bodies) == len(records):
                return [_event(record, body) for record, body in zip(records, bodies, strict=True)]
        return [self.read(record) for record in records]

    def history(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        """Events as the history of a request, with the log's columns."""
        own, unit = self.processor.columns, _UNITS[self.processor.columns.time_unit]
        found = []
        for event in events:
            columns = {own.item: event.columns["item_id"]}
            columns |= {name: value for name, value in event.columns.items() if name in self.columns}
            if own.time is not None:
                columns[own.time] = event.time * unit
            found.append(columns)
        return found

    def encode(self, events: Sequence[Event], attributes: Mapping[str, Mapping[str, Any]]) -> EventLog:
        """The log of some events, in the order of their sequence numbers where times are equal.

        Args:
            attributes: of users, by id as text, that no table of users holds.
        """
        log = self.processor.encode(self.table(events))
        log.time = np.array([event.time for event in events])[log.row]  # a unit and back may round
        self._set_users(log, attributes)
        return log

    def table(self, events: Sequence[Event]) -> pa.Table:
        """Some events with the log's columns, for [`encode`] and for `polyrec update`."""
        own = self.processor.columns
        found: dict[str, Any] = {
            own.user: _column([event.columns["user_id"] for event in events], own.user),
            own.item: _column([event.columns["item_id"] for event in events], own.item),
        }
        if own.time is not None:
            found[own.time] = pa.array([event.time * _UNITS[own.time_unit] for event in events], pa.float64())
        if own.order is not None:
            found[own.order] = pa.array([event.seq for event in events], pa.int64())
        sent = [name for name in self.columns if any(name in event.columns for event in events)]
        for name in dict.fromkeys([*self._read, *sent]):
            if name not in found:
                found[name] = _column([event.columns.get(name) for event in events], name)
        return pa.table(found)

    def item_row(self, item: Any) -> int | None:
        """The row of an item in the item table; None: it is not in the catalog."""
        row = int(self.processor.items.rows(pa.array([item]))[0])
        return row if row >= FIRST_ITEM else None

    def items_table(self, items: Sequence[Mapping[str, Any]]) -> pa.Table:
        """New items with the catalog's columns; what is not said of one is missing."""
        own = self.processor.items
        found: dict[str, Any] = {self.processor.columns.item: _column([i["item_id"] for i in items], "item_id")}
        for name in own.table.column_names:
            if name not in found:
                values = [item.get("attributes", {}).get(name) for item in items]
                found[name] = pa.array(values, own.table.schema.field(name).type)
        return pa.table(found)

    def attributes(self, item: Mapping[str, Any]) -> dict[str, pa.Array]:
        """What a record says of a known item, by column; those that a new run does not have are left."""
        schema, key = self.processor.items.table.schema, self.processor.columns.item
        given = item["attributes"].items()
        return {n: pa.array([value], schema.field(n).type) for n, value in given if n in schema.names and n != key}

    def _set_users(self, log: EventLog, attributes: Mapping[str, Mapping[str, Any]]) -> None:
        if not attributes:
            return
        for place, user in enumerate(log.user_ids.cast(pa.large_string()).to_pylist()):
            for name, value in attributes.get(user, {}).items():
                encoder = self.processor.users.encoders[name]
                if encoder.kind != "text":
                    log.user_features[name][place] = encoder.encode(as_array([value], name), name)[0]


def _event(record: Record, columns: dict[str, Any]) -> Event:
    assert record.user is not None
    assert record.time is not None
    return Event(record.seq, record.user, record.time, columns)


def _is_scalar(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST
    return isinstance(value, bool) or (isinstance(value, int | float) and abs(value) < 2**63)


def _column(values: list[Any], name: str) -> pa.Array | pa.ChunkedArray:
    """Values of one column; of several kinds (numbers and texts), all of them as text."""
    kinds = {type(value) for value in values if value is not None}
    if str in kinds and len(kinds) > 1:
        values = [value if value is None or isinstance(value, str | list) else str(value) for value in values]
    return as_array(values, name)
