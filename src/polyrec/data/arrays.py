"""What the readers of tables share: one column as one Arrow array, where it is missing, and its numbers."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.core.registry import nearest

_LARGE = 1 << 31  # bytes of text that offsets of 32 bits cannot reach


def column(table: pa.Table, key: str, name: str, role: str) -> pa.Array:
    """Return one column as a single Arrow array, or say which columns there are."""
    if key not in table.column_names:
        raise ValueError(f"{name}: no column {key!r} (needed as {role}); {nearest(key, table.column_names)}")
    return combined(table[key])


def combined(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The chunks of a column as one array; text beyond 2 GiB gets offsets of 64 bits."""
    if not isinstance(values, pa.ChunkedArray):
        return values
    if pa.types.is_string(values.type) and values.nbytes >= _LARGE:
        values = values.cast(pa.large_string())
    return values.combine_chunks()


def decoded(values: pa.Array) -> pa.Array:
    """The values themselves where a column stores codes of them (categories of pandas)."""
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def first_bad_row(bad: np.ndarray) -> int | None:
    """Index of the first True, or None."""
    return int(bad.argmax()) if bad.any() else None


def is_null(values: pa.Array) -> np.ndarray:
    """[R] bool: missing, with NaN counted as missing."""
    return np.asarray(pc.is_null(values, nan_is_null=True))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists, of one length or of several."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_number(kind: pa.DataType) -> bool:
    """Whether a column holds integers, fractions or decimals."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def example(values: pa.Array) -> Any:
    """The first known value, for a message; None if there is none."""
    known = values.filter(pa.array(~is_null(values)))
    try:
        return known[0].as_py() if len(known) else None
    except (ValueError, OverflowError, pa.ArrowException):  # times beyond what Python's can hold
        return str(known[0])


def shown(value: Any) -> str:
    """A cell as a message shows it: one line of at most 60 characters."""
    line = " ".join(str(value).split())
    return line if len(line) <= 60 else f"{line[:60]}..."


def numbers(values: pa.Array, what: str) -> np.ndarray:
    """Return a column as float64 with NaN for missing, [R]; infinities and what is no number are refused with a row.

    Text that holds numbers only (`007`, which may be a code, stays text when a csv is read) counts as those numbers.

    Example:
        >>> numbers(pa.array(["007", None, " 1.5"]), "column 'x'").tolist()
        [7.0, nan, 1.5]
    """
    values = decoded(values)
    if pa.types.is_null(values.type):
        return np.full(len(values), np.nan)
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    if is_text(values.type):
        found = numbers_of_text(values)
        if found is None:
            _refuse_text(values, what)
        result = found
    elif is_number(values.type):
        result = np.asarray(values.cast(pa.float64(), safe=False).fill_null(np.nan))
    else:
        raise ValueError(
            f"{what} holds {values.type} values such as {example(values)!r} but is used as a number: "
            "convert it, or declare it 'categorical', 'multi' or 'text'"
        )
    row = first_bad_row(np.isinf(result))
    if row is not None:
        raise ValueError(f"{what} is infinite in row {row}: replace it by a number, or by null where it is unknown")
    return result


def numbers_of_text(values: pa.Array) -> np.ndarray | None:
    """Texts that are all numbers as float64, NaN where one is missing or blank; None if one of them is no number."""
    trimmed = pc.utf8_trim_whitespace(values)
    try:
        found = pc.if_else(pc.equal(trimmed, ""), None, trimmed).cast(pa.float64())
    except pa.ArrowInvalid:
        return None
    return np.asarray(found.fill_null(np.nan))


def _refuse_text(values: pa.Array, what: str) -> NoReturn:
    known = pc.utf8_trim_whitespace(values)
    fine = pc.match_substring_regex(known, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^$")
    row = first_bad_row(~np.asarray(fine.fill_null(True))) or 0
    found = shown(values[row])
    if pc.match_substring_regex(known, r"^[+-]?\d+,\d+$")[row].as_py():
        fix = "write decimals with a point, e.g. 4.5"
    else:
        fix = "convert it, or declare it 'categorical', 'multi' or 'text'"
    raise ValueError(f"{what} holds {values.type} values such as {found!r} but is used as a number (row {row}): {fix}")
