"""A request as a table: a user's history and the candidate items; and the same with another history.

Letters: R rows of a request, V variants.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from polyrec.core.schema import TIME_GAP, Columns
from polyrec.data.columns import ColumnEncoder
from polyrec.data.encoding import time_gap
from polyrec.data.event_log import EventLog
from polyrec.data.statistics import shown_time
from polyrec.data.stored_events import merge
from polyrec.data.tables import as_array, as_table, column, first_bad_row, ids, is_null, times


def request_table(
    history: Any,
    candidate_ids: pa.Array,
    columns: Columns,
    feedback: Collection[str],
    context: Mapping[str, Any],
    time: float | None,
    latest: float,
    query: str | None = None,
    after: float = -np.inf,
) -> tuple[pa.Table, np.ndarray, bool]:
    """The history followed by one row per candidate item, with every column that `encode_log` reads.

    Returns:
        the table, the time of each row in seconds, and whether those of the history are known. If they are not, they
        are made up, in order and before the request.

    Args:
        history: events, oldest first: item ids, dicts or a table; None = nobody known yet.
        candidate_ids: ids of the candidate items, of the catalog's type.
        feedback: columns known once an event had happened, labels included.
        context: {column: value of the request, None = unknown}.
        time: of the request, seconds; None: one second after the latest event known.
        latest: seconds, before which there are no requests.
        query: what the user typed, if the columns say where queries are.
        after: seconds, the latest stored event of the user, which the history goes on from.

    Raises:
        ValueError: the history is not in order of time or not after the stored events, or the request is not after it.
    """
    table = as_table(history, columns.item)
    events = 0 if table is None else table.num_rows
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
    now = max([latest, after, *seconds[-1:]]) + 1.0 if time is None else time
    if events and not timed:
        begin = max(after, now - events - 1.0)
        seconds = begin + (now - begin) * np.arange(1, events + 1) / (events + 1)
    if now <= max([after, *seconds[-1:]]):
        raise ValueError(
            f"time {now:.0f} is not after the history's last event ({max([after, *seconds[-1:]]):.0f}): it would see "
            "the future"
        )
    num_candidates = len(candidate_ids)
    known = {} if table is None else {n: column(table, n, "history", "history") for n in table.column_names}
    found: dict[str, Any] = {columns.user: pa.array(np.zeros(events + num_candidates, dtype=np.int64))}
    past_ids = candidate_ids[:0] if table is None else ids(table, columns.item, "history", "item id")
    if past_ids.type != candidate_ids.type:
        past_ids, candidate_ids = past_ids.cast(pa.large_string()), candidate_ids.cast(pa.large_string())
    found[columns.item] = pa.concat_arrays([past_ids, candidate_ids])
    unit = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[columns.time_unit]
    seconds = np.concatenate([seconds, np.full(num_candidates, now)])
    if columns.time is not None:
        found[columns.time] = pa.array(seconds * unit)
    if columns.order is not None:
        found[columns.order] = pa.array(np.arange(events + num_candidates))
    for name in sorted({*feedback, *context}):
        past = known[name].to_pylist() if name in known else [None] * events
        found[name] = as_array(
            past + [context.get(name)] * num_candidates, f"context {name!r}, beside that of the history,"
        )
    if columns.query is not None:
        found[columns.query] = pa.array([None] * events + [query] * num_candidates, pa.large_string())
    if columns.query_item is not None:
        found[columns.query_item] = pa.nulls(events + num_candidates)
    return pa.table(found), seconds, timed or not events


def _has_times(table: pa.Table, columns: Columns) -> bool:
    """Whether a history says when anything happened; if so, it must say it of every event."""
    if columns.time is None or columns.time not in table.column_names:
        return False
    return not is_null(column(table, columns.time, "history", "time")).all()


def without_times(log: EventLog, events: int, derived: Mapping[str, ColumnEncoder]) -> None:
    """Leave unknown what follows from the times of a request's history, its first `events` rows, if it has none.

    Args:
        derived: context columns that are computed of times.
    """
    log.untimed = np.arange(len(log)) < events
    log.event_features[TIME_GAP] = time_gap(log)
    for name, encoder in derived.items():
        values = log.candidate_features[name].copy()
        values[:events] = encoder.missing(events)
        log.candidate_features[name] = values


def continued(stored: EventLog, log: EventLog) -> EventLog:
    """Stored events of users, then later events (and candidates) of the same users, who are numbered alike."""
    users = np.arange(len(log.user_ids))
    found = merge([(part, users, (np.arange(len(part)), part.user)) for part in (stored, log)], log.user_ids)
    if log.queries is not None:
        found.queries = log.queries.after(len(stored))
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

    def of_rows(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: values[row] for name, values in columns.items()}

    found = EventLog(
        user=user,
        item=log.item[row],
        time=log.time[row],
        order=log.order[row],
        row=log.row[row],
        user_ids=pa.array(np.arange(len(keep_VR))),
        labels=log.labels[row],
        event_features=of_rows(log.event_features),
        candidate_features=of_rows(log.candidate_features),
        user_features={name: np.repeat(values, len(keep_VR), axis=0) for name, values in log.user_features.items()},
        measures=of_rows(log.measures),
        queries=None if log.queries is None else log.queries.of_rows(row),
        untimed=None if log.untimed is None else log.untimed[row],
        prior_history=None if log.prior_history is None else log.prior_history.repeated(len(keep_VR)),
    )
    found.event_features[TIME_GAP] = time_gap(found)
    return found
