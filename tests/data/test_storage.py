"""Arrays in files must be the arrays that were given, whatever order they came in."""

from __future__ import annotations

import numpy as np
import pytest

from polyrec.data import storage as storage_module
from polyrec.data.storage import MEMORY, Folder


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_rows_that_come_in_any_order_stand_where_they_belong(where, tmp_path, monkeypatch):
    """Prevents features of one event from being trained on as those of another."""
    monkeypatch.setattr(storage_module, "_BUCKET_BYTES", 4 * 3 * 7)  # seven rows
    monkeypatch.setattr(storage_module, "_CHUNK", 5)
    random = np.random.default_rng(0)
    expected = random.random((40, 3)).astype(np.float32)
    missing = random.random(40) < 0.2
    writer = (MEMORY if where == "memory" else Folder(tmp_path)).writer("matrix", 40, 3)
    for rows in np.array_split(random.permutation(np.flatnonzero(~missing)), 6):
        writer.put(np.sort(rows), expected[np.sort(rows)])
    found = writer.finish(lambda values: 2 * values)
    expected[missing] = np.nan
    np.testing.assert_array_equal(found, 2 * expected)
    assert not list(tmp_path.glob("*.bucket"))


def test_what_a_process_changes_stays_its_own(tmp_path):
    """Prevents a training that masks labels from changing the prepared data of the next one."""
    folder = Folder(tmp_path)
    mine = folder.keep("labels", np.zeros(4))
    mine[0] = 1.0
    assert folder.load("labels").tolist() == [0.0] * 4


def test_files_that_others_read_are_not_written_again(tmp_path):
    """Prevents one process from truncating an array that another has mapped."""
    first = Folder(tmp_path).keep("a/b", np.arange(3))
    again = Folder(tmp_path, complete=True).keep("a/b", np.arange(3) + 7)
    assert first.tolist() == again.tolist() == [0, 1, 2]


def test_a_folder_that_is_cleared_leaves_arrays_to_those_who_have_them(tmp_path):
    """Prevents the sets of an earlier split from breaking when a new one takes its folder."""
    folder = Folder(tmp_path)
    held = folder.keep("time", np.arange(5.0))
    folder.clear()
    assert held.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert not list(tmp_path.iterdir())


def test_an_empty_matrix_has_its_columns(tmp_path):
    """Prevents a log without targets from failing on disk alone."""
    found = Folder(tmp_path).writer("none", 6, 0).finish(np.asarray)
    assert found.shape == (6, 0)


def test_names_of_any_length_have_files(tmp_path):
    """Prevents a long name of a column from failing on disk alone."""
    folder = Folder(tmp_path)
    names = ["x" * 300, "x" * 299 + "y", "é/" * 120]
    for number, name in enumerate(names):
        folder.keep(name, np.array([number]))
    assert [folder.load(name).tolist() for name in names] == [[0], [1], [2]]


def test_a_file_that_is_gone_is_named(tmp_path):
    """Prevents a cache that was tidied up from ending in an error that says nothing of the way out."""
    with pytest.raises(ValueError, match=r"item\.npy is missing or cut off: delete the folder"):
        Folder(tmp_path / "log", complete=True).load("item")
    assert not (tmp_path / "log").exists()
