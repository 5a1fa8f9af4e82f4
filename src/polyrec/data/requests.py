"""Requests as a table: users' histories and the candidate items; and one request with other histories.

Letters: B requests, R rows of all of them, V variants.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from polyrec.core.schema import TIME_GAP, Columns
from polyrec.data.columns import ColumnEncoder
from polyrec.data.encoding import time_gap
from polyrec.data.event_log import EventLog
from polyrec.data.later_events import shown_time
from polyrec.data.stored_events import merge
from polyrec.data.tables import as_array, column, first_bad_row, ids, is_null, times


class ParsedRequest(NamedTuple):
    """What a request says, checked.

    Args:
        history: events, oldest first; None = nobody known yet.
        time: of the request, seconds; None: one second after the latest event known.
        user_id: whose stored events come before the history, or None.
        user, context: {column: value}, what is given.
        query: what the user typed, or None.
    """

    history: pa.Table | None = None
    time: float | None = None
    user_id: Any = None
    user: Mapping[str, Any] = {}
    context: Mapping[str, Any] = {}
    query: str | None = None

    @property
    def events(self) -> int:
        """How many there are in the history."""
        return 0 if self.history is None else self.history.num_rows

    @property
    def types(self) -> dict[str, Any]:
        """What each value is, {column: type}; a table of several requests has one type per column."""
        found: dict[str, Any] = {f"context.{n}": type(v) for n, v in self.context.items() if v is not None}
        if self.user_id is not None:
            found["user_id"] = type(self.user_id)
        for name, column_type in () if self.history is None else zip(*_schema(self.history), strict=True):
            if not pa.types.is_null(column_type):
                found[name] = column_type
        return found


def _schema(table: pa.Table) -> tuple[list[str], list[pa.DataType]]:
    return table.schema.names, table.schema.types


def alike(requests: Sequence[ParsedRequest]) -> list[list[int]]:
    """Groups of requests whose values have the same types, so that one table can hold them as they are.

    Example:
        >>> history = pa.table({"item": [5]})
        >>> alike([ParsedRequest(user_id=1), ParsedRequest(history), ParsedRequest(user_id="1")])
        [[0, 1], [2]]
    """
    groups: list[tuple[dict[str, Any], list[int]]] = []
    for number, request in enumerate(requests):
        types = request.types
        for known, members in groups:
            if all(known.get(name, own) == own for name, own in types.items()):
                known |= types
                members.append(number)
                break
        else:
            groups.append((dict(types), [number]))
    return [members for _, members in groups]


class RequestTable(NamedTuple):
    """Requests as rows: of each its history and then one row per candidate.

    Args:
        table: with every column that `encode_log` reads; the users are numbered as the requests are.
        seconds: [R], the time of each row.
        untimed: bool [R], events whose times are made up, in order and before the request.
        candidate: bool [R].
    """

    table: pa.Table
    seconds: np.ndarray
    untimed: np.ndarray
    candidate: np.ndarray


def request_table(
    requests: Sequence[ParsedRequest],
    candidate_ids: Sequence[pa.Array],
    columns: Columns,
    feedback: Collection[str],
    context: Collection[str],
    latest: float,
    after: np.ndarray,
) -> RequestTable:
    """One table of several requests, which are [`alike`].

    Args:
        candidate_ids: of each request, ids of its candidate items, of the catalog's type.
        feedback: columns known once an event had happened, labels included.
        context: columns known before it.
        latest: seconds, before which there are no requests.
        after: [B], seconds, the latest stored event of each user, which the history goes on from.

    Raises:
        ValueError: a history is not in order of time or not after the stored events, or a request is not after it.
    """
    events, num_candidates = [own.events for own in requests], [len(own) for own in candidate_ids]
    begins = zip(requests, after.tolist(), num_candidates, strict=True)
    timed = [_row_times(own, columns, latest, begin, number) for own, begin, number in begins]
    rows = sum(events) + sum(num_candidates)
    counts = np.column_stack([events, num_candidates]).ravel()
    candidate = np.repeat(np.tile([False, True], len(requests)), counts)
    untimed = np.repeat(np.column_stack([[not known for _, known in timed], np.zeros(len(requests), bool)]), counts)
    seconds = np.concatenate([own for own, _ in timed])
    found: dict[str, Any] = {
        columns.user: pa.array(np.repeat(np.arange(len(requests)), np.add(events, num_candidates)))
    }
    found[columns.item] = _item_ids(requests, candidate_ids, columns)
    if columns.time is not None:
        found[columns.time] = pa.array(seconds * {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[columns.time_unit])
    if columns.order is not None:
        found[columns.order] = pa.array(np.arange(rows))
    for name in sorted({*feedback, *context}):
        found[name] = _values(requests, num_candidates, name)
    if columns.query is not None:
        typed = [
            text
            for own, n in zip(requests, num_candidates, strict=True)
            for text in [None] * own.events + [own.query] * n
        ]
        found[columns.query] = pa.array(typed, pa.large_string())
    if columns.query_item is not None:
        found[columns.query_item] = pa.nulls(rows)
    return RequestTable(pa.table(found), seconds, untimed, candidate)


def _row_times(
    request: ParsedRequest, columns: Columns, latest: float, after: float, num_candidates: int
) -> tuple[np.ndarray, bool]:
    """The times of a request's rows in seconds, and whether those of its history are known."""
    table, events = request.history, request.events
    timed = table is not None and _has_times(table, columns)
    seconds = np.zeros(0)
    if table is not None and timed:
        seconds = times(table, columns, "history")
        row = first_bad_row(np.diff(seconds) < 0)
        if row is not None:
            raise ValueError(f"history: column {columns.time!r} goes back in time in row {row + 1}: oldest first")
        if seconds[0] <= after:
            raise ValueError(
                f"history: row 0 has time {shown_time(seconds[0])}, not after {shown_time(after)}, the latest stored "
                "event of this user: beside a user_id give later events only, or leave user_id out and give them all"
            )
    now = max([latest, after, *seconds[-1:]]) + 1.0 if request.time is None else request.time
    if events and not timed:
        begin = max(after, now - events - 1.0)
        seconds = begin + (now - begin) * np.arange(1, events + 1) / (events + 1)
    if now <= max([after, *seconds[-1:]]):
        raise ValueError(
            f"time {now:.0f} is not after the history's last event ({max([after, *seconds[-1:]]):.0f}): it would see "
            "the future"
        )
    return np.concatenate([seconds, np.full(num_candidates, now)]), timed or not events


def _item_ids(requests: Sequence[ParsedRequest], candidate_ids: Sequence[pa.Array], columns: Columns) -> pa.Array:
    found = []
    for own, wanted in zip(requests, candidate_ids, strict=True):
        if own.history is not None:
            found.append(ids(own.history, columns.item, "history", "item id"))
        found.append(wanted)
    if len({part.type for part in found}) > 1:
        found = [part.cast(pa.large_string()) for part in found]
    return pa.concat_arrays(found)


def _values(requests: Sequence[ParsedRequest], num_candidates: Sequence[int], name: str) -> pa.Array | pa.ChunkedArray:
    """A column of the events and the same value for each of a request's candidates."""
    values: list[Any] = []
    for own, number in zip(requests, num_candidates, strict=True):
        if own.history is not None and name in own.history.column_names:
            values += column(own.history, name, "history", "history").to_pylist()
        else:
            values += [None] * own.events
        values += [own.context.get(name)] * number
    return as_array(values, f"context {name!r}, beside that of the history,")


def _has_times(table: pa.Table, columns: Columns) -> bool:
    """Whether a history says when anything happened; if so, it must say it of every event."""
    if columns.time is None or columns.time not in table.column_names:
        return False
    return not is_null(column(table, columns.time, "history", "time")).all()


def without_times(log: EventLog, untimed: np.ndarray, derived: Mapping[str, ColumnEncoder]) -> None:
    """Leave unknown what follows from the times of events that have none, bool [R].

    Args:
        derived: context columns that are computed of times.
    """
    log.untimed = untimed
    log.event_features[TIME_GAP] = time_gap(log)
    for name, encoder in derived.items():
        values = log.candidate_features[name].copy()
        values[untimed] = encoder.missing(int(untimed.sum()))
        log.candidate_features[name] = values


def continued(stored: EventLog, log: EventLog, users: np.ndarray | None = None) -> EventLog:
    """Stored events of users, then later events (and candidates) of the same users.

    Args:
        users: int64, the user of the log that each user of `stored` is; None: they are numbered alike.
    """
    all_users = np.arange(len(log.user_ids))
    users = all_users if users is None else users
    known = np.full(len(all_users), -1)
    known[users] = np.arange(len(users))
    parts = [
        (stored, known, (np.arange(len(stored)), users[stored.user])),
        (log, all_users, (np.arange(len(log)), log.user)),
    ]
    found = merge(parts, log.user_ids)
    if log.queries is not None:
        later = np.bincount(log.user, minlength=len(all_users))
        earlier = np.bincount(found.user, minlength=len(all_users)) - later
        is_later = np.repeat(np.tile([False, True], len(all_users)), np.column_stack([earlier, later]).ravel())
        found.queries = log.queries.at(is_later)
    return found


def variants(log: EventLog, keep_VR: np.ndarray) -> EventLog:
    """A request's log once per variant, in which only some of its rows ever happened; each variant is a user of it.

    What happened keeps its time, so all variants have the same time.

    Args:
        log: of one request, encoded.
        keep_VR: bool [V, R].

    Example:
        >>> three = np.arange(3)
        >>> log = EventLog(three * 0, three + 5, three.astype(float), three, three, pa.array([0]), np.ones((3, 1)))
        >>> changed = variants(log, np.array([[True, True, True], [True, False, True]]))
        >>> changed.user.tolist(), changed.item.tolist()
        ([0, 0, 0, 1, 1], [5, 6, 7, 5, 7])
    """
    user, row = np.nonzero(keep_VR)
    return gathered(log, row, user, np.zeros(len(keep_VR), dtype=np.int64))


def gathered(log: EventLog, row: np.ndarray, user: np.ndarray, users: np.ndarray) -> EventLog:
    """Rows of a log as the log of other users.

    Args:
        row: int64 [R], rows of the log, any of them several times; of each new user in order.
        user: int64 [R], the new user of each, ascending.
        users: int64 [V], which user of the log each new one is.
    """

    def of_rows(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: values[row] for name, values in columns.items()}

    found = EventLog(
        user=user,
        item=log.item[row],
        time=log.time[row],
        order=log.order[row],
        row=log.row[row],
        user_ids=pa.array(np.arange(len(users))),
        labels=log.labels[row],
        event_features=of_rows(log.event_features),
        candidate_features=of_rows(log.candidate_features),
        user_features={name: values[users] for name, values in log.user_features.items()},
        measures=of_rows(log.measures),
        queries=None if log.queries is None else log.queries.of_rows(row),
        untimed=None if log.untimed is None else log.untimed[row],
        prior_history=None if log.prior_history is None else log.prior_history.of_users(users),
    )
    found.event_features[TIME_GAP] = time_gap(found)
    return found
