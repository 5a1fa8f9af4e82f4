"""Tables that are mapped must hold what the files hold."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polyrec.data.mapped_tables import mapped_table, num_rows
from polyrec.data.tables import read_table

PARTS = [
    {"user_id": pa.array([1, 2], pa.int32()), "word": pa.array(["a", None]).dictionary_encode()},
    {"user_id": pa.array([3], pa.int64()), "word": pa.array(["b"]).dictionary_encode(), "late": pa.array([1.5])},
]


@pytest.fixture
def folder(tmp_path):
    """Two files of one table, of which one lacks a column."""
    (tmp_path / "log").mkdir()
    for number, part in enumerate(PARTS):
        pq.write_table(pa.table(part), tmp_path / "log" / f"{number}.parquet")
    return tmp_path / "log"


def test_files_of_several_types_are_one_table(folder, tmp_path):
    """Prevents rows, words or columns from being lost where files differ."""
    found = mapped_table(folder, "interactions", tmp_path / "cache")
    assert found.to_pydict() == read_table(folder, "interactions").to_pydict()
    assert num_rows(folder) == 3


def test_a_file_that_changed_is_read_again(folder, tmp_path):
    """Prevents an older content of a file from being trained on."""
    mapped_table(folder, "interactions", tmp_path / "cache")
    pq.write_table(pa.table(PARTS[1]), folder / "0.parquet")
    found = mapped_table(folder, "interactions", tmp_path / "cache")
    assert found["user_id"].to_pylist() == [3, 3]


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing more"])
def test_a_damaged_file_is_refused_as_ever(tmp_path, content):
    """Prevents another message, or leftovers in the cache, where a file cannot be read."""
    path = tmp_path / "events.parquet"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*events.parquet"):
        mapped_table(path, "interactions", tmp_path / "cache")
    assert not list(tmp_path.rglob("*.tmp"))
    assert num_rows(path) == 0


def test_folders_that_are_columns_are_read_into_memory(tmp_path):
    """Prevents a column that only folders name from being lost."""
    (tmp_path / "log" / "day=1").mkdir(parents=True)
    pq.write_table(pa.table({"user_id": [1]}), tmp_path / "log" / "day=1" / "a.parquet")
    assert mapped_table(tmp_path / "log", "interactions", tmp_path / "cache").to_pydict() == {
        "user_id": [1],
        "day": [1],
    }


def test_hidden_and_empty_files_are_none_of_a_table(folder, tmp_path):
    """Prevents a log in files from holding rows that the same log in memory does not, and the other way round."""
    pq.write_table(pa.table(PARTS[1]), folder / "_2.parquet")
    pq.write_table(pa.table(PARTS[1]), folder / ".3.parquet")
    pq.write_table(pa.table(PARTS[1]).slice(0, 0), folder / "4.parquet")
    found = mapped_table(folder, "interactions", tmp_path / "cache")
    assert found.to_pydict() == read_table(folder, "interactions").to_pydict()
    assert num_rows(folder) == 3
    assert list((tmp_path / "cache").glob("*.arrow"))
