"""What else is a table: streams of Arrow, folders of parquet files, layouts of other programs."""

import datetime
import decimal

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from polyrec.data.tables import as_table, read_table

ROWS = {"item_id": ["007", "7"], "n": [1, 2]}


class Streaming:
    """What polars and DuckDB give: an object that streams Arrow, with texts as views."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


def test_whatever_streams_arrow_is_a_table(tmp_path):
    """Prevents polars, DuckDB, readers and data sets from being refused, and views from failing far away."""
    table = pa.table(ROWS)
    pq.write_table(table, tmp_path / "x.parquet")
    views = table.set_column(0, "item_id", table["item_id"].cast(pa.string_view()))
    with_indices = datasets.Dataset.from_dict({name: [None, *values[::-1]] for name, values in ROWS.items()})
    for source in (
        Streaming(views),
        table.to_reader(),
        table.to_batches()[0],
        ds.dataset(tmp_path / "x.parquet"),
        with_indices.select([2, 1]),
        {name: pd.Series(values) for name, values in ROWS.items()},
        pa.table({"item_id": table["item_id"].dictionary_encode(), "n": table["n"]}),
    ):
        assert read_table(source, "x").to_pydict() == ROWS
    assert as_table(Streaming(views), "item_id").column_names == ["item_id", "n"]
    empty = table.to_reader()
    empty.read_all()
    with pytest.raises(ValueError, match="no rows.*a stream of Arrow can be read once: pass a table"):
        read_table(empty, "x")
    with pytest.raises(
        ValueError, match="x: cannot read a StringArray: pass a .parquet or .csv path, a folder of parquet"
    ):
        read_table(pa.array(["a"]), "x")


def test_a_folder_of_parquet_parts_is_a_table(tmp_path):
    """Prevents parts from being read out of order or as one of them, and codes in folder names from losing zeros."""
    folder = tmp_path / "log.parquet"
    for shop, part, rows in (("007", 0, [1, 2]), ("007", 1, [3]), ("7", 0, [4])):
        place = folder / f"shop={shop}"
        place.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"n": rows}), place / f"part-{part}.parquet")
    (folder / "_SUCCESS").touch()
    (folder / "_old").mkdir()
    pq.write_table(pa.table({"n": [9]}), folder / "_old" / "part.parquet")
    assert read_table(folder, "x").to_pydict() == {"n": [1, 2, 3, 4], "shop": ["007", "007", "007", "7"]}
    pq.write_table(pa.table({"n": ["a"]}), folder / "z.parquet")
    with pytest.raises(ValueError, match="x: the files of .* do not fit together"):
        read_table(folder, "x")
    folder.rename(tmp_path / "_log.parquet")
    with pytest.raises(ValueError, match="x: .* is a folder without .parquet files"):
        read_table(tmp_path, "x")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"a": [10**30, "x"]}, "column 'a' (mixes types|holds a whole number beyond 64 bits)"),
        ({"a": [10**30, 1.5]}, "column 'a'"),
        ({"a": [1, [2]]}, "column 'a' mixes types"),
        ({"a": [object()]}, "column 'a' mixes types"),
        ({"a": [1 + 2j]}, "column 'a' mixes types"),
        ({"a": "abc"}, "column 'a' is abc: give a list or an array"),
        ({"a": 5}, "column 'a' is 5: give a list or an array"),
        ({"a": iter([1])}, "column 'a' is .*: give a list or an array"),
        (pd.DataFrame({"a": [1, "x", None]}), "column 'a' mixes types"),
        (pd.DataFrame({1: [1], "1": [2]}), "column '1' occurs more than once"),
        (datasets.Dataset.from_dict({"a": [1]}).to_iterable_dataset(), "cannot read a IterableDataset"),
    ],
)
def test_values_that_no_column_holds_are_one_line(source, message):
    """Prevents tracebacks of Arrow and pandas from being the answer to a mixed column."""
    with pytest.raises(ValueError, match=f"^events: {message}") as error:
        read_table(source, "events")
    assert "\n" not in str(error.value)


def test_layouts_of_other_programs_are_plain():
    """Prevents vectors as a matrix, half floats, extension types and gaps of pandas from being refused or misread."""
    table = read_table(
        {
            "matrix": np.arange(6.0).reshape(2, 3),
            "half": np.array([1, 2], dtype=np.float16),
            "gaps": pd.array([1, None], dtype="Int64"),
            "texts": pd.Series(["a", np.nan]),
            "bool": [True, None],
            "dates": [datetime.date(2023, 1, 31), None],
            "decimals": [decimal.Decimal("1.50"), None],
            "uuid": pa.array([b"0" * 16, None], pa.uuid()),
            "runs": pa.array([5, 5]).dictionary_encode(),
            "lists": pa.array([["a"], []], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        },
        "x",
    )
    assert table["matrix"].to_pylist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert table["half"].to_pylist() == [1.0, 2.0]
    assert [table[n].null_count for n in ("gaps", "texts", "bool", "dates", "decimals", "uuid")] == [1] * 6
    assert table["lists"].type == pa.list_(pa.string())
