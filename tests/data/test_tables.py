"""Tables in, errors out: each names the column, the first bad row and the fix."""

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from polyrec import PolyRecProcessor, TaskConfig
from polyrec.data.tables import label_values, labels, normalise_ids, read_table, times
from polyrec.schema import Columns, Label

TASKS = [TaskConfig("rating", head="regression")]


def log(**changes):
    return {"user_id": [1, 1, 2], "item_id": [5, 6, 5], "timestamp": [10, 20, 15], "rating": [1.0, 2.0, 3.0]} | changes


def fit(tasks=TASKS, columns=None, items=None, **changes):
    return PolyRecProcessor.fit(log(**changes), items, tasks=tasks, columns=columns)


def test_all_sources_give_one_table(tmp_path):
    """Prevents a format from changing values on the way in."""
    frame = pd.DataFrame(log())
    frame.to_parquet(tmp_path / "x.parquet")
    frame.to_csv(tmp_path / "x.csv", index=False)
    sources = [
        tmp_path / "x.parquet",
        str(tmp_path / "x.csv"),
        frame,
        datasets.Dataset.from_pandas(frame),
        pa.table(log()),
        log(),
    ]
    for source in sources:
        assert read_table(source, "interactions").to_pydict() == log()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timestamp": [10, None, 15]}, "'timestamp' .* no value in row 1"),
        ({"timestamp": ["2020-01-01", "soon", "2020-01-02"]}, "row 1: soon; use ISO 8601"),
        ({"timestamp": [10.0, 20.0, float("inf")]}, "row 2: times must be finite"),
        ({"timestamp": [1_700_000_000_000, 20, 15]}, "row 0, .*time_unit"),
        ({"user_id": [1, None, 2]}, "'user_id' .* no value in row 1"),
        ({"item_id": [5.0, 6.5, 5.0]}, "fractional in row 1"),
        ({"rating": [1.0, float("-inf"), 3.0]}, "'rating'.* infinite in row 1"),
        ({"rating": ["good", "bad", "good"]}, "'rating'.*'good'.*used as a number"),
    ],
)
def test_bad_values_are_named(changes, message):
    """Prevents training on rows that were repaired or dropped in silence."""
    with pytest.raises(ValueError, match=message):
        fit(**changes)


def test_missing_and_duplicate_columns():
    """Prevents a KeyError deep inside, and one of two equal columns from winning by chance."""
    with pytest.raises(ValueError, match="no column 'movie'.*needed as item id"):
        fit(columns={"item": "movie"})
    with pytest.raises(ValueError, match="'a' occurs more than once"):
        read_table(pd.DataFrame([[1, 2]], columns=["a", "a"]), "interactions")
    with pytest.raises(ValueError, match="no rows"):
        read_table({"a": []}, "interactions")


def test_unreadable_files(tmp_path):
    """Prevents a truncated file from passing for a small one."""
    path = tmp_path / "x.parquet"
    pd.DataFrame(log()).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="truncated"):
        read_table(path, "interactions")
    with pytest.raises(ValueError, match="no such file"):
        read_table(tmp_path / "y.csv", "interactions")
    with pytest.raises(ValueError, match="must end in"):
        (tmp_path / "z.txt").write_text("a")
        read_table(tmp_path / "z.txt", "interactions")


def test_binary_labels_out_of_range_show_the_comparison():
    """Prevents stars from being trained as probabilities."""
    with pytest.raises(ValueError, match='is 2 in row 1.*label="rating >= 2"'):
        fit(tasks=[TaskConfig("like", head="binary", label="rating")])


def test_a_constant_label_is_refused():
    """Prevents a task that cannot be learnt from looking perfect."""
    constant = log(user_id=[1] * 3, timestamp=[1, 2, 3])
    processor = PolyRecProcessor.fit(constant, tasks=[TaskConfig("like", head="binary", label="rating >= 0")])
    with pytest.raises(ValueError, match="'like' is 1 in every training row"):
        processor.split(constant, fractions=(1, 0, 0))


def test_duplicate_items_and_text_as_number():
    """Prevents the last of two rows of one item from deciding, and text from becoming NaN."""
    with pytest.raises(ValueError, match="item_id 5 occurs in rows 0 and 2"):
        fit(items={"item_id": [5, 6, 5], "year": [1, 2, 3]})
    with pytest.raises(ValueError, match="'year' holds .*'old'"):
        fit(items={"item_id": [5, 6], "year": ["old", "new"]}, columns={"item_features": {"year": "numeric"}})


def test_times_of_all_types_are_seconds():
    """Prevents microseconds of a timestamp column from being read as seconds."""
    expected = [1577836800.0, 1577836860.0]
    for values in (
        pa.array([1577836800, 1577836860]),
        pa.array(["2020-01-01T00:00:00", "2020-01-01T00:01:00"]),
        pa.array(np.array([1577836800000000, 1577836860000000]), pa.timestamp("us")),
    ):
        assert times(pa.table({"timestamp": values}), Columns(), "x").tolist() == expected
    ms = pa.table({"timestamp": [1577836800000, 1577836860000]})
    assert times(ms, Columns(time_unit="ms"), "x").tolist() == expected


def test_unknown_labels_stay_unknown():
    """Prevents a missing rating from becoming a dislike."""
    table = pa.table({"rating": [5.0, None, 2.0]})
    assert np.array_equal(label_values(table, Label("rating", ">=", 4), "x"), [1, np.nan, 0], equal_nan=True)
    found = labels(table, [TaskConfig("next_item", "retrieval", label="rating >= 4")], "x")
    assert np.array_equal(found[:, 0], [1, np.nan, np.nan], equal_nan=True)


def test_ids_of_any_width_compare_equal():
    """Prevents int32 ids of one table from missing int64 ids of another."""
    assert normalise_ids(pa.array([1, 2], pa.int32())).equals(normalise_ids(pa.array([1, 2], pa.uint8())))
    assert normalise_ids(pa.array(["a"])).equals(normalise_ids(pa.array(["a"]).dictionary_encode()))
