"""The catalog: which row belongs to which id, and what its attributes are."""

from __future__ import annotations

import pyarrow as pa
import pytest

from polyrec.core.schema import Columns
from polyrec.data.catalog import EntityTable, _looks_like_text
from polyrec.data.columns import FIRST, MISSING, UNKNOWN
from polyrec.data.tables import read_table


def catalog(items: dict | None = None, events: dict | None = None, name: str = "items", **columns) -> EntityTable:
    table = None if items is None else read_table(items, name)
    return EntityTable.fit(table, pa.table(events or {}), Columns(**columns), name)


def test_rows_follow_the_table():
    """Prevents recommendations from carrying the id and title of another item."""
    items = catalog({"item_id": ["c", "a", "b"], "title": ["C", "A", "B"], "genre": ["x", None, "y"]})
    assert items.rows(pa.array(["a", "b", "c", "new"])).tolist() == [FIRST + 1, FIRST + 2, FIRST, UNKNOWN]
    assert items.encoded["genre"].tolist() == [MISSING, MISSING, FIRST, MISSING, FIRST + 1]
    assert len(items) == 5


def test_padding_and_the_unknown_item_have_no_attributes():
    """Prevents the unknown item from borrowing the attributes of the first one."""
    items = catalog({"item_id": [1], "genre": ["x"], "tags": [["a", "b"]], "year": [1990.0]})
    for values in (items.encoded["genre"][:2], items.encoded["tags"][:2].ravel()):
        assert (values == MISSING).all()
    assert str(items.encoded["year"][:2]) == "[nan nan]"


@pytest.mark.parametrize(
    ("known", "asked", "expected"),
    [
        (pa.array([10, 20]), pa.array([20, 30], pa.int32()), [FIRST + 1, UNKNOWN]),
        (pa.array([10, 20]), pa.array(["20", "x"]), [FIRST + 1, UNKNOWN]),
        (pa.array([10, 20]), pa.array([20.0, 30.0]), [FIRST + 1, UNKNOWN]),
        (pa.array(["10", "20"]), pa.array([20, 30]), [FIRST + 1, UNKNOWN]),
        (pa.array([2**64 - 1, 20], pa.uint64()), pa.array([20, 2**64 - 1], pa.uint64()), [FIRST + 1, FIRST]),
        (pa.array([10, 20]), pa.array([], pa.null()), []),
    ],
)
def test_ids_match_whatever_their_type(known, asked, expected):
    """Prevents every event from being one of an unknown item because two files store ids differently."""
    assert catalog({"item_id": known}).rows(asked).tolist() == expected


def test_without_a_table_the_log_says_which_items_there_are():
    """Prevents the numbering of items from depending on the order of the log."""
    for order in ([3, 1, 2, 1], [1, 2, 3]):
        items = catalog(events={"item_id": order})
        assert items.ids.to_pylist() == [1, 2, 3]
        assert items.encoded == {}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"item_id": [5, 6, 5]}, "items: item_id 5 occurs in rows 0 and 2: keep one row per id"),
        ({"item_id": ["b", "a", "a", "b"]}, "items: item_id a occurs in rows 1 and 2"),
        ({"item_id": [5, None]}, r"items: column 'item_id' \(item id\) has no value in row 1: fill it in"),
        ({"id": [5, 6]}, "items: no column 'item_id' .needed as item id.; known: id"),
        ({"item_id": []}, "items: the table has no rows"),
    ],
)
def test_bad_ids_are_named(rows, message):
    """Prevents the last of two rows of one item from deciding, and events from losing their item."""
    with pytest.raises(ValueError, match=message):
        catalog(rows)


def test_declared_attributes_are_checked():
    """Prevents a misspelt attribute from being left out, and attributes from being declared of a missing table."""
    with pytest.raises(ValueError, match="users: no column 'aeg' .needed as attribute.; .*did you mean 'age'"):
        catalog({"user_id": [1], "age": [3]}, name="users", user_features={"aeg": "numeric"})
    with pytest.raises(ValueError, match=r"columns\.item_features is given but no items table: pass items="):
        catalog(events={"item_id": [1]}, item_features={"genre": "categorical"})
    with pytest.raises(ValueError, match="items: column 'year' holds string values such as 'old'"):
        catalog({"item_id": [1], "year": ["old"]}, item_features={"year": "numeric"})


def test_undeclared_attributes_are_the_columns_but_names_and_texts():
    """Prevents titles and descriptions from becoming categories with one item each."""
    rows = range(200)
    items = catalog({
        "item_id": rows,
        "title": [f"title {r}" for r in rows],
        "about": [f"about {r}" for r in rows],
        "genre": ["x", "y"] * 100,
        "year": rows,
        "tags": [["a"]] * 200,
    })  # fmt: skip
    assert {name: e.kind for name, e in items.encoders.items()} == {
        "genre": "categorical", "year": "numeric", "tags": "multi",
    }  # fmt: skip


def test_text_is_kept_but_not_encoded():
    """Prevents a declared description from being an input that the model does not have."""
    items = catalog({"item_id": [1], "about": ["words"]}, item_features={"about": "text"})
    assert items.encoders["about"].kind == "text"
    assert items.encoded == items.keys() == {}


def test_numbers_are_counted_in_bins():
    """Prevents a statistic by price from having one item per key."""
    items = catalog({"item_id": range(50), "price": [float(i) for i in range(50)], "genre": ["x", "y"] * 25})
    assert set(items.keys()["price"][FIRST:]) == set(range(FIRST, FIRST + 10))
    assert (items.keys()["genre"] == items.encoded["genre"]).all()


@pytest.mark.parametrize(("distinct", "text"), [(50, False), (60, False), (61, True)])
def test_words_of_which_half_are_distinct_are_titles(distinct, text):
    """Prevents titles from becoming categories of one item each, and categories from being dropped as titles."""
    values = pa.chunked_array([[f"word {n % distinct}" for n in range(120)]])
    assert _looks_like_text(values, "categorical") is text
