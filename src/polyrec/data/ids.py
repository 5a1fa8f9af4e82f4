"""Identifiers: whole numbers or texts that stay what they are, and compare equal in all tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.data.arrays import column, decoded, first_bad_row, is_null, is_text

_EXACT = 1 << 53  # whole numbers from here on are not all float64s


def ids(table: pa.Table, key: str, name: str, role: str) -> pa.Array:
    """Return an id column, integers as int64 and anything else as strings; a missing or blank id is refused."""
    values = column(table, key, name, role)
    what = f"{name}: column {key!r} ({role})"
    if pa.types.is_boolean(values.type):
        raise ValueError(f"{what} holds true and false: give integers or strings")
    missing = is_null(values)
    if is_text(values.type):
        missing |= np.asarray(pc.equal(pc.utf8_trim_whitespace(values), "").fill_null(False))
    row = first_bad_row(missing)
    if row is not None:
        raise ValueError(f"{what} has no value in row {row}: fill it in or remove the row")
    return normalise_ids(values, what)


def normalise_ids(values: pa.Array, what: str = "ids") -> pa.Array:
    """Integers become int64, strings large strings, so that ids of two tables compare equal whatever their width.

    Whole floats (pandas makes them of integers with gaps) are integers.

    Raises:
        ValueError: a fraction, a float that has lost digits, or a type that is no id.
    """
    values = decoded(values)
    if pa.types.is_decimal(values.type) and values.type.scale > 0:
        values = _whole_decimals(values, what)
    if pa.types.is_integer(values.type):
        try:
            return values.cast(pa.int64())
        except pa.ArrowInvalid:  # hashes of 64 bits without sign
            return values.cast(pa.large_string())
    if pa.types.is_floating(values.type):
        return _whole_floats(values, what)
    try:
        return values.cast(pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{what} has type {values.type}: give integers or strings") from error


def _whole_floats(values: pa.Array, what: str) -> pa.Array:
    plain, null = np.asarray(values.cast(pa.float64()).fill_null(np.nan)), is_null(values)
    row = first_bad_row(~np.equal(np.mod(plain, 1), 0) & ~null)
    if row is not None:
        raise ValueError(f"{what} is fractional in row {row} ({values[row]}): give whole numbers or strings")
    exact = 1 << 24 if pa.types.is_float32(values.type) else _EXACT
    row = first_bad_row(np.abs(plain) > exact)
    if row is not None:
        raise ValueError(
            f"{what} has type {values.type}, which cannot hold all digits of {plain[row]:.0f} (row {row}): give "
            "integers (pandas: dtype Int64) or strings"
        )
    return pa.array(np.where(null, 0, plain).astype(np.int64), mask=null)


def _whole_decimals(values: pa.Array, what: str) -> pa.Array:
    try:
        return values.cast(pa.decimal256(76, 0)).cast(pa.large_string())
    except pa.ArrowInvalid:
        raise ValueError(f"{what} has type {values.type} with fractions: give whole numbers or strings") from None


def lookup(values: pa.Array, known: pa.Array) -> pa.Array:
    """Position of each value among `known`, null where it is not one of them.

    Numbers and strings are compared as text, so that a value of another type is an unknown one, or, like 5 and "5",
    the same.

    Example:
        >>> lookup(pa.array(["5", "a"]), pa.array([4, 5])).to_pylist()
        [1, None]
    """
    if values.type != known.type:
        values, known = values.cast(pa.large_string()), known.cast(pa.large_string())
    return pc.index_in(values, value_set=known)


_FEW = 20  # times as many known ones as are looked for


class KnownIds:
    """Finds few of many ids without hashing all of them at each call, as [`lookup`] does.

    Args:
        known: unique, none of them null.

    Example:
        >>> KnownIds(pa.array(range(1000))).find(pa.array(["5", "a"])).to_pylist()
        [5, None]
    """

    def __init__(self, known: pa.Array) -> None:
        self.known = known
        self._indexes: dict[bool, Any] = {}

    def find(self, values: pa.Array) -> pa.Array:
        """Position of each value, null where it is unknown."""
        if values.null_count or len(values) * _FEW > len(self.known):
            return lookup(values, self.known)
        as_text = values.type != self.known.type
        if as_text not in self._indexes:
            import pandas as pd  # its index keeps the table of hashes

            known = self.known.cast(pa.large_string()) if as_text else self.known
            self._indexes[as_text] = pd.Index(known.to_numpy(zero_copy_only=False))
        values = values.cast(pa.large_string()) if as_text else values
        found = self._indexes[as_text].get_indexer(values.to_numpy(zero_copy_only=False))
        return pa.array(found, mask=found < 0)


def of_one_type(arrays: list[pa.Array]) -> list[pa.Array]:
    """Ids of several tables, all as numbers or, if some are texts, all as texts."""
    if len({values.type for values in arrays}) <= 1:
        return arrays
    return [values.cast(pa.large_string()) for values in arrays]


def with_one_type(tables: Mapping[str, pa.Table], roles: Mapping[str, str]) -> dict[str, pa.Table]:
    """Tables whose id columns have one type in all of them, as [`of_one_type`] says.

    Args:
        tables: {name: table}; one that lacks a column stays as it is.
        roles: {id column: what it is, for messages}.

    Example:
        >>> tables = with_one_type({"a": pa.table({"u": [7]}), "b": pa.table({"u": ["007"]})}, {"u": "user id"})
        >>> tables["a"]["u"].to_pylist()
        ['7']
    """
    found = dict(tables)
    for key, role in roles.items():
        holders = [name for name, table in found.items() if key in table.column_names]
        for name, values in zip(holders, of_one_type([ids(found[n], key, n, role) for n in holders]), strict=True):
            found[name] = found[name].set_column(found[name].column_names.index(key), key, values)
    return found


def canonical(values: pa.Array) -> pa.Array:
    """Ids as text without what is lost when a code is read as a number: blanks, a plus, leading zeros, `.0`.

    Example:
        >>> canonical(pa.array(["007", " 7.0", "a07"])).to_pylist()
        ['7', '7', 'a07']
    """
    text = pc.utf8_trim_whitespace(values.cast(pa.large_string()))
    return pc.replace_substring_regex(text, r"^\+?0*(\d+?)(\.0+)?$", r"\1")
