"""Cells of text files become booleans and numbers where nothing is lost by it.

A column is read as `pandas.read_csv` reads it, with one exception: whole numbers of which one is not written as a
number would be (007, +7, ` 7`, one beyond 64 bits, 12E4) may be codes, which differ in their digits. Such a
column stays text; used as a number, it is one (see [`~polyrec.data.arrays.numbers`]).
"""

from __future__ import annotations

from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

# What pandas.read_csv takes for a missing value.
MISSING_TEXTS = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
]  # fmt: skip
_TRUE, _FALSE = ["True", "TRUE", "true"], ["False", "FALSE", "false"]
# Leading zeros, more digits than a float64 keeps, an exponent as no program writes one.
_CODE = r"^\s*[+-]?(0\d.*|\d{16,}(\.0*)?|\d+[eE]\d+)\s*$"
_WHOLE = r"^\s*[+-]?\d+\s*$"
_DECIMAL_COMMA, _THOUSANDS = r"^[+-]?\d+,\d+$", r"^[+-]?\d{1,3},\d{3}$"


def typed(values: pa.ChunkedArray, decimal_comma: bool = False) -> pa.ChunkedArray:
    """A column of strings as booleans, int64 or float64 if all its values are such, else as it is.

    Args:
        decimal_comma: read 4,5 as 4.5 (in files whose separator is no comma), unless all of them could be thousands.

    Example:
        >>> [typed(pa.chunked_array([column])).type for column in (["1", None], ["07", "1"], ["1.5", "2"])]
        [DataType(int64), DataType(string), DataType(double)]
    """
    if values.null_count == len(values):
        return pa.chunked_array([pa.nulls(len(values))])
    for convert in (_booleans, _integers, partial(_floats, decimal_comma=decimal_comma)):
        found = convert(values)
        if found is not None:
            return found
    return values


def all_match(values: pa.Array | pa.ChunkedArray, pattern: str) -> bool:
    """Whether every known text matches a regular expression."""
    return bool(pc.all(pc.match_substring_regex(values, pattern)).as_py())


def any_matches(values: pa.Array | pa.ChunkedArray, pattern: str) -> bool:
    """Whether a text matches a regular expression."""
    return bool(pc.any(pc.match_substring_regex(values, pattern)).as_py())


def _booleans(values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    known = pa.array([*_TRUE, *_FALSE], values.type)
    for part in (values.drop_null()[:1], values.drop_null()):  # the first value decides for most columns
        if not pc.all(pc.is_in(part, value_set=known)).as_py():
            return None
    found = pc.is_in(values, value_set=pa.array(_TRUE, values.type))
    return pc.if_else(pc.is_null(values), None, found)


def _integers(values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    found = _cast(values, pa.int64())
    if found is None:
        return None
    same = pc.all(pc.equal(found.cast(values.type), values)).as_py()
    return found if same else values


def _cast(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | None:
    """The texts as numbers; None if one is none, which the first ones mostly show (Arrow tells of each, slowly)."""
    try:
        for part in (values[:1000], values):
            found = part.cast(kind)
    except pa.ArrowInvalid:
        return None
    return found


def _floats(values: pa.ChunkedArray, decimal_comma: bool) -> pa.ChunkedArray | None:
    if decimal_comma and all_match(values, _DECIMAL_COMMA) and not all_match(values, _THOUSANDS):
        values = pc.replace_substring(values, ",", ".")
    found = _cast(pc.utf8_trim_whitespace(values), pa.float64())
    return None if found is None or any_matches(values, _CODE) or all_match(values, _WHOLE) else found
