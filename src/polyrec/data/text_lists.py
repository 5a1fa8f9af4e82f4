"""Lists that a table holds as texts: "['a', 'b']" as programs print them, and "a|b"."""

from __future__ import annotations

import ast
import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

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
