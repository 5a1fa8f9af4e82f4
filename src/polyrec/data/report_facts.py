"""Counts a [`DataReport`] from arrays that `fit` and `split` have anyway; no table is read for it.

Letters: R events, T tasks.
"""

from __future__ import annotations

import time as clock
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.core.schema import Columns, TaskConfig
from polyrec.data import splits
from polyrec.data.catalog import EntityTable
from polyrec.data.columns import FIRST, UNKNOWN, ColumnEncoder
from polyrec.data.event_log import EventLog
from polyrec.data.id_match import FEW, IdMatch, match_ids
from polyrec.data.leaks import aggregated_labels, separating_columns
from polyrec.data.report import DataReport, SplitFacts
from polyrec.data.storage import MEMORY, Storage
from polyrec.data.tables import column, ids, is_null
from polyrec.data.time_resolution import are_whole, distinct, iso, resolution

_SPARSE = 0.05  # share of rows with a value under which a column is nearly empty
_LARGE_USER, _LEAST_USERS, _LEAST_ROWS = 0.1, 20, 1_000  # a user with so many of so many rows looks like a bot
_TIED, _DUPLICATED = 0.5, 0.01
_EMPTY = 0.9  # share of empty lists from which on rows have next to no history
_FUTURE = 2 * 86_400.0  # seconds ahead of this machine's clock that time zones do not explain
_TIE_CHOICE = (
    "say columns.time: null if the times say nothing (the events of a user are then a set), or ties: order if the "
    "file's order is meant"
)
_CHUNK = 1 << 20  # rows that are looked up at once


@dataclass(frozen=True)
class TableIds:
    """Ids of the interactions, each once, and which row has which.

    Args:
        name: "item" or "user".
        ids: distinct ones [U].
        code: int32 [R], index in `ids`.
        entity: the table they are looked up in.
    """

    name: str
    ids: pa.Array
    code: np.ndarray
    entity: EntityTable

    @classmethod
    def of(cls, table: pa.Table, key: str, name: str, entity: EntityTable, storage: Storage = MEMORY) -> TableIds:
        """Read an id column; a storage has what is known of each row."""
        coded = ids(table, key, "interactions", f"{name} id").dictionary_encode()
        return cls(name, coded.dictionary, storage.keep(f"{name}_codes", np.asarray(coded.indices)), entity)

    @property
    def rows(self) -> np.ndarray:
        """Row of the entity table of each event, int32 [R]."""
        return self.entity.rows(self.ids).astype(np.int32)[self.code]

    def match(self) -> IdMatch:
        """The distinct ids looked up in the entity table."""
        count = np.bincount(self.code, minlength=len(self.ids))
        return match_ids(self.ids, count, self.entity.ids, *_names(self.name), self.name == "user")


def table_matches(entities: Sequence[TableIds]) -> list[IdMatch]:
    """Ids of the interactions looked up in the items table, and in the users table if it has attributes."""
    return [own.match() for own in entities if own.name == "item" or own.entity.encoders]


def list_matches(table: pa.Table, columns: Columns, items: EntityTable) -> list[IdMatch]:
    """Ids that the rows of a table list (`Columns.history`) looked up in the items table; none without such lists."""
    if columns.history is None:
        return []
    counts = pc.value_counts(column(table, columns.history, "interactions", "history").flatten())
    used, rows = counts.field("values"), np.asarray(counts.field("counts"))
    return [match_ids(used, rows, items.ids, "items of the lists", "items table")] if len(used) else []


def fit_report(
    table: pa.Table,
    columns: Columns,
    tasks: Sequence[TaskConfig],
    seconds: np.ndarray,
    labels: np.ndarray,
    entities: Sequence[TableIds],
    matches: Sequence[IdMatch],
    encoders: Mapping[str, Mapping[str, ColumnEncoder]],
    ties: str,
) -> DataReport:
    """Facts about the tables that `fit` was given.

    Args:
        seconds: float64 [R], time of each row.
        labels: float32 [R, T].
        entities: items and users, in this order.
        matches: of them, see [`table_matches`].
        encoders: of feedback ("event") and context ("candidate") columns.
    """
    item, user = entities
    per_user = np.bincount(user.code, minlength=len(user.ids))
    times = distinct(seconds)
    timed = columns.time is not None
    tied = np.zeros(len(seconds), dtype=bool)  # rows with lists see no other rows
    if columns.history is None:
        tied = _in_group(_stamps(user.code, seconds, times))
    pair = user.code.astype(np.int64) * len(item.ids) + item.code
    pairs = len(distinct(pair))
    entities_of = {own.name: (own.entity, own.rows) for own in entities}
    report = DataReport(
        rows=len(seconds),
        users=len(user.ids),
        items=len(item.ids),
        events_per_user={
            "min": float(per_user.min()),
            "median": float(np.median(per_user)),
            "p90": float(np.quantile(per_user, 0.9)),
            "max": float(per_user.max()),
        },
        largest_user=float(per_user.max() / len(seconds)),
        time={
            "first": iso(times[0]),
            "last": iso(times[-1]),
            "resolution": resolution(times),
            "distinct": len(times),
        }
        if timed
        else {},
        ties=float(tied.mean()) if timed else 0.0,
        blind=_blind(user.code, seconds, tied) if timed else 0.0,
        lists=_lists(table, columns.history),
        repeats=1 - pairs / len(seconds),
        duplicates=_duplicates(table, np.flatnonzero(tied if columns.history is None else _in_group(pair))),
        matches=list(matches),
        labels={task.name: _label(labels[:, j]) for j, task in enumerate(tasks)},
    )
    report.separations = separating_columns(table, labels, columns, tasks, entities_of, encoders["candidate"])
    report.separations += aggregated_labels(labels, tasks, entities_of)
    for name, values in _used_columns(table, columns, entities, encoders):
        _column_facts(report, name, values)
    report.warnings += _fit_warnings(report, seconds, ties)
    return report


def _lists(table: pa.Table, history: str | None) -> dict[str, Any]:
    """The column of the items before each row, and how long its lists are."""
    if history is None:
        return {}
    length = np.asarray(pc.list_value_length(table[history]))
    return {"column": history, "median": float(np.median(length)), "empty": float((length == 0).mean())}


def _fit_warnings(report: DataReport, seconds: np.ndarray, ties: str) -> Iterator[str]:
    yield from (match.text() for match in report.matches if match.suspicious())
    yield from (separation.text() for separation in report.separations)
    if report.time:
        yield from _time_warnings(report, seconds, ties)
    if report.lists and report.lists["empty"] > _EMPTY:
        yield (
            f"{100 * report.lists['empty']:.1f}% of the lists in {report.lists['column']!r} are empty: check that "
            "it is the column of what was before each row"
        )
    if report.users == 1 < report.rows:
        yield "all events are of one user: check which column holds users (columns.user)"
    elif report.largest_user > _LARGE_USER and report.users >= _LEAST_USERS and report.rows >= _LEAST_ROWS:
        yield f"one user has {100 * report.largest_user:.1f}% of all rows: a bot, or a default id such as 0?"
    if report.duplicates > _DUPLICATED * report.rows:
        yield f"{report.duplicates:,} rows equal another row in every column: drop them, or they count twice"


def _time_warnings(report: DataReport, seconds: np.ndarray, ties: str) -> Iterator[str]:
    strict = ties == "strict"
    if report.time["distinct"] == 1 and report.rows > 1:
        seen = "no event sees another: every history is empty" if strict else "a split by time follows the file's order"
        yield f"every event has the same time ({report.time['first']}), so {seen}; {_TIE_CHOICE}"
    elif strict and report.ties > _TIED:
        yield (
            f"{100 * report.ties:.1f}% of rows share their time with another event of their user and do not see each "
            f"other, and {100 * report.blind:.1f}% see no event of their user at all for that reason (resolution: "
            f"{report.time['resolution']}); {_TIE_CHOICE}"
        )
    late = seconds > clock.time() + _FUTURE
    if late.any():
        yield f"{int(late.sum()):,} rows lie in the future, up to {report.time['last']}: check columns.time_unit"


def _blind(user: np.ndarray, seconds: np.ndarray, tied: np.ndarray) -> float:
    """Share of rows that see nothing of their user for others of it have the same time, and none an earlier one."""
    first = np.full(int(user.max()) + 1, np.inf)
    np.minimum.at(first, user, seconds)
    return float((tied & (seconds == first[user])).mean())


def match_log(
    table: pa.Table, log: EventLog, columns: Columns, items: EntityTable, users: EntityTable
) -> list[IdMatch]:
    """Ids of a later log looked up in the tables of `fit`; only those of which something is missing."""
    found = []
    if (log.item == UNKNOWN).any():
        found.append(TableIds.of(table, columns.item, "item", items).match())
    if users.encoders and len(users.ids):
        rows = np.diff(log.offsets)
        found.append(match_ids(log.user_ids, rows, users.ids, *_names("user"), private=True))
    found += list_matches(table, columns, items)
    found += [] if log.prior_history is None else log.prior_history.matches
    found += [] if log.queries is None or log.queries.match is None else [log.queries.match]
    return [match for match in found if match.unmatched]


def split_facts(
    log: EventLog, part: np.ndarray, tasks: Sequence[TaskConfig]
) -> tuple[dict[str, SplitFacts], list[str]]:
    """Facts about each split, and warnings of what makes their metrics mean less.

    Args:
        part: int8 [R], see `polyrec.data.splits`.
    """
    train = part == splits.TRAIN
    met = train if log.untimed is None else np.isin(log.user, log.user[train])  # with the lists of training rows
    seen_item = np.bincount(log.item[met], minlength=int(log.item.max()) + 1) > 0
    seen_item[UNKNOWN] = False
    users = log.user_codes
    seen_user = np.bincount(users[train], minlength=len(log.user_ids)) > 0
    found = {}
    for name, number in (("train", splits.TRAIN), ("validation", splits.VALIDATION), ("test", splits.TEST)):
        rows = np.flatnonzero(part == number)
        known = ~np.isnan(log.labels[rows])
        found[name] = SplitFacts(
            rows=len(rows),
            users=int(np.count_nonzero(np.bincount(users[rows]))),
            first=iso(log.time[rows].min()) if len(rows) and not log.drawn else "",
            last=iso(log.time[rows].max()) if len(rows) and not log.drawn else "",
            labels={
                task.name: float(log.labels[rows[known[:, j]], j].mean()) if known[:, j].any() else None
                for j, task in enumerate(tasks)
            },
            unseen_items=float((~seen_item[log.item[rows]]).mean()) if len(rows) else 0.0,
            unseen_users=float((~seen_user[users[rows]]).mean()) if len(rows) else 0.0,
            unranked={
                task.name: int(((log.labels[rows, j] > 0) & (log.item[rows] < FIRST)).sum())
                for j, task in enumerate(tasks)
                if task.ranks_catalog
            },
        )
    return found, [*_split_warnings(found, log, part, tasks)]


def _split_warnings(
    parts: Mapping[str, SplitFacts], log: EventLog, part: np.ndarray, tasks: Sequence[TaskConfig]
) -> Iterator[str]:
    for name, number in (("validation", splits.VALIDATION), ("test", splits.TEST)):
        facts, rows = parts[name], part == number
        if not facts.rows:
            continue
        for j, task in enumerate(tasks):
            known = log.labels[rows, j]
            known = known[~np.isnan(known)]
            if not len(known):
                yield f"task {task.name!r} has no {'positive' if task.ranks_catalog else 'label'} in the {name} set"
            elif not task.ranks_catalog and known.min() == known.max():
                yield (
                    f"every label of task {task.name!r} in the {name} set is {known[0]:g}: metrics of it say nothing "
                    "there; split otherwise"
                )
            if (lost := facts.unranked.get(task.name, 0)) > FEW * max(len(known), 1):
                yield (
                    f"{lost:,} of {len(known):,} positives of task {task.name!r} in the {name} set are items that are "
                    "not in the catalog, which no list can hold: add them to the items table"
                )
        if facts.unseen_items > 0.5:
            yield f"{100 * facts.unseen_items:.1f}% of the {name} rows are items without a training event"


def order_warning(log: EventLog, table: pa.Table, columns: Columns) -> Iterator[str]:
    """Say if the order column runs against time within users."""
    if columns.order is None:
        return
    values = column(table, columns.order, "interactions", "order")
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return
    order = np.asarray(values)[log.row].astype(np.float64)
    later = (np.diff(log.user) == 0) & (np.diff(log.time) > 0)
    back = float((np.diff(order)[later] < 0).mean()) if later.any() else 0.0
    if back > FEW:
        yield (
            f"columns.order {columns.order!r} falls in {100 * back:.1f}% of the steps from one time of a user to the "
            "next: it breaks ties of equal times only; check that it counts as time does"
        )


def _names(entity: str) -> tuple[str, str]:
    return f"{entity}s of the interactions", f"{entity}s table"


def _stamps(user: np.ndarray, seconds: np.ndarray, times: np.ndarray) -> np.ndarray:
    """One number for each pair of user and time, int64 [R].

    Args:
        times: the distinct times, ascending.
    """
    span = times[-1] - times[0] + 1
    if span * (int(user.max()) + 1) < 2**53 and are_whole(times, 1.0):
        found = (seconds - times[0]).astype(np.int64)
        found += user.astype(np.int64) * int(span)
        return found
    return user.astype(np.int64) * len(times) + np.searchsorted(times, seconds)


def _in_group(keys: np.ndarray) -> np.ndarray:
    """Whether another row has the same key, bool [R]."""
    ordered = np.sort(keys)
    shared = distinct(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    found = np.zeros(len(keys), dtype=bool)
    for begin in range(0, len(keys) if len(shared) else 0, _CHUNK):
        own = keys[begin : begin + _CHUNK]
        found[begin : begin + _CHUNK] = shared[np.minimum(np.searchsorted(shared, own), len(shared) - 1)] == own
    return found


def _duplicates(table: pa.Table, rows: np.ndarray) -> int:
    """Rows that equal an earlier one in every column, among some rows."""
    if len(rows) < 2:
        return 0
    part = table.take(pa.array(rows)).combine_chunks()
    for n, kind in enumerate(part.schema.types):
        if pa.types.is_nested(kind):
            texts = pa.array([str(value) for value in part.column(n).to_pylist()], pa.string())
            part = part.set_column(n, part.column_names[n], texts)
        elif pa.types.is_dictionary(kind):
            part = part.set_column(n, part.column_names[n], part.column(n).cast(kind.value_type))
    return len(rows) - part.group_by(part.column_names).aggregate([]).num_rows


def _label(values: np.ndarray) -> dict[str, float]:
    known = values[~np.isnan(values)].astype(np.float64)
    if not len(known):
        return {"rows": 0}
    return {
        "rows": len(known),
        "mean": float(known.mean()),
        "min": float(known.min()),
        "max": float(known.max()),
    }


def _used_columns(
    table: pa.Table,
    columns: Columns,
    entities: Sequence[TableIds],
    encoders: Mapping[str, Mapping[str, ColumnEncoder]],
) -> Iterator[tuple[str, pa.ChunkedArray]]:
    for source, name in (("event", "feedback"), ("candidate", "context")):
        yield from ((f"{name}.{c}", table[c]) for c in encoders[source] if c in table.column_names)
    for own in entities:
        held = own.entity.table
        yield from ((f"{own.name}.{c}", held[c]) for c in own.entity.encoders if c in held.column_names)


def _column_facts(report: DataReport, name: str, values: pa.ChunkedArray) -> None:
    """Note a column that is constant or nearly empty."""
    missing = is_null(values)
    known = 1 - float(missing.mean())
    if known < _SPARSE:
        report.sparse[name] = known
    elif len(values) > 1 and not pa.types.is_nested(values.type):
        present = values.drop_null()
        few = pc.unique(present[:1000])
        if len(few) < 2 and len(pc.unique(present)) < 2:
            report.constant.append(name)
