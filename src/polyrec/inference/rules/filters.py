"""Conditions over columns: which rows match, with the logic of SQL where values are missing.

What is compared with a missing value is neither true nor false: `price <= 20` and `not price > 20` both leave out a row
without a price. A row matches where the whole condition is true.

Letters: N rows.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.core.expressions import (
    Arithmetic,
    Both,
    Comparison,
    Either,
    IsNull,
    Items,
    Literal,
    Member,
    Name,
    Negative,
    Node,
    Not,
    Power,
    parse,
)
from polyrec.core.settings import nearest, shown
from polyrec.data.arrays import decoded, is_list, is_number, is_text

_COMPARE: dict[str, tuple[Callable[[Any, Any], Any], Callable[..., Any]]] = {
    "==": (operator.eq, pc.equal),
    "!=": (operator.ne, pc.not_equal),
    "<": (operator.lt, pc.less),
    "<=": (operator.le, pc.less_equal),
    ">": (operator.gt, pc.greater),
    ">=": (operator.ge, pc.greater_equal),
}
_COMPUTE: dict[str, Callable[[Any, Any], Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "^": np.power,
}


class Rows(Protocol):
    """What conditions read."""

    @property
    def names(self) -> Collection[str]:
        """Columns there are."""

    def __len__(self) -> int: ...

    def column(self, name: str) -> pa.Array:
        """One of them; lists as lists."""


class _Values(NamedTuple):
    """Values of all rows, or one of all of them.

    Args:
        kind: "number", "text", "time", "true or false", "list", or "null" (the word).
        data: numpy array or number; Arrow array or scalar of texts; Arrow array of lists.
        known: bool, where it is not missing.
        what: it is, for messages.
    """

    kind: str
    data: Any
    known: Any
    what: str


class _Truth(NamedTuple):
    """Where a condition is true, and where it is known; both bool, of all rows or one for all."""

    true: Any
    known: Any


def matching(text: str, rows: Rows) -> np.ndarray:
    """Rows that an expression is true of, bool [N].

    Raises:
        ValueError: it cannot be read, names a column that there is not, or compares what cannot be compared.

    Example:
        >>> matching("x > 1 or x is null", TableRows(pa.table({"x": [1, 2, None]}))).tolist()
        [False, True, True]
    """
    return holds(parse(text), rows, text)


def holds(node: Node, rows: Rows, text: str) -> np.ndarray:
    """[`matching`] of a tree; `text` is for messages."""
    with np.errstate(all="ignore"):
        found = _Filter(text, rows).condition(node)
    return np.broadcast_to(np.asarray(found.true, dtype=bool) & found.known, len(rows)).copy()


class TableRows:
    """Rows of a table.

    Args:
        table: its columns have the types that they are compared in.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @property
    def names(self) -> Collection[str]:
        """Its columns."""
        return self.table.column_names

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> pa.Array:
        """One of them."""
        return self.table[name].combine_chunks()


class _Filter:
    """One expression over rows."""

    def __init__(self, text: str, rows: Rows) -> None:
        self.text, self.rows = text, rows
        self._read: dict[str, _Values] = {}

    def _refuse(self, problem: str) -> NoReturn:
        raise ValueError(f"{shown(self.text)}: {problem}")

    # -------------------------------------------------------------- conditions
    def condition(self, node: Node) -> _Truth:
        if isinstance(node, Both | Either):
            parts = [self.condition(part) for part in node.parts]
            both = isinstance(node, Both)
            true, known = parts[0]
            for other, other_known in parts[1:]:
                # What one of them decides alone is known, whatever the others are.
                decided = (known & (true ^ both)) | (other_known & (other ^ both))
                known = (known & other_known) | decided
                true = (true & other) if both else (true & known) | (other & other_known)
            return _Truth(true, known)
        if isinstance(node, Not):
            inner = self.condition(node.inner)
            return _Truth(np.logical_not(inner.true), inner.known)
        if isinstance(node, IsNull):
            return _Truth(np.logical_not(self.values(node.inner).known), np.bool_(True))
        if isinstance(node, Comparison):
            return self._compared(self.values(node.left), node.op, self.values(node.right))
        if isinstance(node, Member):
            return self._member(node)
        found = self.values(node)
        if found.kind != "true or false":
            self._refuse(f"{found.what} is no condition: compare it, e.g. {found.what} == {_example(found.kind)}")
        return _Truth(found.data, found.known)

    def _compared(self, left: _Values, op: str, right: _Values) -> _Truth:
        left, right = _alike(left, right), _alike(right, left)
        for one, other in ((left, right), (right, left)):
            if one.kind == "null":
                self._refuse(f"write {other.what} is null, or is not null")
            if one.kind == "list":
                self._refuse(f"{one.what} holds lists: write {other.what} in {one.what}")
        if left.kind != right.kind:
            self._refuse(
                f"{left.what} ({left.kind}) cannot be compared with {right.what} ({right.kind})"
                + (": texts stand in quotes" if "text" in (left.kind, right.kind) else "")
            )
        if left.kind == "true or false" and op not in ("==", "!="):
            self._refuse(f"{left.what} is true or false: compare it by == or !=")
        plain, of_texts = _COMPARE[op]
        known = left.known & right.known
        if left.kind != "text":
            return _Truth(plain(left.data, right.data), known)
        return _Truth(_flags(of_texts(left.data, right.data)), known)

    def _member(self, node: Member) -> _Truth:
        left = self.values(node.left)
        if isinstance(node.right, Items):
            return self._one_of(left, [self.values(value) for value in node.right.values])
        right = self.values(node.right)
        if right.kind == "text" and left.kind == "text" and isinstance(node.left, Literal):
            return _Truth(_flags(pc.match_substring(right.data, node.left.value)), right.known)
        if right.kind != "list":
            self._refuse(f"{right.what} holds no lists: write {left.what} == {right.what}")
        if not isinstance(node.left, Literal):
            self._refuse(f"what is looked for in {right.what} must be one value, not {left.what}")
        flat, parents = right.data.flatten(), np.asarray(pc.list_parent_indices(right.data))
        inner = _of_array(flat, f"an entry of {right.what}")
        found = self._compared(left, "==", inner)
        hits = np.broadcast_to(np.asarray(found.true, dtype=bool) & found.known, len(flat))
        true = np.zeros(len(right.data), dtype=bool)
        true[parents[hits]] = True
        return _Truth(true, right.known)

    def _one_of(self, left: _Values, values: list[_Values]) -> _Truth:
        if left.kind == "list":
            self._refuse(f"{left.what} holds lists: write {values[0].what} in {left.what}")
        if left.kind == "text" and all(value.kind == "text" for value in values):
            wanted = pa.array([value.data.as_py() for value in values], pa.large_string())
            return _Truth(_flags(pc.is_in(_large(left.data), value_set=wanted)), left.known)
        found = [self._compared(left, "==", value) for value in values]
        return _Truth(
            np.logical_or.reduce([np.broadcast_to(one.true, np.shape(left.known)) for one in found]), left.known
        )

    # ------------------------------------------------------------------ values
    def values(self, node: Node) -> _Values:
        if isinstance(node, Name):
            if node.name not in self._read:
                self._read[node.name] = self._column(node.name)
            return self._read[node.name]
        if isinstance(node, Literal):
            return _literal(node.value)
        if isinstance(node, Negative):
            inner = self._number(node.inner)
            return inner._replace(data=np.negative(inner.data))
        if isinstance(node, Power):
            return self._computed(self._number(node.base), "^", self._number(node.exponent))
        if isinstance(node, Arithmetic):
            found = self._number(node.first)
            for sign, operand in node.rest:
                found = self._computed(found, sign, self._number(operand))
            return found
        if isinstance(node, Items):
            self._refuse("a list can only stand after in")
        truth = self.condition(node)
        return _Values("true or false", truth.true, truth.known, "a condition")

    def _number(self, node: Node) -> _Values:
        found = self.values(node)
        if found.kind != "number":
            self._refuse(f"{found.what} is {found.kind}; only numbers can be computed with")
        return found._replace(data=np.asarray(found.data, dtype=np.float64))

    def _computed(self, left: _Values, sign: str, right: _Values) -> _Values:
        data = _COMPUTE[sign](left.data, right.data)
        return _Values("number", data, left.known & right.known & np.isfinite(data), "a computed number")

    def _column(self, name: str) -> _Values:
        if name not in self.rows.names:
            self._refuse(f"there is no column {shown(name)}; {nearest(name, sorted(self.rows.names))}")
        values = decoded(self.rows.column(name))
        found = _of_array(values, name)
        if found.kind == "other":
            self._refuse(
                f"column {shown(name)} holds {values.type} values: conditions read numbers, texts, times and lists"
            )
        return found


def _literal(value: Any) -> _Values:
    known = np.bool_(value is not None)
    if value is None:
        return _Values("null", value, known, "null")
    if isinstance(value, str):
        return _Values("text", pa.scalar(value, pa.large_string()), known, shown(value))
    return _Values(
        "true or false" if isinstance(value, bool) else "number", np.asarray(value), known, str(value).lower()
    )


def _of_array(values: pa.Array, what: str) -> _Values:
    """Values of a column."""
    kind, known = values.type, ~np.asarray(pc.is_null(values, nan_is_null=True))
    if is_text(kind):
        return _Values("text", _large(values), known, what)
    if pa.types.is_decimal(kind):
        values, kind = values.cast(pa.float64()), pa.float64()
    if is_number(kind) or pa.types.is_null(kind):
        if pa.types.is_null(kind):
            values = values.cast(pa.float64())
        return _Values("number", np.asarray(values.fill_null(0)), known, what)
    if pa.types.is_boolean(kind):
        return _Values("true or false", np.asarray(values.fill_null(False)), known, what)
    if pa.types.is_temporal(kind) and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        micro = values.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False).cast(pa.int64())
        return _Values("time", np.asarray(micro.fill_null(0)), known, what)
    if is_list(kind):
        lists = pa.list_ if not pa.types.is_large_list(kind) else pa.large_list
        return _Values("list", values.cast(lists(kind.value_type)), known, what)
    return _Values("other", values, known, what)


def _large(texts: Any) -> Any:
    return texts if pa.types.is_large_string(texts.type) else texts.cast(pa.large_string())


def _alike(one: _Values, other: _Values) -> _Values:
    """A text that is compared with times as a time."""
    if one.kind != "text" or other.kind != "time" or not isinstance(one.data, pa.Scalar):
        return one
    try:
        time = datetime.fromisoformat(one.data.as_py())
    except ValueError:
        raise ValueError(f"{one.what} is no time to compare {other.what} with: write e.g. '2026-01-31'") from None
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    return _Values("time", np.asarray(round(time.timestamp() * 1e6)), one.known, one.what)


def _flags(values: Any) -> Any:
    """An Arrow array or scalar of flags as numpy's."""
    if isinstance(values, pa.Scalar):
        return np.bool_(bool(values.as_py()))
    return np.asarray(values.fill_null(False))


def _example(kind: str) -> str:
    return {"text": "'...'", "time": "'2026-01-31'", "list": "..."}.get(kind, "0")
