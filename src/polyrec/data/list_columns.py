"""Which column of somebody else's log lists the items before each row.

Letters: R sampled rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.data.arrays import column, decoded, is_list, is_text
from polyrec.data.column_facts import determines, facts
from polyrec.data.column_words import HISTORIES, strength, tokens
from polyrec.data.ids import lookup, normalise_ids
from polyrec.data.text_lists import id_entries, id_lists

_KNOWN, _KNOWN_OF_NAMED = 0.8, 0.1  # share of the listed ids that must be items, of any column and of one so named
_SEVERAL = 0.1  # share of rows that list more than one id
_COVERED, _LENGTHS = 0.3, 3  # share of the items that lists of any name must hold, and how many lengths they have
_OWN = 0.9  # share of rows that list their own item from which on the lists are what was shown


@dataclass(frozen=True)
class ListColumn:
    """A column of lists.

    Args:
        name: of the column.
        item: the column whose ids it lists.
        reason: why it is one.
        again: share of the rows whose item is in their own list.
    """

    name: str
    item: str
    reason: str
    again: float


def find_lists(table: pa.Table, item: str | None = None) -> ListColumn | None:
    """The column that lists the items before each row; None: there is none.

    Its ids are mostly known as items, several in a row, and neither an attribute of the row's item nor a list of what
    was shown with it.

    Args:
        table: a sample of rows.
        item: the column of items, if it is known.

    Example:
        >>> rows = {"session_id": [1, 2, 3], "item_id_list": ["5 6", "6", "6 7"], "item_id": [7, 5, 5]}
        >>> found = find_lists(pa.table(rows))
        >>> found.name, found.item
        ('item_id_list', 'item_id')
    """
    held = [
        (name, table[name]) for name in table.column_names if is_list(table[name].type) or is_text(table[name].type)
    ]
    targets = [item] if item is not None else _items(table)
    found = [one for name, _ in held for target in targets if (one := _judged(table, name, target)) is not None]
    best = max(found, key=lambda one: one[0], default=None)
    return None if best is None else best[1]


def _items(table: pa.Table) -> list[str]:
    """Columns whose names say that they hold items, the surest ones; where none does, all that are not users' and do
    not number the rows, as whose ids any list of small numbers would be known."""
    sure = {name: strength("item", name) for name in table.column_names if not is_list(table[name].type)}
    best = max(sure.values(), default=0.0)
    if best > 1:
        return [name for name, said in sure.items() if said == best]
    return [
        name
        for name in sure
        if strength("user", name) < 2 and not strength("time", name) and facts(table, name).distinct < table.num_rows
    ]


def _judged(table: pa.Table, name: str, item: str) -> tuple[tuple[bool, float], ListColumn] | None:
    """A column of lists with how surely it is one."""
    if name == item or item not in table.column_names:
        return None
    try:
        lists = id_lists(column(table, name, "sample", "lists"), name)
        (rows, listed), target = id_entries(lists, name), normalise_ids(column(table, item, "sample", "item"))
    except (ValueError, pa.ArrowException):
        return None
    per_row = np.bincount(rows, minlength=table.num_rows)
    if not len(listed) or (per_row > 1).sum() < _SEVERAL * (per_row > 0).sum():
        return None
    known = float(np.asarray(pc.is_valid(lookup(listed, target.unique().drop_null()))).mean())
    named = bool(set(tokens(name)) & HISTORIES)
    if known < (_KNOWN_OF_NAMED if named else _KNOWN):
        return None
    again = _again(rows, listed, target)
    if not named and (
        again >= _OWN
        or _is_attribute(table, name, item)
        or not _is_like_a_history(table, name, listed, target, per_row)
    ):
        return None
    reason = f"{'its name, and ' * named}{known:.0%} of the ids that it lists are in {item!r}"
    return (named, known), ListColumn(name, item, reason, again)


def _is_like_a_history(table: pa.Table, name: str, listed: pa.Array, target: pa.Array, per_row: np.ndarray) -> bool:
    """Whether a column that no name tells of holds histories: many of the items, in lists of many lengths, that are no
    attribute of a user; small numbers of anything else (interests, places, vectors) look like ids, too."""
    covered = float(np.asarray(pc.is_valid(lookup(target.unique().drop_null(), listed.unique()))).mean())
    if covered < _COVERED or len(np.unique(per_row)) < _LENGTHS:
        return False
    users = [other for other in table.column_names if strength("user", other) >= 2]
    return not any(_is_attribute(table, name, user) for user in users)


def _again(rows: np.ndarray, listed: pa.Array, target: pa.Array) -> float:
    """Share of the rows with lists whose own item is in theirs."""
    words = listed.unique()
    own = np.asarray(lookup(target, words).fill_null(-1))
    hit = np.asarray(lookup(listed, words)) == own[rows]
    return len(np.unique(rows[hit])) / len(np.unique(rows))


def _is_attribute(table: pa.Table, name: str, item: str) -> bool:
    """Whether an item (or a user) has one list, whatever the row."""
    values = decoded(column(table, name, "sample", "lists"))
    texts = values if is_text(values.type) else pa.array([str(v) for v in values.to_pylist()])
    both = pa.table({"item": column(table, item, "sample", "item"), "list": texts})
    return determines(facts(both, "item"), facts(both, "list"))
