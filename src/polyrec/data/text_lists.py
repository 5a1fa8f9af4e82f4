"""Lists in a column: of ids, and those that a table holds as texts, "['a', 'b']" as programs print them or "a|b"."""

from __future__ import annotations

import ast
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.data.arrays import decoded, first_bad_row, is_list, is_null, is_number, is_text, shown
from polyrec.data.ids import normalise_ids
from polyrec.data.typed_text import typed

_SEPARATORS = ("|", ";", ",")
_SAMPLE = 10_000  # texts that are looked at


def looks_like_lists(values: pa.Array) -> bool:
    """Whether all known texts are lists as Python or JSON write them.

    Example:
        >>> looks_like_lists(pa.array(["['a', 'b']", None, "[]"])), looks_like_lists(pa.array(["[a]", "b"]))
        (True, False)
    """
    known = _sample(values)
    return bool(len(known)) and bool(pc.all(pc.match_substring_regex(known, r"^\s*\[.*\]\s*$")).as_py())


def separator_of(values: pa.Array) -> str | None:
    """The sign that divides texts into values that come again in other texts, if there is one.

    Example:
        >>> separator_of(pa.array(["Drama|Comedy", "Drama", "Comedy|Drama"])), separator_of(pa.array(["a", "b, c"]))
        ('|', None)
    """
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return None
    known = _sample(values)
    for separator in _SEPARATORS:
        divided = pc.sum(pc.match_substring(known, separator)).as_py() or 0
        if divided < 0.2 * len(known) or not divided:
            continue
        parts = pc.utf8_trim_whitespace(pc.split_pattern(known, separator).flatten())
        # A bar is hardly ever part of a name; of "Portland, OR" and "Portland, ME" a part comes again, too.
        most = len(parts) - 1 if separator == "|" else len(known)
        if len(pc.unique(parts)) <= most:
            return separator
    return None


def parse_lists(values: pa.Array, what: str) -> pa.Array:
    """Texts that [`looks_like_lists`] as lists; each different text is read once.

    Raises:
        ValueError: one of them is no list, or the lists hold fractions (vectors) or several types.
    """
    coded = values.dictionary_encode()
    lists: list[Any] = []
    for text in coded.dictionary:
        lists.append(_parse(text.as_py(), what))
    try:
        found = pa.array(lists)
    except (pa.ArrowException, OverflowError, TypeError) as error:
        raise ValueError(f"{what} holds texts of lists of several types: give lists of strings") from error
    if pa.types.is_list(found.type) and pa.types.is_floating(found.type.value_type):
        raise ValueError(
            f"{what} holds vectors written as texts, e.g. {coded.dictionary[0].as_py()[:40]!r}: store them as lists of "
            "numbers, in a .parquet file or a file of vectors"
        )
    return found.take(coded.indices)


def id_lists(values: pa.Array, what: str) -> pa.Array:
    """A column of lists of ids as lists: it is one, or holds texts: "1 2 3", "1,2,3", "a|b", "[1, 2]", "[1 2]".

    Raises:
        ValueError: the values are no lists, or lists of lists.

    Example:
        >>> id_lists(pa.array(["7 8", "", None, "9"]), "hist").to_pylist()
        [[7, 8], [], None, [9]]
        >>> id_lists(pa.array(["['a', 'b']", "[]"]), "hist").to_pylist()
        [['a', 'b'], []]
    """
    values = decoded(values)
    if is_text(values.type):
        values = _written_lists(values, what)
    if pa.types.is_null(values.type):
        values = values.cast(pa.list_(pa.int64()))
    if is_number(values.type):
        raise ValueError(
            f"{what} has type {values.type}: give a list of item ids in each row, [7] or '7 8', not a number"
        )
    if not is_list(values.type):
        raise ValueError(f"{what} has type {values.type}: give a list of item ids in each row")
    if pa.types.is_nested(values.type.value_type):
        raise ValueError(f"{what} holds {values.type}: give one flat list of item ids in each row")
    return values


def id_entries(values: pa.Array, what: str) -> tuple[np.ndarray, pa.Array]:
    """The row of every id in a column of lists, int64 [E], and the ids [E]; missing ones are left out."""
    if pa.types.is_fixed_size_list(values.type):
        values = values.cast(pa.list_(values.type.value_type))
    given = np.flatnonzero(~is_null(values))
    lists = values.drop_null()  # Arrow may store entries of a missing list, which the two calls below treat differently
    rows, flat = given[np.asarray(pc.list_parent_indices(lists))], lists.flatten()
    keep = ~is_null(flat)
    return rows[keep], normalise_ids(flat.filter(pa.array(keep)), what)


def _written_lists(values: pa.Array, what: str) -> pa.Array:
    """Texts as lists of ids; numbers where all of them are."""
    texts = pc.utf8_trim_whitespace(values)
    if pc.any(pc.starts_with(texts, "[")).as_py():
        listed = pc.match_substring_regex(texts, r"^(\[.*\])?$").fill_null(True)
        if (row := first_bad_row(~np.asarray(listed))) is not None:
            raise ValueError(
                f"{what} holds {shown(texts[row])!r} in row {row}, which is no list as others are: repair it"
            )
        if pc.any(pc.match_substring_regex(texts, "['\"(]|\\[.*\\[")).as_py():
            return parse_lists(pc.if_else(pc.equal(texts, ""), None, texts), what)
        texts = pc.utf8_trim_whitespace(pc.utf8_trim(texts, "[]"))
    separator = next((s for s in _SEPARATORS if pc.any(pc.match_substring(texts, s)).as_py()), None)
    parts = pc.utf8_split_whitespace(texts) if separator is None else pc.split_pattern(texts, separator)
    rows, flat = id_entries(parts, what)
    flat = pc.utf8_trim_whitespace(flat)
    kept = np.asarray(pc.not_equal(flat, ""))
    rows, flat = rows[kept], flat.filter(pa.array(kept))
    offsets = np.searchsorted(rows, np.arange(len(values) + 1))
    numbers = typed(pa.chunked_array([flat])).combine_chunks()
    found = numbers if is_number(numbers.type) else flat
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), found, mask=pa.array(is_null(values)))


def _parse(text: str, what: str) -> list[Any]:
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list):
            return found
    raise ValueError(f"{what} holds {text[:60]!r}, which is no list, though it looks like one: repair it or give lists")


def _sample(values: pa.Array) -> pa.Array:
    known = pc.unique(values.slice(0, _SAMPLE).drop_null())
    return known.filter(pc.not_equal(pc.utf8_trim_whitespace(known), ""))
