"""Identifiers: what tells two of them apart is kept, and one is the same in all tables."""

import decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from polyrec import PolyRecProcessor, TaskConfig
from polyrec.data.ids import ids, normalise_ids
from polyrec.data.tables import read_table

NEXT = [TaskConfig("next_item", "retrieval")]


def csv(path, text):
    path.write_text(text)
    return path


def test_zeros_of_ids_count(tmp_path):
    """Prevents 007 and 7 from being one item, and a request for "0663713001" from being a cold start."""
    log = csv(tmp_path / "hm.csv", "user_id,item_id,timestamp\n1,0663713001,1\n2,007,3\n2,7,4\n")
    processor = PolyRecProcessor.fit(log, tasks=NEXT)
    assert processor.items.ids.to_pylist() == ["007", "0663713001", "7"]
    known = np.array([2])
    assert processor.request(["0663713001", "7"], known)["history_items"].tolist() == [3, 4]
    with pytest.warns(UserWarning, match="id '663713001' is unknown, but '0663713001' is known: 1 of 1 unknown"):
        assert processor.request([663713001], known)["history_items"].tolist() == [1]


def test_digits_of_two_tables_match(tmp_path):
    """Prevents a catalog with one letter in its ids from matching nothing of a log of digits."""
    log = csv(tmp_path / "log.csv", "user_id,item_id,timestamp\n1,0000000001,1\n1,000000004X,2\n2,0000000001,3\n")
    items = csv(tmp_path / "items.csv", "item_id,genre\n0000000001,a\n000000004X,b\n")
    processor = PolyRecProcessor.fit(log, items, tasks=NEXT)
    assert processor.encode_events(log).item.tolist() == [2, 3, 2]
    digits = csv(tmp_path / "digits.csv", "user_id,item_id,timestamp\n1,0000000001,1\n")
    assert processor.encode_events(digits).item.tolist() == [2]
    with pytest.warns(UserWarning, match="id 1 is unknown, but '0000000001' is known"):
        assert processor.encode_events(pd.read_csv(digits)).item.tolist() == [1]


def test_new_ids_are_not_cast_to_the_type_of_the_old_ones(tmp_path):
    """Prevents a new item 007 from becoming the 7 that is known, when the catalog so far held numbers only."""
    processor = PolyRecProcessor.fit({"user_id": [1, 1], "item_id": [7, 8], "timestamp": [1, 2]}, tasks=NEXT)
    processor.extend(csv(tmp_path / "new.csv", "item_id\n007\n9\n"))
    assert processor.items.ids.to_pylist() == ["7", "8", "007", "9"]
    processor.save_pretrained(tmp_path / "saved")
    loaded = PolyRecProcessor.from_pretrained(tmp_path / "saved")
    later = {"user_id": [1, 1, 1], "item_id": [7, 8, 9], "timestamp": [3, 4, 5]}
    assert loaded.encode_events(later).item.tolist() == [2, 3, 5]


def test_whole_numbers_of_every_type_are_one_id(tmp_path):
    """Prevents 3.0, which pandas makes of 3 where another id is missing, and a decimal of a data base from being new."""
    for values in (
        pa.array([3.0, None]),
        pa.array([3, None], pa.uint64()),
        pa.array([3, None], pa.float32()),
        pa.array([3.0, np.nan], from_pandas=True),
    ):
        assert normalise_ids(values).to_pylist() == [3, None]
    for values in (pa.array([decimal.Decimal("3.00"), None]), pa.array(["3", None]).dictionary_encode()):
        assert normalise_ids(values).to_pylist() == ["3", None]
    frame = read_table(csv(tmp_path / "x.csv", "item_id\n3.0\n12.0\n"), "x")
    assert ids(frame, "item_id", "x", "item id").to_pylist() == [3, 12]
    assert read_table({"item_id": [10**30, 5]}, "x")["item_id"].to_pylist() == ["1" + "0" * 30, "5"]


def test_values_of_a_request_that_no_column_holds_are_one_line():
    """Prevents 10**30, or a number beside texts, from ending a request in Arrow's own error."""
    log = {"user_id": ["a", "a"], "item_id": ["x", "y"], "timestamp": [1, 2], "place": ["home", "away"]}
    processor = PolyRecProcessor.fit(
        log, users={"user_id": ["a", "b"], "age": [3, 4]}, tasks=NEXT, columns={"context": ["place"]}
    )
    asked = np.array([2])
    assert processor.request(["x"], asked, user={"age": 10**30})["user_features"]["age"] > 1  # a number, if a large one
    refused = [({"user": {"age": 1j}}, "user.age is 1j; it must be"), ({"context": {"place": 5}}, "place.* 5")]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            processor.request([{"item_id": "x", "place": "home"}], asked, **options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([2.0**53 * 4, 1.0]), r"double, which cannot hold all digits of 36028797018963968 \(row 0\)"),
        (pa.array([1.0, 123456792.0], pa.float32()), r"float, which cannot hold all digits of 123456792 \(row 1\)"),
        (pa.array([True]), "holds true and false: give integers or strings"),
        (pa.array(["a", " "]), "no value in row 1"),
        (pa.array([b"\xff"]), "has type binary: give integers or strings"),
        (pa.array([{"a": 1}]), "has type struct<a: int64>: give integers or strings"),
        (pa.array([decimal.Decimal("3.50")]), "fractions: give whole numbers or strings"),
    ],
)
def test_what_is_no_id_is_refused(values, message):
    """Prevents ids that lost digits in a float, and types that are no ids, from being compared."""
    with pytest.raises(ValueError, match=rf"log: column 'item_id' \(item id\).*{message}"):
        ids(pa.table({"item_id": values}), "item_id", "log", "item id")
