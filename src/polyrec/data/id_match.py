"""How well the ids of two tables match: the share that matches nothing, examples, and how the two spell an id.

An id that is not in a table is a cold start, not an error, so ids that are written in two ways (1 and u1, 007 and 7)
would only make a model worse. Every table that is joined by ids is measured here.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.core.stack import caller_level
from polyrec.data.ids import lookup

FEW = 0.03  # share of rows or ids without a match that is worth a warning
_RESPELLED = "ids match"
_SAMPLE, _KNOWN, _NEAR, _EXAMPLES = 1000, 500_000, 200, 3
_KNOWN_LATER = 50_000  # known ids that new ones are compared with, which may come one by one
_REFUSABLE = 10  # distinct ids of a LATER table from which on it may be refused; a few new ones are daily bread


class DataWarning(UserWarning):
    """Something in the data that would mislead whoever reads a metric."""


@dataclass(frozen=True)
class IdMatch:
    """Ids that one table uses, looked up among those of another.

    Args:
        name: what is looked up, e.g. "items of the interactions".
        table: where, e.g. "items table".
        used: distinct ids that are looked up.
        unmatched: of these, how many are not found.
        rows: share of the rows whose id is not found.
        known: ids of the table that is searched.
        unused: of these, how many nobody looks up.
        examples: ids that are not found, the most frequent first.
        known_examples: ids of the table that is searched, unused ones where there are any.
        difference: how the two spell an id, where that explains the ids that are not found, else "".
        private: the ids are those of users, which no file that leaves this machine may name.
    """

    name: str
    table: str
    used: int
    unmatched: int
    rows: float
    known: int
    unused: int
    examples: tuple[str, ...] = ()
    known_examples: tuple[str, ...] = ()
    difference: str = ""
    private: bool = False

    @property
    def share(self) -> float:
        """Of the distinct ids, those that are not found."""
        return self.unmatched / max(self.used, 1)

    def suspicious(self, later: bool = False) -> bool:
        """Whether more is missing than a few cold starts.

        Args:
            later: see [`check`].
        """
        return max(self.share, self.rows) > FEW and not (later and self.used < _REFUSABLE)

    def summary(self) -> str:
        """How many are found, without any id."""
        if not self.unmatched:
            return f"all {self.used:,} {self.name} are in the {self.table}"
        share = f"{100 * self.rows:.1f}% of rows"
        return f"{self.unmatched:,} of {self.used:,} {self.name} are not in the {self.table} ({share})"

    def text(self, show_ids: bool = True) -> str:
        """One sentence with examples.

        Args:
            show_ids: False leaves the ids of users out.
        """
        found = self.summary()
        if self.examples and (show_ids or not self.private):
            found += f", e.g. {', '.join(self.examples)}, where it has {', '.join(self.known_examples)}"
        return f"{found}; {self.difference}" if self.difference and (show_ids or not self.private) else found

    def check(self, allowed: float, later: bool = False) -> None:
        """Refuse a table of which next to nothing matches.

        Args:
            allowed: share of ids that may be missing (`Columns.max_unmatched`).
            later: the ids are those of a table that came after `fit`: a few may all be new, and so may be all users
                (of an evaluation by users), unless they are the known ones in another spelling.
        """
        respelled = self.difference.startswith(_RESPELLED)
        new = later and (self.used < _REFUSABLE or (self.private and not respelled))
        if self.share > allowed and not new:
            raise ValueError(
                f"{self.text()}: use the same ids in both tables, or allow it with "
                "columns={'max_unmatched': 1} if so many are really unknown"
            )


def match_ids(
    distinct: pa.Array, rows: np.ndarray, known: pa.Array, name: str, table: str, private: bool = False
) -> IdMatch:
    """Look distinct ids up in a table.

    Args:
        distinct: ids [U], each once.
        rows: int64 [U], rows that use each.
        known: ids [N] of the table, each once.
        name, table, private: see [`IdMatch`].

    Example:
        >>> found = match_ids(pa.array([1, 2, 3]), np.array([5, 4, 1]), pa.array(["u1", "u2"]), "users", "users table")
        >>> print(found.text())
        3 of 3 users are not in the users table (100.0% of rows), e.g. 1, 2, 3, where it has 'u1', 'u2'; ids match
        without the letters in front: 1 and 'u1'
    """
    index = lookup(distinct, known)
    missing = np.asarray(pc.is_null(index))
    hit = np.zeros(len(known), dtype=bool)
    hit[np.asarray(index.drop_null()).astype(np.int64)] = True
    match = IdMatch(
        name,
        table,
        used=len(distinct),
        unmatched=int(missing.sum()),
        rows=float(rows[missing].sum() / max(rows.sum(), 1)),
        known=len(known),
        unused=int((~hit).sum()),
        private=private,
    )
    if not match.unmatched or not len(known):
        return match
    frequent = np.flatnonzero(missing)[np.argsort(-rows[missing], kind="stable")]
    lost = distinct.take(pa.array(frequent[:_SAMPLE]))
    shown = known.take(pa.array(np.argsort(hit, kind="stable")[:_EXAMPLES]))
    return replace(
        match,
        examples=_texts(lost[:_EXAMPLES]),
        known_examples=_texts(shown),
        difference=spelling(lost, known) if match.suspicious() else "",
    )


def warn_of_respelled(new: pa.Array, known: pa.Array, what: str) -> None:
    """Warn if most ids that are to be added are known ones in another spelling.

    Args:
        new: ids [M] that are not among `known`.
        known: ids [N].
        what: names the table and the column.
    """
    text = spelling(new, known[:_KNOWN_LATER])
    if text.startswith(_RESPELLED):
        warnings.warn(
            f"{what}: most of the new ids are known ones in another spelling ({text}): nothing that was learned about "
            "those holds for the new ones",
            DataWarning,
            stacklevel=caller_level(),
        )


def spelling(lost: pa.Array, known: pa.Array) -> str:
    """How two tables spell an id, if that explains most ids that are not found, else the nearest pair or "".

    Args:
        lost: ids [M] that are not among `known`.
        known: ids [N].

    Example:
        >>> spelling(pa.array(["0012", "0345"]), pa.array([12, 345, 6]))
        "ids match without leading zeros: '0012' and 12"
        >>> spelling(pa.array(["gloves"]), pa.array(["glove", "hat"]))
        "nearest: 'gloves' and 'glove'"
    """
    lost, known = lost[:_SAMPLE], known[:_KNOWN]
    mine, theirs = lost.cast(pa.large_string()), known.cast(pa.large_string())
    enough = min(len(mine), len(theirs)) / 2
    for words, changed, both in _SPELLINGS:
        index = pc.index_in(changed(mine), value_set=changed(theirs)) if both else _one_side(mine, theirs, changed)
        matched = np.flatnonzero(np.asarray(pc.is_valid(index)))
        if len(matched) >= enough:
            at = int(matched[0])
            return f"{_RESPELLED} {words}: {_text(lost[at])} and {_text(known[index[at].as_py()])}"
    if pa.types.is_integer(lost.type) and pa.types.is_integer(known.type):
        return ""  # that 28 looks like 8 says nothing
    one = mine[0].as_py()
    near = difflib.get_close_matches(one, theirs[:_NEAR].to_pylist(), n=1)
    if near:
        return f"nearest: {_text(lost[0])} and {_text(known[pc.index(theirs, near[0]).as_py()])}"
    return ""


def _one_side(mine: pa.Array, theirs: pa.Array, changed: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """Places of ids that match when one of the two is changed; a1 and b1 are two ids though both end in 1."""
    return pc.coalesce(
        pc.index_in(changed(mine), value_set=theirs),
        pc.index_in(mine, value_set=changed(theirs)),
    )


def _without(pattern: str) -> Callable[[pa.Array], pa.Array]:
    return lambda values: pc.replace_substring_regex(values, pattern=pattern, replacement="")


# (how ids match, what is done to them, whether to those of both tables)
_SPELLINGS: tuple[tuple[str, Callable[[pa.Array], pa.Array], bool], ...] = (
    ("without white space around them", pc.utf8_trim_whitespace, True),
    ("in lower case", pc.utf8_lower, True),
    ("without leading zeros", _without("^0+"), True),
    ("without '.0' at the end", _without(r"\.0+$"), True),
    ("without the letters in front", _without(r"^\D+"), False),
    ("without the letters at the end", _without(r"\D+$"), False),
)


def _texts(values: pa.Array) -> tuple[str, ...]:
    return tuple(_text(value) for value in values)


def _text(value: pa.Scalar) -> str:
    """An id as Python writes it, so that 1 and '1' look different; long ones are cut."""
    found = repr(value.as_py())
    return found if len(found) <= 40 else f"{found[:37]}..."
