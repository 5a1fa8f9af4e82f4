"""An event log's table becomes arrays: codes, numbers and labels, sorted by user and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.core.schema import REFUSED, TIME_GAP, Columns, TaskConfig
from polyrec.data.arrays import decoded
from polyrec.data.catalog import EntityTable
from polyrec.data.columns import ColumnEncoder, infer_kind
from polyrec.data.event_log import EventLog
from polyrec.data.prior_history import PriorHistory
from polyrec.data.tables import column, first_bad_row, ids, is_null, label_values, labels, times

Encoders = Mapping[str, Mapping[str, ColumnEncoder]]  # {"event": {column: ...}, "candidate": {column: ...}}


def fit_event_columns(log: pa.Table, declared: Sequence[str] | Mapping[str, str]) -> dict[str, ColumnEncoder]:
    """Encoders of feedback or context columns; the kind of an undeclared one is inferred."""
    encoders = {}
    for name in declared:
        values = column(log, name, "interactions", "feedback or context")
        kind = declared[name] if isinstance(declared, Mapping) else infer_kind(values, few_is_categorical=True)
        encoders[name] = ColumnEncoder.fit(name, values, kind, f"interactions: column {name!r}")
    return encoders


def encode_log(
    table: pa.Table,
    columns: Columns,
    tasks: Sequence[TaskConfig],
    items: EntityTable,
    users: EntityTable,
    encoders: Encoders,
) -> EventLog:
    """Check and encode an event log, sorted by (user, time, order). Unknown items and users are cold starts."""
    what = "interactions"
    seconds = times(table, columns, what)
    user_ids = ids(table, columns.user, what, "user id")
    item = items.rows(ids(table, columns.item, what, "item id"))
    task_labels = labels(table, list(tasks), what)
    # A user is whoever has an id, known to the users table or not.
    coded = user_ids.dictionary_encode()
    user = np.asarray(coded.indices).astype(np.int64)
    tie_break = np.arange(len(user)) if columns.order is None else _ranks(table, columns.order, what)
    sort = np.lexsort((tie_break, seconds, user))
    order = np.empty(len(sort), dtype=np.int64)
    order[np.lexsort((tie_break, seconds))] = np.arange(len(sort))
    encoded = encode_columns(table, encoders, sort)
    user_rows = users.rows(coded.dictionary)
    log = EventLog(
        user=user[sort],
        item=item[sort],
        time=seconds[sort],
        order=order[sort],
        row=sort,
        user_ids=coded.dictionary,
        labels=task_labels[sort],
        event_features=encoded["event"],
        candidate_features=encoded["candidate"],
        user_features={name: values[user_rows] for name, values in users.encoded.items()},
    )
    log.event_features[TIME_GAP] = time_gap(log)
    for task in tasks:
        if task.ranks_catalog and task.parsed_label is not None:
            log.event_features[REFUSED + task.name] = _refused(table, task, what)[sort]
    return log


def _refused(table: pa.Table, task: TaskConfig, what: str) -> np.ndarray:
    """1 where the label is known and says that the item is a negative, else 0, float32 [R]."""
    assert task.parsed_label is not None
    return (label_values(table, task.parsed_label, f"{what}: label of task {task.name!r}") <= 0).astype(np.float32)


def encode_columns(table: pa.Table, encoders: Encoders, row: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Feedback and context of a log's rows in the order `row`, {"event": {column: ...}, "candidate": {...}}."""
    return {
        source: {
            name: encoder.encode(column(table, name, "interactions", source), f"interactions: column {name!r}")[row]
            for name, encoder in found.items()
        }
        for source, found in encoders.items()
    }


def encode_prior_history(past: PriorHistory, encoders: Encoders) -> None:
    """Event features of the past: what its marks say, everything else missing."""
    rows = len(past.item)
    for name, encoder in {**encoders["candidate"], **encoders["event"]}.items():
        if name in past.marks:
            values = pa.array(past.marks[name] == 1)
            if not set(encoder.vocabulary) & {"false", "true"}:  # the categories of a column of booleans
                values = values.cast(pa.int64())
            past.event_features[name] = encoder.encode(values, f"prior_history: mark {name!r}")
        else:
            past.event_features[name] = encoder.missing(rows)
    past.event_features[TIME_GAP] = np.full(rows, np.nan, dtype=np.float32)


def time_gap(log: EventLog) -> np.ndarray:
    """log(1 + seconds since the user's previous event), an hour about 0; NaN for the first event, or if unknown."""
    gap = np.diff(log.time, prepend=np.nan)
    gap[log.offsets[:-1]] = np.nan
    if log.untimed is not None:
        gap[log.untimed] = np.nan
        gap[1:][log.untimed[:-1]] = np.nan
    return ((np.log1p(gap) - 8) / 4).astype(np.float32)


def _ranks(table: pa.Table, name: str, what: str) -> np.ndarray:
    """Rank of each row by the order column, ties by row, int64 [R]."""
    values = decoded(column(table, name, what, "order"))
    row = first_bad_row(is_null(values))
    if row is not None:
        raise ValueError(f"{what}: column {name!r} (order) has no value in row {row}: fill it in or remove the row")
    try:
        return np.asarray(pc.rank(values, tiebreaker="first")).astype(np.int64)
    except pa.ArrowNotImplementedError:
        raise ValueError(f"{what}: column {name!r} (order) has type {values.type}: give numbers or texts") from None
