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
from polyrec.data.storage import MEMORY, Storage
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
    storage: Storage = MEMORY,
) -> EventLog:
    """Check and encode an event log, sorted by (user, time, order). Unknown items and users are cold starts.

    One column after the other is read, sorted and kept, so that no more than a few are in memory at once.

    Args:
        storage: where the arrays of the log go.
    """
    what = "interactions"
    seconds = times(table, columns, what)
    # A user is whoever has an id, known to the users table or not.
    user, user_ids = _codes(ids(table, columns.user, what, "user id"))
    tie_break = None if columns.order is None else _ranks(table, columns.order, what)
    sort = _sorted_by(tie_break, seconds, user)
    order = np.empty(len(sort), dtype=np.int64)
    order[_sorted_by(tie_break, seconds)] = np.arange(len(sort))

    def kept(name: str, values: np.ndarray) -> np.ndarray:
        return storage.keep(name, values[sort])

    order, time, user = kept("order", order), kept("time", seconds), kept("user", user.astype(np.int64))
    del seconds, tie_break
    item = kept("item", items.rows(ids(table, columns.item, what, "item id")))
    task_labels = kept("labels", labels(table, list(tasks), what))
    refused = {
        REFUSED + task.name: kept(f"event_features.{REFUSED}{task.name}", _refused(table, task, what))
        for task in tasks
        if task.ranks_catalog and task.parsed_label is not None
    }
    encoded = encode_columns(table, encoders, sort, storage)
    user_rows = users.rows(user_ids)
    log = EventLog(
        user=user,
        item=item,
        time=time,
        order=order,
        row=storage.keep("row", sort),
        user_ids=user_ids,
        labels=task_labels,
        event_features=encoded["event"],
        candidate_features=encoded["candidate"],
        user_features={name: values[user_rows] for name, values in users.encoded.items()},
    )
    log.event_features[TIME_GAP] = storage.keep(f"event_features.{TIME_GAP}", time_gap(log))
    log.event_features |= refused
    return log


def _codes(user_ids: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """A number of each id, int32 [R], and the ids in the order of these numbers."""
    coded = user_ids.dictionary_encode()
    return np.asarray(coded.indices), coded.dictionary


def _sorted_by(tie_break: np.ndarray | None, *keys: np.ndarray) -> np.ndarray:
    """Rows in the order of keys, the last one first; of equal ones by `tie_break`, then as they stand, int64 [R]."""
    return np.lexsort(keys if tie_break is None else (tie_break, *keys))


def _refused(table: pa.Table, task: TaskConfig, what: str) -> np.ndarray:
    """1 where the label is known and says that the item is a negative, else 0, float32 [R]."""
    assert task.parsed_label is not None
    return (label_values(table, task.parsed_label, f"{what}: label of task {task.name!r}") <= 0).astype(np.float32)


def encode_columns(
    table: pa.Table, encoders: Encoders, row: np.ndarray, storage: Storage = MEMORY
) -> dict[str, dict[str, np.ndarray]]:
    """Feedback and context of a log's rows in the order `row`, {"event": {column: ...}, "candidate": {...}}."""

    def encoded(source: str, name: str, encoder: ColumnEncoder) -> np.ndarray:
        values = encoder.encode(column(table, name, "interactions", source), f"interactions: column {name!r}")
        return storage.keep(f"{source}_features.{name}", values[row])

    return {
        source: {name: encoded(source, name, encoder) for name, encoder in found.items()}
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
