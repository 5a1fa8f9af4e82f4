"""Columns become codes and numbers: vocabulary, padding, missing and unknown values."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrec.core.schema import from_dict
from polyrec.data.columns import FIRST, MISSING, UNKNOWN, ColumnEncoder, infer_kind

WHAT = "items: column 'c'"
lists_of_tags = st.lists(st.none() | st.lists(st.none() | st.sampled_from("abcd"), max_size=4), min_size=1, max_size=8)


def fitted(values: pa.Array | list, kind: str) -> ColumnEncoder:
    return ColumnEncoder.fit("c", values if isinstance(values, pa.Array) else pa.array(values), kind, WHAT)


def encoded(encoder: ColumnEncoder, values: list) -> list:
    return encoder.encode(pa.array(values), WHAT).tolist()


# ----------------------------------------------------------------- categorical
def test_categories_missing_and_unknown_have_codes_of_their_own():
    """Prevents a value never met in training from sharing the code of a known or of a missing one."""
    encoder = fitted(["b", None, "a", "b"], "categorical")
    assert encoder.vocabulary == ["a", "b"]
    assert encoded(encoder, ["a", "b", "new", None]) == [FIRST, FIRST + 1, UNKNOWN, MISSING]
    assert encoder.feature("item").size == 4


@pytest.mark.parametrize(
    ("trained", "asked"),
    [
        (pa.array([5.0, 3.0, np.nan]), [5, 4, None]),  # pandas makes floats of integers with gaps
        (pa.array([5, 3, None]), [5.0, 4.5, None]),
        (pa.array([5, 3]), ["5", "new", None]),
        (pa.array(["5", "3"]), [5, 4, None]),
        (pa.array(["3", "5"]).dictionary_encode(), ["5", "new", None]),
        (pa.array([5, 3], pa.uint8()), [5, 300, None]),
    ],
)
def test_a_value_is_the_same_whatever_its_type(trained, asked):
    """Prevents 5 and 5.0 from being two categories, and a value of another type from raising at serving time."""
    encoder = fitted(trained, "categorical")
    assert encoded(encoder, asked) == [FIRST + 1, UNKNOWN, MISSING]


def test_booleans_are_categories():
    """Prevents True from meeting 'true' as an unknown value."""
    encoder = fitted([True, False, None], "categorical")
    assert encoded(encoder, [False, True, None]) == [FIRST, FIRST + 1, MISSING]


def test_a_column_without_values_is_all_missing():
    """Prevents an empty export from breaking fit, or its later values from passing for known ones."""
    for kind in ("categorical", "multi"):
        encoder = fitted(pa.nulls(3), kind)
        assert encoder.vocabulary == []
        assert np.ravel(encoder.encode(pa.nulls(2), WHAT)).tolist() == [MISSING, MISSING]
    assert encoded(fitted(pa.nulls(3), "categorical"), ["new", None]) == [UNKNOWN, MISSING]
    assert np.isnan(fitted(pa.nulls(3), "numeric").encode(pa.nulls(2), WHAT)).all()


# ---------------------------------------------------------------- multi-valued
@settings(max_examples=40, deadline=None)
@given(lists_of_tags, lists_of_tags, st.integers(0, 3))
def test_lists_are_the_naive_loop(trained, asked, skip):
    """Prevents codes from sliding into the neighbouring row where lists are empty, missing or hold gaps."""
    encoder = fitted(pa.array(trained, pa.list_(pa.string())), "multi")
    vocabulary = sorted({v for row in trained for v in row or [] if v is not None})
    width = max(1, *(len([v for v in row or [] if v is not None]) for row in trained))
    assert (encoder.vocabulary, encoder.width) == (vocabulary, width)
    rows = pa.array(asked, pa.list_(pa.string())).slice(skip)  # a slice shares memory with what lies before it
    expected = []
    for row in asked[skip:]:
        codes = [FIRST + vocabulary.index(v) if v in vocabulary else UNKNOWN for v in row or [] if v is not None]
        expected.append((codes + [0] * width)[:width])
    assert encoder.encode(rows, WHAT).tolist() == expected


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.int32()), pa.list_(pa.int64(), 2)])
def test_lists_of_every_layout(kind):
    """Prevents a fixed-size list (as `datasets` writes them) from being refused or read flat."""
    values = pa.array([[7, 5], None, [5, 9]], kind)
    assert infer_kind(values) == "multi"
    encoder = fitted(values, "multi")
    assert encoder.encode(values, WHAT).tolist() == [[3, 2], [0, 0], [2, 4]]


def test_entries_under_a_missing_list_are_missing():
    """Prevents the entries that Arrow may store under a missing list from sliding into other rows."""
    values = pa.ListArray.from_arrays(
        pa.array([0, 2, 3, 4]), pa.array(["a", "b", "c", "d"]), mask=pa.array([True, False, False])
    )
    assert values.to_pylist() == [None, ["c"], ["d"]]
    assert fitted(values, "multi").encode(values, WHAT).tolist() == [[0], [2], [3]]


def test_long_lists_are_cut():
    """Prevents one item with a thousand tags from making the whole catalog a thousand wide."""
    encoder = fitted([list(range(1000)), [1]], "multi")
    assert encoder.encode(pa.array([[1], list(range(100))]), WHAT).shape == (2, 16)
    assert encoder.feature("item").width == 16


# --------------------------------------------------------------------- numbers
def test_numbers_keep_their_order_and_their_gaps():
    """Prevents a missing number from becoming a zero, i.e. a value like others."""
    encoder = fitted([3.0, None, 1.0, 100.0], "numeric")
    scaled = encoder.encode(pa.array([1.0, None, 3.0, 50.0, 1e9]), WHAT)
    assert scaled.dtype == np.float32
    assert np.isnan(scaled).tolist() == [False, True, False, False, False]
    assert (np.diff(scaled[~np.isnan(scaled)]) >= 0).all()


def test_numbers_are_counted_in_bins():
    """Prevents each price from being a key of its own, and a missing price from falling into the last bin."""
    encoder = fitted(np.arange(100.0).tolist(), "numeric")
    keys = encoder.keys(encoder.encode(pa.array([None, *range(100)]), WHAT))
    assert keys[0] == MISSING
    assert len(set(keys[1:])) == 10
    assert min(keys[1:]) == FIRST
    assert all(b >= a for a, b in pairwise(keys[1:]))


def test_categories_are_counted_as_they_are():
    """Prevents statistics from counting other groups than the model embeds."""
    codes = np.array([[2, 3], [0, 0]])
    assert fitted([["a", "b"]], "multi").keys(codes) is codes


# -------------------------------------------------------------- kinds and form
@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pa.array([1.5]), "numeric"),
        (pa.array([1]), "numeric"),
        (pa.array(["a"]), "categorical"),
        (pa.array([True]), "categorical"),
        (pa.array(["a"]).dictionary_encode(), "categorical"),
        (pa.array([["a"]]), "multi"),
        (pa.array([[1]]), "multi"),
        (pa.array([[1.0]]), "embedding"),
        (pa.array([[1.0]], pa.list_(pa.float32(), 1)), "embedding"),
        (pa.nulls(1), "categorical"),
    ],
)
def test_kinds_are_inferred(values, kind):
    """Prevents years from being embedded one by one, genres from being ranked and vectors from being categories."""
    assert infer_kind(values) == kind


def test_stars_are_categories_and_seconds_are_not():
    """Prevents five stars from becoming a rank, and watch times from becoming a vocabulary."""
    assert infer_kind(pa.array([1, 2, 3]), few_is_categorical=True) == "categorical"
    assert infer_kind(pa.array(range(33)), few_is_categorical=True) == "numeric"


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (pa.array(["old", "new"]), "numeric", "'c' holds string values such as 'old' .* declare it 'categorical'"),
        (pa.array([1.0, np.inf]), "numeric", "'c' is infinite in row 1: replace it"),
        (pa.array([["a"]]), "categorical", "'c' holds lists: declare it 'multi'"),
        (pa.array(["a"]), "multi", "'c' has type string but is declared 'multi': give lists"),
        (pa.array([{"a": 1}]), "categorical", "'c' has type struct.*: give integers or strings"),
    ],
)
def test_wrong_kinds_are_named(values, kind, message):
    """Prevents text from becoming NaN and lists from becoming their printed form."""
    with pytest.raises(ValueError, match="^items: column " + message):
        fitted(values, kind)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([5.0, 3.0], "categorical"),
        ([["b", "a"], []], "multi"),
        ([1.5, None, 3.0], "numeric"),
        ([[1.0, 0.5], None], "embedding"),
    ],
)
def test_encoders_survive_json(values, kind):
    """Prevents a vocabulary from returning from disk in another order or type."""
    encoder = fitted(values, kind)
    again = from_dict(ColumnEncoder, json.loads(json.dumps(asdict(encoder))))
    assert np.array_equal(
        again.encode(pa.array(values), WHAT),
        encoder.encode(pa.array(values), WHAT),
        equal_nan=kind in ("numeric", "embedding"),
    )


@pytest.mark.parametrize(
    ("values", "kind"),
    [(["a"], "categorical"), ([["a", "b"]], "multi"), ([1.0], "numeric"), ([[1.0, 2.0]], "embedding")],
)
def test_nothing_known_looks_like_encoded_gaps(values, kind):
    """Prevents the padding row of the catalog from having another shape or type than its items."""
    encoder = fitted(values, kind)
    real, nothing = encoder.encode(pa.array(values), WHAT), encoder.missing(3)
    assert nothing.shape == (3, *real.shape[1:])
    assert nothing.dtype == real.dtype
    assert np.isnan(nothing).all() if kind in ("numeric", "embedding") else (nothing == MISSING).all()


# ------------------------------------------------------- lists written as text
def test_blanks_around_separators_are_no_part_of_values():
    """Prevents ' Drama' and 'Drama', and an empty text, from being categories."""
    encoder = fitted(["Action, Drama", "Drama, Action", "", None, "Action,,"], "multi:,")
    assert encoder.vocabulary == ["Action", "Drama"]
    assert encoded(encoder, ["Drama ,Action", "", None]) == [[3, 2], [0, 0], [0, 0]]
    coded = pa.array(["a|b", "b"]).dictionary_encode()  # a column of pandas' categories
    assert fitted(coded, "multi:|").vocabulary == ["a", "b"]
    assert fitted(["tv", "", " "], "categorical").vocabulary == ["tv"]


def test_vocabularies_of_before_keep_their_blanks():
    """Prevents a saved model from meeting its own categories as unknown ones."""
    encoder = ColumnEncoder("c", "multi", vocabulary=["", " Drama", "Action"], width=2, separator=",")
    assert encoded(encoder, ["Action, Drama", ""]) == [[4, 3], [2, 0]]
    assert encoded(fitted([" tv", "", "radio"], "categorical"), ["", " tv"]) == [MISSING, FIRST]


@pytest.mark.parametrize(
    ("values", "kind", "vocabulary"),
    [
        (["['a', 'b']", "[]", None], "multi", ["a", "b"]),
        (['["b", "a"]', '["a"]'], "multi", ["a", "b"]),
        (["[1, 2]", "[2]"], "multi", [1, 2]),
        (["Comedy|Drama", "Drama", "Action|Comedy"], "multi:|", ["Action", "Comedy", "Drama"]),
        (["a|b", "c|d"], "categorical", ["a|b", "c|d"]),  # no part comes again
        (["[1]", "b"], "categorical", ["[1]", "b"]),
    ],
)
def test_texts_that_are_lists_are_recognised(values, kind, vocabulary):
    """Prevents every combination of genres from being a category of its own."""
    values = pa.array(values)
    assert infer_kind(values) == kind
    encoder = ColumnEncoder.fit("c", values, kind, WHAT)
    assert encoder.vocabulary == vocabulary
    assert ColumnEncoder(**asdict(encoder)).encode(values, WHAT).tolist() == encoder.encode(values, WHAT).tolist()


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (
            ["Comedy|Drama", "Drama"],
            "categorical",
            "holds lists written as text, e.g. 'Comedy|Drama': declare it 'multi:|'",
        ),
        (["['a']", "['b']"], "categorical", r"e.g. \"\['a'\]\": declare it 'multi'"),
        (["[0.5, 1.5]"], "multi", "holds vectors written as texts"),
        (["[a, b]"], "multi", "is no list, though it looks like one"),
        (["a, b", "b, a"], "multi", "declared 'multi'.*e.g. 'multi:,'"),
    ],
)
def test_texts_that_cannot_be_meant_are_refused(values, kind, message):
    """Prevents a wrong declaration from training on combinations, or on brackets."""
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        fitted(values, kind)


def test_lists_that_only_may_be_are_told():
    """Prevents 'Drama, Comedy' from being one category without a word; towns with their states are none."""
    with pytest.warns(
        UserWarning, match="items: column 'c' seems to hold lists .*'Action, Drama': declare it 'multi:,'"
    ):
        fitted(["Action, Drama", "Drama, Action", "Drama"], "categorical")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(["Portland, OR", "Portland, ME", "Austin, TX"], "categorical")


def test_numbers_and_their_padded_texts_are_one_category():
    """Prevents the hour 7 of a request from being unknown to a csv whose hours are 07 and 23."""
    encoder = fitted(["07", "23", "1", "01"], "categorical")
    assert encoder.vocabulary == ["01", "07", "1", "23"]
    assert encoded(encoder, [7, 23, 1, 5]) == [FIRST + 1, FIRST + 3, FIRST + 2, UNKNOWN]
    assert encoded(fitted([7, 23], "categorical"), ["07", "23", "x"]) == [FIRST, FIRST + 1, UNKNOWN]
    numeric = fitted(["007", None, " 1.5"], "numeric")
    assert np.isnan(numeric.encode(pa.array(["2", None]), WHAT)).tolist() == [False, True]
