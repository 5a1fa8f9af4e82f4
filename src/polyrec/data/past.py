"""What people did before the log: lists of item ids without times, read as events older than everything else.

Letters: P people, E events of the past, K feedback columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.data.catalog import EntityTable
from polyrec.data.tables import column, ids, is_null, lookup, normalise_ids
from polyrec.schema import Columns


@dataclass
class PastEvents:
    """Events before the log, oldest first within each person.

    Args:
        offsets: int64 [P + 1], where each person's events begin; people as in the log that is read beside it.
        item: int64 [E], rows of the item table.
        marks: {feedback column: float64 [E]}, 1 or 0.
        event_features: {name: [E] or [E, K]}, as of the log's events.
        length: events of a person, the latest, that are read as history.
    """

    offsets: np.ndarray
    item: np.ndarray
    marks: dict[str, np.ndarray]
    event_features: dict[str, np.ndarray] = field(default_factory=dict)
    length: int = 50

    @property
    def person(self) -> np.ndarray:
        """int64 [E], index of each event's person."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def read(self, person: int, room: int) -> slice:
        """The events of a person that a window with place for `room` of them reads: the latest."""
        stop = self.offsets[person + 1]
        return slice(max(self.offsets[person], stop - min(room, self.length)), stop)


def read_past(table: pa.Table, columns: Columns, items: EntityTable, people: pa.Array) -> PastEvents:
    """Read a past table for the people of a log.

    Item ids that only a column of marks holds (somebody's likes reach further back than the list of what they watched)
    become events before those of the first column.

    Args:
        table: one row per person, see `Columns.past`.
        people: ids [P] of the log's people; rows of others are not read.

    Raises:
        ValueError: a person with two rows, a column that is missing or holds no lists.
    """
    assert columns.past is not None
    owners = ids(table, columns.user, "past", "user id")
    if len(pc.unique(owners)) < len(owners):
        twice = next(v for v, n in ((x["values"], x["counts"]) for x in pc.value_counts(owners).to_pylist()) if n > 1)
        raise ValueError(f"past: {columns.user} {twice} has several rows: keep one row per person, with lists")
    person = np.asarray(lookup(owners, normalise_ids(people)).fill_null(-1)).astype(np.int64)
    lists = {name: _lists(table, name, items) for name in columns.past}
    span = len(items) + 1
    rows, item = lists[next(iter(columns.past))]
    known = np.unique(rows * span + item)
    parts = [(rows, item, np.ones(len(rows), dtype=np.int64))]
    for name in list(columns.past)[1:]:
        rows, item = lists[name]
        key, first = np.unique(rows * span + item, return_index=True)
        first = np.sort(first[~np.isin(key, known)])
        known = np.union1d(known, key)
        parts.insert(0, (rows[first], item[first], np.zeros(len(first), dtype=np.int64)))
    rows, item, late = (np.concatenate([p[i] for p in parts]) for i in range(3))
    keep = person[rows] >= 0
    rows, item, late = rows[keep], item[keep], late[keep]
    order = np.lexsort((np.arange(len(rows)), late, person[rows]))
    rows, item = rows[order], item[order]
    marks: dict[str, np.ndarray] = {}
    for name, meant in columns.past.items():
        own, taken = lists[name]
        held = np.isin(rows * span + item, own * span + taken).astype(np.float64)
        marks |= {feedback: np.maximum(marks.get(feedback, 0.0), held) for feedback in meant}
    offsets = np.searchsorted(person[rows], np.arange(len(people) + 1))
    return PastEvents(offsets, item, marks, length=columns.past_length)


def _lists(table: pa.Table, name: str, items: EntityTable) -> tuple[np.ndarray, np.ndarray]:
    """Row of the table and row of the item table of every id in a list column, int64 [E] each."""
    values = column(table, name, "past", "item ids")
    if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        raise ValueError(f"past: column {name!r} has type {values.type}: give a list of item ids per person")
    rows, flat = np.asarray(pc.list_parent_indices(values)).astype(np.int64), values.flatten()
    keep = ~is_null(flat)
    return rows[keep], items.rows(flat.filter(pa.array(keep)))


def check_marks(columns: Columns, feedback: Mapping[str, object] | Sequence[str]) -> None:
    """Every feedback column named by `Columns.past` must be one of the log's."""
    for name, meant in (columns.past or {}).items():
        for mark in meant:
            if mark not in feedback:
                raise ValueError(
                    f"columns.past: {name!r} marks {mark!r}, which is not a feedback column of the log: "
                    f"{sorted(feedback)}"
                )
