"""What users did before the log: lists of item ids without times, read as events older than everything else.

Letters: P users, E events of the past, K feedback columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.core.schema import Columns
from polyrec.data.catalog import EntityTable
from polyrec.data.id_match import IdMatch, match_ids
from polyrec.data.tables import column, ids, lookup, normalise_ids
from polyrec.data.text_lists import id_entries


@dataclass
class PriorHistory:
    """Events before the log, oldest first within each user.

    Args:
        offsets: int64 [P + 1], where each user's events begin; users as in the log that is read beside it.
        item: int64 [E], rows of the item table.
        marks: {feedback column: float64 [E]}, 1 or 0.
        event_features: {name: [E] or [E, K]}, as of the log's events.
        length: events of a user, the latest, that are read as history.
        matches: its ids looked up in other tables, as far as they say something.
    """

    offsets: np.ndarray
    item: np.ndarray
    marks: dict[str, np.ndarray]
    event_features: dict[str, np.ndarray] = field(default_factory=dict)
    length: int = 50
    matches: tuple[IdMatch, ...] = ()

    @property
    def user(self) -> np.ndarray:
        """int64 [E], index of each event's user."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def of_users(self, users: np.ndarray) -> PriorHistory:
        """The past of some users, int64 [V], any of them several times."""
        lengths = np.diff(self.offsets)[users]
        offsets = np.append(0, np.cumsum(lengths))
        row = np.arange(offsets[-1]) + np.repeat(self.offsets[users] - offsets[:-1], lengths)

        def of_rows(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: values[row] for name, values in columns.items()}

        return PriorHistory(offsets, self.item[row], of_rows(self.marks), of_rows(self.event_features), self.length)

    def read(self, user: int, free: int) -> slice:
        """The events of a user that a window with place for `free` of them reads: the latest."""
        stop = self.offsets[user + 1]
        return slice(max(self.offsets[user], stop - min(free, self.length)), stop)


def read_prior_history(table: pa.Table, columns: Columns, items: EntityTable, users: pa.Array) -> PriorHistory:
    """Read a prior history for the users of a log.

    Item ids that only a column of marks holds (somebody's likes reach further back than the list of what they watched)
    become events before those of the first column.

    Args:
        table: one row per user, see `Columns.prior_history`.
        users: ids [P] of the log's users; rows of others are not read.

    Raises:
        ValueError: a user with two rows, a column that is missing or holds no lists.
    """
    assert columns.prior_history is not None
    owners = ids(table, columns.user, "prior_history", "user id")
    if len(pc.unique(owners)) < len(owners):
        twice = next(v for v, n in ((x["values"], x["counts"]) for x in pc.value_counts(owners).to_pylist()) if n > 1)
        raise ValueError(f"prior_history: {columns.user} {twice} has several rows: keep one row per user, with lists")
    user = np.asarray(lookup(owners, normalise_ids(users)).fill_null(-1)).astype(np.int64)
    lists = {name: _lists(table, name) for name in columns.prior_history}
    # Events are distinguished by their ids: items that are not in the catalog share one row of it.
    given = [listed for _, listed in lists.values()]
    if len({listed.type for listed in given}) > 1:
        given = [listed.cast(pa.large_string()) for listed in given]
    pool = pa.concat_arrays(given).dictionary_encode()
    item_rows, codes = items.rows(pool.dictionary), np.asarray(pool.indices).astype(np.int64)
    ends = np.cumsum([len(listed) for listed in given])[:-1]
    span = len(item_rows) + 1
    keys = {n: rows * span + c for (n, (rows, _)), c in zip(lists.items(), np.split(codes, ends), strict=True)}
    first_list = keys[next(iter(columns.prior_history))]
    parts, known = [first_list], np.unique(first_list)
    for name in list(columns.prior_history)[1:]:
        extra, at = np.unique(keys[name], return_index=True)
        at = np.sort(at[~np.isin(extra, known)])  # in the order of the list
        known = np.union1d(known, extra)
        parts.insert(0, keys[name][at])
    key = np.concatenate(parts)
    key = key[user[key // span] >= 0]
    key = key[np.argsort(user[key // span], kind="stable")]
    marks: dict[str, np.ndarray] = {}
    for name, meant in columns.prior_history.items():
        held = np.isin(key, keys[name]).astype(np.float64)
        marks |= {feedback: np.maximum(marks.get(feedback, 0.0), held) for feedback in meant}
    offsets = np.searchsorted(user[key // span], np.arange(len(users) + 1))
    counts = np.bincount(codes, minlength=len(pool.dictionary))
    matches = [match_ids(pool.dictionary, counts, items.ids, "items of the prior history", "items table")]
    if (user < 0).all():  # that many of the log's users have no past is nothing strange
        rows = np.ones(len(users), dtype=np.int64)
        matches.append(match_ids(users, rows, owners, "users of the interactions", "prior history", private=True))
    return PriorHistory(
        offsets, item_rows[key % span], marks, length=columns.prior_history_length, matches=tuple(matches)
    )


def _lists(table: pa.Table, name: str) -> tuple[np.ndarray, pa.Array]:
    """Row of the table of every id in a list column, int64 [E], and the ids [E]."""
    values = column(table, name, "prior_history", "item ids")
    if pa.types.is_null(values.type):  # nobody has any
        values = values.cast(pa.list_(pa.int64()))
    if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        raise ValueError(f"prior_history: column {name!r} has type {values.type}: give a list of item ids per user")
    return id_entries(values, f"prior_history: column {name!r} (item ids)")


def check_marks(columns: Columns, feedback: Mapping[str, object] | Sequence[str]) -> None:
    """Every feedback column named by `Columns.prior_history` must be one of the log's."""
    for name, meant in (columns.prior_history or {}).items():
        for mark in meant:
            if mark not in feedback:
                raise ValueError(
                    f"columns.prior_history: {name!r} marks {mark!r}, which is not a feedback column of the log: "
                    f"{sorted(feedback)}"
                )
