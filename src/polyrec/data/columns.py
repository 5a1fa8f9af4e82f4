"""Columns become codes and numbers: one fitted encoder per attribute, feedback or context column."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.core.schema import FeatureConfig, FeatureKind, FeatureSource
from polyrec.core.stack import caller_level
from polyrec.data.arrays import (
    decoded,
    example,
    first_bad_row,
    is_list,
    is_null,
    is_number,
    is_text,
    numbers,
    numbers_of_text,
)
from polyrec.data.ids import canonical, lookup, normalise_ids
from polyrec.data.scaling import quantile_knots, rank_gaussian
from polyrec.data.text_lists import looks_like_lists, parse_lists, separator_of
from polyrec.data.typed_text import any_matches
from polyrec.data.vectors import vector_column

MISSING, UNKNOWN, FIRST = 0, 1, 2  # codes of categorical and multi-valued columns; values begin at FIRST
_FEW = 32  # a feedback or context number with at most this many distinct values is read as a category
_MAX_CODES = 16  # codes kept per row of a multi-valued column


def infer_kind(values: pa.Array, few_is_categorical: bool = False) -> str:
    """Guess the kind of a column from its Arrow type.

    Lists of fractions are embeddings, other lists multi-valued, numbers numeric, the rest categorical. Texts that are
    lists ("['a', 'b']", "a|b") are multi-valued, too.

    Args:
        few_is_categorical: read a number with few distinct values (stars, surface ids) as a category.
    """
    kind = values.type
    if is_list(kind):
        return "embedding" if pa.types.is_floating(kind.value_type) else "multi"
    if is_number(kind):
        few = few_is_categorical and len(pc.unique(values)) <= _FEW
        return "categorical" if few else "numeric"
    values = decoded(values)
    if is_text(values.type):
        if any_matches(values, r"^\s|\s$|^\+") and numbers_of_text(values) is not None:
            return "numeric"  # a csv's numbers with blanks beside them, which it keeps in case they are codes
        if looks_like_lists(values):
            return "multi"
        if separator_of(values) == "|":
            return "multi:|"
    return "categorical"


@dataclass
class ColumnEncoder:
    """Turns one column into model inputs and into keys for running statistics.

    categorical: vocabulary codes, int64 [R]. multi: codes padded with 0, int64 [R, width]. numeric: rank-Gaussian
    scaled float32 [R] (the normal quantile of the value's rank among those seen in `fit`), NaN = missing. embedding:
    vectors of length 1, float32 [R, width], rows of NaN = missing (`polyrec.data.vectors`). text: not encoded.
    """

    name: str
    kind: FeatureKind
    vocabulary: list[Any] = field(default_factory=list)
    width: int = 1
    knots: list[float] = field(default_factory=list)
    separator: str = ""

    @classmethod
    def fit(cls, name: str, values: pa.Array, kind: str, what: str, checked: bool = False) -> ColumnEncoder:
        """Learn the vocabulary or the distribution of a column. `what` names table and column in messages.

        Args:
            kind: a [`FeatureKind`], or "multi:" and the separator of values that are written as one text.
            checked: the kind fits, as it did before.

        Raises:
            ValueError: the values are of another kind, or categories that are lists of others.
        """
        plain, _, separator = kind.partition(":")
        encoder = cls(name, plain, separator=separator)  # type: ignore[arg-type]
        kind = plain
        if kind == "multi":
            flat, lengths = _ragged(values, what, separator)
            encoder.width = int(min(max(lengths.max(initial=1), 1), _MAX_CODES))
            encoder.vocabulary = _vocabulary(flat)
        elif kind == "categorical":
            if not checked:
                _refuse_lists(values, what)
            encoder.vocabulary = _vocabulary(_scalars(values, what))
        elif kind == "numeric":
            encoder.knots = quantile_knots(numbers(values, what)).tolist()
        elif kind == "embedding":
            encoder.width = vector_column(values, what).shape[1]
        return encoder

    def refit(self, values: pa.Array, what: str) -> ColumnEncoder:
        """The same kind of encoder, learned from other values."""
        if self.kind == "embedding":
            return self  # nothing but its width, which must stay what it is
        kind = f"{self.kind}:{self.separator}" if self.separator else self.kind
        return ColumnEncoder.fit(self.name, values, kind, what, checked=True)

    def encode(self, values: pa.Array, what: str) -> np.ndarray:
        """Return model inputs, shapes as in the class description."""
        if self.kind == "multi":
            blanks = bool(self.separator) and any(isinstance(v, str) and v != v.strip() for v in self.vocabulary)
            flat, lengths = _ragged(values, what, self.separator, blanks, "" in self.vocabulary)
            return _pad(self._codes(flat), lengths, self.width)
        if self.kind == "categorical":
            return self._codes(_scalars(values, what, "" in self.vocabulary))
        if self.kind == "embedding":
            return vector_column(values, what, self.width)
        return rank_gaussian(numbers(values, what), np.asarray(self.knots))

    @property
    def countable(self) -> bool:
        """Whether the values are categories that statistics can count by."""
        return self.kind not in ("text", "embedding")

    def keys(self, encoded: np.ndarray) -> np.ndarray:
        """Return categories of encoded values for counting: codes as they are, numbers in 10 bins of the normal scale.

        Codes are 0 where the value is missing.
        """
        if self.kind != "numeric":
            return encoded
        bins = np.digitize(encoded, np.linspace(-1.5, 1.5, 9)) + FIRST
        return np.where(np.isnan(encoded), MISSING, bins)

    def lists(self, values: pa.Array, what: str) -> pa.Array:
        """The values of a multi-valued column that is written as text, as lists; null where there is none."""
        flat, lengths = _ragged(values, what, self.separator)
        missing = pa.array(np.append(is_null(values), False))
        offsets = pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32), mask=np.asarray(missing))
        return pa.ListArray.from_arrays(offsets, flat)

    def feature(self, source: FeatureSource) -> FeatureConfig:
        """Describe the encoded column to the model."""
        if self.kind == "embedding":
            return FeatureConfig(self.name, source, "embedding", size=self.width)
        size = len(self.vocabulary) + FIRST if self.kind in ("categorical", "multi") else 1
        return FeatureConfig(self.name, source, self.kind, size=size, width=self.width)

    def missing(self, rows: int) -> np.ndarray:
        """Encoded values of rows about which nothing is known."""
        if self.kind in ("numeric", "embedding"):
            return np.full(rows if self.kind == "numeric" else (rows, self.width), np.nan, dtype=np.float32)
        return np.zeros((rows, self.width) if self.kind == "multi" else rows, dtype=np.int64)

    def _codes(self, values: pa.Array) -> np.ndarray:
        if not self.vocabulary:
            return np.where(is_null(values), MISSING, UNKNOWN)
        known = pa.array(self.vocabulary)
        positions = lookup(values, known)
        if positions.null_count > values.null_count and is_text(values.type) != is_text(known.type):
            positions = pc.coalesce(positions, _as_numbers(values, known))
        codes = np.asarray(positions.fill_null(UNKNOWN - FIRST)).astype(np.int64) + FIRST
        return np.where(is_null(values), MISSING, codes)


def _refuse_lists(values: pa.Array, what: str) -> None:
    """Refuse categories that are lists of others; warn where they only may be."""
    values = decoded(values)
    separator = separator_of(values)
    if separator is None and not (is_text(values.type) and looks_like_lists(values)):
        return
    at = 0 if separator is None else first_bad_row(np.asarray(pc.match_substring(values, separator).fill_null(False)))
    shown = example(values) if separator is None else values[at].as_py()
    kind = "multi" if separator is None else f"multi:{separator}"
    message = f"{what} is declared 'categorical' but holds lists written as text, e.g. {shown!r}: declare it {kind!r}"
    if separator in (None, "|"):
        raise ValueError(message + ", or rename its values")
    warnings.warn(message.replace("is declared 'categorical' but holds", "seems to hold"), stacklevel=caller_level())


def _as_numbers(values: pa.Array, known: pa.Array) -> pa.Array:
    """Position of each value among `known`, 7 and "07" being one, null where several of them are or none is."""
    short = canonical(known)
    counts = pc.value_counts(short)
    alone = counts.field("values").filter(pc.equal(counts.field("counts"), 1))
    found = canonical(values)
    return pc.if_else(pc.is_in(found, value_set=alone), pc.index_in(found, value_set=short), None)


def _scalars(values: pa.Array, what: str, empty: bool = False) -> pa.Array:
    """Categories as strings or int64; booleans and floats by their text; blank texts are missing.

    Args:
        empty: they are a category like others, as in processors that were saved before.
    """
    if is_list(values.type):
        raise ValueError(f"{what} holds lists: declare it 'multi'")
    if pa.types.is_floating(values.type):
        return pc.if_else(pa.array(is_null(values)), None, values.cast(pa.large_string()))
    if pa.types.is_decimal(values.type):
        return values.cast(pa.large_string())
    found = normalise_ids(values, what)
    if empty or not is_text(found.type):
        return found
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(found), ""), None, found)


def _vocabulary(values: pa.Array) -> list[Any]:
    return sorted(pc.unique(values.drop_null()).to_pylist())


def _ragged(
    values: pa.Array, what: str, separator: str = "", blanks: bool = False, empty: bool = False
) -> tuple[pa.Array, np.ndarray]:
    """Flat values and row lengths of a list column; missing lists are empty, missing and blank entries are dropped.

    Args:
        separator: of lists that are written as text, between whose parts there may be blanks.
        blanks, empty: keep blanks beside the values of such lists, and empty values, as processors did before.
    """
    values = decoded(values)
    written = is_text(values.type)
    if written and separator:
        values = pc.split_pattern(values, separator)
    elif written and looks_like_lists(values):
        values, written = parse_lists(values, what), False
    if pa.types.is_null(values.type):
        values = pa.nulls(len(values), pa.list_(pa.string()))
    if not is_list(values.type):
        raise ValueError(
            f"{what} has type {values.type} but is declared 'multi': give lists, e.g. ['Drama', 'Comedy'], or say what "
            f"separates the values of a text, e.g. 'multi:{separator_of(values) or '|'}'"
        )
    lists = values.drop_null()  # Arrow may store entries of a missing list, which the two calls below treat differently
    if pa.types.is_fixed_size_list(values.type):
        lists = lists.cast(pa.list_(values.type.value_type))
    flat = lists.flatten()
    if written and not blanks:
        flat = pc.utf8_trim_whitespace(flat)
    parent, flat = np.asarray(pc.list_parent_indices(lists)), _scalars(flat, what, empty)
    keep = ~is_null(flat)
    rows = np.flatnonzero(~is_null(values))[parent[keep]]
    return flat.filter(pa.array(keep)), np.bincount(rows, minlength=len(values))


def _pad(flat: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
    """Ragged [M] to padded [R, width]; what exceeds `width` is cut."""
    starts = np.cumsum(lengths) - lengths
    inside = np.arange(len(flat)) - np.repeat(starts, lengths)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    padded = np.zeros((len(lengths), width), dtype=np.int64)
    keep = inside < width
    padded[rows[keep], inside[keep]] = flat[keep]
    return padded
