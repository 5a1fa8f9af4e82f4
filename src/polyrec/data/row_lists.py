"""Tables of which each row lists the items before it: a row is a sequence of its own, its item the only target.

The events of a list are read as those of a request without times: they are history, they count in running statistics
for their own row only, and are no candidates.

Many such files hold every prefix of a session as a row of its own. Rows that go on from one another *belong together*
(`EventLog.together`): what one of them counts tells the target of another, so that they share a fold, and a random
split holds them out as one. Where rows name users who come again, those of one user belong together instead.

Letters: R rows of the table, N events of their lists and of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from polyrec.core.schema import REFUSED, ROW_ORDER, TIME_GAP, Columns, TaskConfig
from polyrec.data.catalog import EntityTable
from polyrec.data.columns import FIRST, ColumnEncoder
from polyrec.data.event_log import EventLog
from polyrec.data.ids import ids, lookup, of_one_type
from polyrec.data.sampling import id_hashes, splitmix64, uniform
from polyrec.data.splits import TRAIN
from polyrec.data.tables import column
from polyrec.data.text_lists import id_entries, id_lists

_ORDER = "the order of rows with lists"
_LARGEST_GROUP, _LONGEST_SHARED = 0.02, 5  # share of rows, and items that rows begin with by chance
_LEAKS, _LEAST = 0.9, 20  # share of rows whose target ends its own list, of so many rows, from which on it is reported


def with_row_users(columns: Columns, table: pa.Table) -> Columns:
    """Columns in which each row is a user of its own, if they name none and the table has none of the default name."""
    absent = columns.history is not None and columns.user == Columns.user and columns.user not in table.column_names
    return replace(columns, user=ROW_ORDER) if absent else columns


def with_lists(table: pa.Table, columns: Columns, name: str = "interactions") -> pa.Table:
    """A table whose lists are lists of ids, of one type with the items, and which has a column of users.

    Tables without lists stay as they are.

    Example:
        >>> table = pa.table({"item_id": ["7", "a"], "hist": ["5 6", ""]})
        >>> with_lists(table, Columns(user="__row__", history="hist"))["hist"].to_pylist()
        [['5', '6'], []]
    """
    if columns.history is None:
        return table
    what = f"{name}: column {columns.history!r} (history)"
    rows, listed = id_entries(id_lists(column(table, columns.history, name, "history"), what), what)
    item, listed = of_one_type([ids(table, columns.item, name, "item id"), listed])
    offsets = np.searchsorted(rows, np.arange(table.num_rows + 1))
    found: dict[str, pa.Array] = {
        columns.item: item,
        columns.history: pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), listed),
    }
    if columns.user == ROW_ORDER:
        found[columns.user] = pa.array(np.arange(table.num_rows))
    for key, values in found.items():
        at = table.column_names.index(key) if key in table.column_names else table.num_columns
        table = table.append_column(key, values) if at == table.num_columns else table.set_column(at, key, values)
    return table


def row_events(table: pa.Table, columns: Columns, row: int) -> pa.Table:
    """A row's list and then its item, as a table of their ids.

    Args:
        table: of [`with_lists`].
    """
    listed = column(table, columns.history or "", "interactions", "history")[row].values
    return pa.table({columns.item: pa.concat_arrays([listed, column(table, columns.item, "", "")[row : row + 1]])})


def item_events(table: pa.Table, columns: Columns) -> pa.Table:
    """All items of a table, those of lists too, as a column of its own."""
    if columns.history is None:
        return table
    lists = column(table, columns.history, "interactions", "history")
    return pa.table({columns.item: pa.concat_arrays([column(table, columns.item, "", ""), lists.flatten()])})


def check_targets(table: pa.Table, columns: Columns) -> None:
    """Refuse lists that hold the target of their row at an end, in nearly all rows.

    Args:
        table: of [`with_lists`].

    Raises:
        ValueError: with the share of rows.
    """
    if columns.history is None:
        return
    lists = column(table, columns.history, "interactions", "history")
    target, flat = column(table, columns.item, "interactions", "item id"), lists.flatten()
    offsets = np.asarray(lists.offsets) - lists.offsets[0].as_py()
    held = np.flatnonzero(np.diff(offsets) > 0)
    if len(held) < _LEAST:
        return
    own = np.asarray(lookup(target, flat.unique()).fill_null(-1))[held]
    codes = np.asarray(lookup(flat, flat.unique()))
    for where, at in (("last", offsets[1:][held] - 1), ("first", offsets[:-1][held])):
        share = float((codes[at] == own).mean())
        if share >= _LEAKS:
            raise ValueError(
                f"interactions: {columns.item!r} is also the {where} id of {columns.history!r} in {share:.0%} of the "
                "rows, so that the target would be read from its own history: remove it from the lists (they hold "
                "what was before the row), or name another column of targets"
            )


def after_lists(
    log: EventLog,
    table: pa.Table,
    columns: Columns,
    tasks: Sequence[TaskConfig],
    items: EntityTable,
    encoders: Mapping[str, Mapping[str, ColumnEncoder]],
) -> EventLog:
    """The log in which each row of a table comes after its list, and sees nothing else: rows are its users.

    Args:
        log: the rows, as `encode_log` reads them.
        table: of [`with_lists`].
        encoders: {"event": {...}, "candidate": {...}}.
    """
    lists = column(table, columns.history or "", "interactions", "history")
    length = np.diff(np.asarray(lists.offsets)) + 1
    row = np.repeat(np.arange(len(length)), length)
    untimed = np.ones(len(row), dtype=bool)
    untimed[np.cumsum(length) - 1] = False
    back = np.argsort(log.row)
    source, user = back[row], log.user[back]

    def spread(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: known[source] for name, known in values.items() if name != TIME_GAP}

    found = EventLog(
        user=row,
        item=log.item[source],
        time=np.zeros(len(row)),
        order=log.order[source],
        row=row,
        user_ids=log.user_ids.take(pa.array(user)),
        labels=log.labels[source],
        event_features=spread(log.event_features),
        candidate_features=spread(log.candidate_features),
        user_features={name: known[user] for name, known in log.user_features.items()},
        measures={name: np.where(untimed, np.nan, known) for name, known in spread(log.measures).items()},
        untimed=untimed,
        drawn=columns.time is None,
    )
    found.item[untimed] = items.rows(lists.flatten())
    # An item of a list was taken, whatever of it is unknown.
    found.labels[untimed] = [1.0 if task.head == "retrieval" else np.nan for task in tasks]
    hide_lists(found, encoders)
    found.together = _together(found, columns, log.user_ids, user)
    seconds = log.time[back]
    if found.drawn:
        draw = uniform(_prefixes(found, found.together)[~untimed], 0, 0, _ORDER)
        seconds = np.argsort(np.argsort(draw, kind="stable")).astype(np.float64)
    return _with_times(found, seconds)


def hide_lists(log: EventLog, encoders: Mapping[str, Mapping[str, ColumnEncoder]]) -> None:
    """Make feedback and context of the events of lists unknown: those are of the row's own event."""
    if log.untimed is None:
        return
    number = int(log.untimed.sum())
    for source, features in (("event", log.event_features), ("candidate", log.candidate_features)):
        for name, encoder in encoders[source].items():
            features[name][log.untimed] = encoder.missing(number)
    for name, values in log.event_features.items():
        if name.startswith(REFUSED):
            values[log.untimed] = 0


def held_rows_last(log: EventLog, part: np.ndarray) -> EventLog:
    """A log with a drawn order in which the rows that are held out come after all that train."""
    assert log.untimed is not None
    own = ~log.untimed
    position = np.empty(int(own.sum()))
    position[np.lexsort((log.time[own], part[own] != TRAIN))] = np.arange(len(position))
    return _with_times(log, position)


def sequences(log: EventLog, rows: np.ndarray, positive: np.ndarray | None = None) -> np.ndarray:
    """The events to count of some rows, int64: of a table with lists those of the lists, too, but each only once.

    A row that others extend is counted through them: as many of its kind count as nothing goes on from. Where the item
    was negative, only the list is left, once and if no other row tells it.

    Args:
        rows: bool [N], the rows' own events.
        positive: bool [N], those whose item is a positive; None: all.
    """
    own = np.flatnonzero(rows)
    if log.untimed is None:
        return own if positive is None else own[positive[own]]
    users = log.user_codes[log.offsets[:-1]]
    alone = len(np.unique(users)) == len(users)  # then any row may go on from any other
    key, begin = _prefixes(log, np.zeros_like(users) if alone else users), log.offsets[:-1]
    last = np.full(len(begin), -1)  # of the sequence of each row that counts, -1: it does not
    counted = np.ones(len(own), dtype=bool) if positive is None else positive[own]
    last[log.user[own[counted]]] = own[counted]
    whole = _ends_sequence(key, last, log)
    last[~whole] = -1
    left = own[~counted]
    left = left[left > begin[log.user[left]]] - 1
    left = left[np.unique(key[left], return_index=True)[1]]
    index = np.arange(len(log))
    left = left[~np.isin(key[left], key[index <= last[log.user]])]
    last[log.user[left]] = left
    return np.flatnonzero(index <= last[log.user])


def positive_items(log: EventLog, event: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Users, and items of the catalog, of some rows' own events (int64), with what their lists say; int64 each."""
    rows = np.zeros(len(log), dtype=bool)
    rows[event] = True
    events = sequences(log, rows)
    events = events[log.item[events] >= FIRST]
    return log.user[events], log.item[events] - FIRST


def _ends_sequence(key: np.ndarray, last: np.ndarray, log: EventLog) -> np.ndarray:
    """Which rows tell their sequence themselves, for no other goes on from them; bool [R].

    Args:
        key: of [`_prefixes`].
        last: int64 [R], where the sequence of each row ends, -1: it has none.
    """
    index, row = np.arange(len(log)), np.flatnonzero(last >= 0)
    node, code, size = np.unique(key[last[row]], return_inverse=True, return_counts=True)
    inner = (index < last[log.user]) & np.isin(key, node)
    parent = np.maximum.reduceat(np.where(inner, index, -1), log.offsets[:-1])[row]
    going_on = np.bincount(np.searchsorted(node, key[parent[parent >= 0]]), minlength=len(node))
    sort = np.argsort(code, kind="stable")
    rank = np.empty(len(row), dtype=np.int64)
    rank[sort] = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size)
    found = np.zeros(len(last), dtype=bool)
    found[row] = rank < (size - going_on)[code]
    return found


def _together(log: EventLog, columns: Columns, user_ids: pa.Array, user: np.ndarray) -> np.ndarray:
    """Users who come again, or else what a row's sequence begins with, if that is all of another row, int64 [R]."""
    if columns.user != ROW_ORDER and len(user_ids) < len(user):
        return id_hashes(user_ids, b"").view(np.int64)[user]
    key, begin = _prefixes(log, np.zeros(len(user), dtype=np.int64)), log.offsets[:-1]
    end = log.offsets[1:] - 1
    index, whole = np.arange(len(log)), np.isin(key, key[end])
    found, large = np.zeros(len(begin), dtype=np.int64), np.ones(len(begin), dtype=bool)
    for least in range(2, _LONGEST_SHARED + 1):  # what many rows begin with joins sessions that have nothing in common
        shared = whole & (index - begin[log.user] + 1 >= least)
        first = np.minimum(np.minimum.reduceat(np.where(shared, index, len(log)), begin), end)
        found[large] = key[first][large]
        _, code, size = np.unique(found, return_inverse=True, return_counts=True)
        large = size[code] > max(_LARGEST_GROUP * len(begin), _LONGEST_SHARED)
    return found


def _prefixes(log: EventLog, groups: np.ndarray) -> np.ndarray:
    """A hash of each event and all before it in its row, int64 [N]; alike within one group only ([R])."""
    state, item = groups.view(np.uint64).copy(), splitmix64(log.item.astype(np.uint64))
    begin, length = log.offsets[:-1], np.diff(log.offsets)
    key = np.empty(len(log), dtype=np.uint64)
    longest = np.argsort(-length, kind="stable")
    for step in range(int(length.max(initial=0))):
        longest = longest[: np.searchsorted(-length[longest], -step)]
        at = begin[longest] + step
        key[at] = state[longest] = splitmix64(splitmix64(state[longest]) ^ item[at])
    return key.view(np.int64)


def _with_times(log: EventLog, seconds: np.ndarray) -> EventLog:
    """The log with rows at some times ([R]) and their lists within the second before."""
    assert log.untimed is not None
    step, length = np.arange(1, len(log) + 1) - log.offsets[log.user], np.diff(log.offsets)[log.user]
    time = np.where(log.untimed, seconds[log.user] - 1 + step / length, seconds[log.user])
    order = np.empty(len(log), dtype=np.int64)
    order[np.lexsort((log.order, time))] = np.arange(len(log))
    return replace(log, time=time, order=order)
