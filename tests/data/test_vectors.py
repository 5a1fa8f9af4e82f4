"""Vectors of other models: from a list column or a file, at length 1, with gaps."""

from __future__ import annotations

import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.preprocessing import normalize

from polyrec.data.vectors import VectorFile, vector_column

WHAT = "items: column 'v'"
NAN = float("nan")
numbers = st.floats(-1e6, 1e6, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6)
rows_of_three = st.none() | st.lists(st.none() | st.just(NAN) | numbers, min_size=3, max_size=3)


def expected(rows: list, width: int) -> np.ndarray:
    """The naive loop, scaled by sklearn."""
    found = np.full((len(rows), width), NAN)
    for i, row in enumerate(rows):
        if row is not None and None not in row and not np.isnan(row).any() and np.any(row):
            found[i] = normalize([row])[0]
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(rows_of_three, min_size=1, max_size=6), st.integers(0, 2))
def test_a_column_is_the_naive_loop(rows, skip):
    """Prevents vectors from sliding into the neighbouring row where some are missing, and half vectors from counting."""
    values = pa.array([*rows, [1.0, 0.0, 0.0]], pa.list_(pa.float64())).slice(skip)
    found = vector_column(values, WHAT, width=3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected([*rows, [1.0, 0.0, 0.0]][skip:], 3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float32(), 2), pa.list_(pa.int64())]
)
def test_lists_of_every_layout(kind):
    """Prevents fixed-size lists, as `datasets` writes them, from being refused or read with their gaps."""
    found = vector_column(pa.array([None, [3, 4], [0, 0]], kind), WHAT)
    np.testing.assert_allclose(found, [[NAN, NAN], [0.6, 0.8], [NAN, NAN]], rtol=1e-6)


def test_very_large_and_very_small_vectors_keep_their_direction():
    """Prevents squares from overflowing to a length of infinity, i.e. to a vector of zeros."""
    values = pa.array([[3e300, 4e300], [3e-300, 4e-300]])
    np.testing.assert_allclose(vector_column(values, WHAT), [[0.6, 0.8]] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([None, [1.0, 2.0], [1.0]]), "holds 1 numbers in row 2, not 2: give vectors of one width"),
        (pa.array([[], [1.0]], pa.list_(pa.float32())), "holds 0 numbers in row 0, not at least 1"),
        (pa.array([[1.0, 0.0], None, [0.0, np.inf]]), "has an infinite number in row 2: repair the vector"),
        (pa.array([["a", "b"]]), "has type list.*string.* but is declared 'embedding': give lists of numbers"),
        (pa.array([1.0]), "has type double but is declared 'embedding'"),
        (pa.nulls(2), "holds no vector at all, so its width is unknown"),
    ],
)
def test_bad_columns_are_named(values, message):
    """Prevents a truncated vector from shifting all that follow, and infinity from becoming NaN in training."""
    with pytest.raises(ValueError, match="^items: column 'v' " + message):
        vector_column(values, WHAT)


def test_the_width_is_that_of_the_fit():
    """Prevents vectors of another model from being read by a projection that was learnt for the old ones."""
    with pytest.raises(ValueError, match="holds 3 numbers in row 0, not 2"):
        vector_column(pa.array([[1.0, 2.0, 3.0]]), WHAT, width=2)
    assert np.isnan(vector_column(pa.nulls(2), WHAT, width=2)).all()


# ----------------------------------------------------------------------- files
def write(path, values: np.ndarray):
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        save_file({"vectors": torch.from_numpy(values), "other": torch.zeros(3)}, path)
    return path


@pytest.mark.parametrize("name", ["v.npy", "v.safetensors"])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_file_is_the_column_with_missing_rows_before_it(tmp_path, name, kind):
    """Prevents item r from getting the vector of item r - 2."""
    values = np.random.default_rng(0).normal(size=(7, 3)).astype(kind)
    values[2] = 0
    values[4, 1] = NAN
    file = VectorFile(write(tmp_path / name, values), 2, WHAT)
    assert (len(file), file.width) == (9, 3)
    column = vector_column(pa.array(values.astype(float).tolist()), WHAT)
    whole = np.concatenate([np.full((2, 3), NAN), column])
    index = np.array([0, 8, 3, 3, 1])
    np.testing.assert_allclose(file[index], whole[index], rtol=1e-5)
    pieces = np.full((9, 3), -5.0)
    for place, piece in file.chunks():
        pieces[place] = piece
    np.testing.assert_allclose(pieces, whole, rtol=1e-5)


def test_bfloat16_is_read(tmp_path):
    """Prevents a table stored by a model in bfloat16, which numpy does not know, from being refused."""
    save_file({"image": torch.tensor([[3.0, 4.0]], dtype=torch.bfloat16)}, tmp_path / "v.safetensors")
    np.testing.assert_allclose(VectorFile(tmp_path / "v.safetensors", 0, WHAT)[np.array([0])], [[0.6, 0.8]], rtol=1e-2)


def test_a_saved_copy_is_the_file(tmp_path):
    """Prevents a processor's copy from losing rows at the border of two pieces, also when it is saved over itself."""
    values = np.random.default_rng(1).normal(size=(40, 500_000 // 4)).astype(np.float16)  # two pieces
    file = VectorFile(write(tmp_path / "v.npy", values), 2, WHAT)
    file.save(tmp_path / "copy.npy")
    copy = VectorFile(tmp_path / "copy.npy", 2, WHAT, rows=40)
    copy.save(tmp_path / "copy.npy")
    for index in (np.arange(2), np.arange(30, 42)):
        np.testing.assert_allclose(copy[index], file[index], rtol=2e-3, atol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.npy", "v.npy"]


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(0, 5), more=st.lists(st.integers(0, 4), max_size=3), begin=st.integers(0, 9))
def test_a_file_grows_by_rows(rows, more, begin):
    """Prevents added vectors from shifting those of the file, from changing the file that was, or from being lost."""
    with tempfile.TemporaryDirectory() as folder:
        values = np.random.default_rng(rows).normal(size=(rows + sum(more), 3)).astype(np.float32)
        values[-1:] = NAN
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        expected = np.concatenate([np.full((2, 3), NAN), unit])
        file = first = VectorFile(write(Path(folder) / "v.npy", values[:rows]), 2, WHAT)
        for count, end in zip(more, rows + np.cumsum(more, dtype=int), strict=True):
            file = file.extended(unit[end - count : end])
        assert (len(first), len(file)) == (rows + 2, len(expected))
        np.testing.assert_allclose(file[np.arange(len(file))], expected, rtol=1e-5)
        pieces = {n: row for place, piece in file.chunks(begin) for n, row in zip(range(99)[place], piece, strict=True)}
        assert list(pieces) == list(range(begin, len(expected)))
        file.save(Path(folder) / "v.npy")
        copy = VectorFile(Path(folder) / "v.npy", 2, WHAT, rows=len(values))
        for grown in (file, copy):  # the one still reads what it was made of
            np.testing.assert_allclose(grown[np.arange(len(grown))], expected, atol=1e-3)


def test_a_file_is_never_held_whole(tmp_path):
    """Prevents vectors of a large catalog from filling the memory at fit, and at the copy of a saved processor."""
    rows, width = 200_000, 256  # 102 MB
    table = np.lib.format.open_memmap(tmp_path / "v.npy", mode="w+", dtype=np.float16, shape=(rows, width))
    for start in range(0, rows, 10_000):
        table[start : start + 10_000] = 1 + np.arange(width)
    del table
    tracemalloc.start()
    file = VectorFile(tmp_path / "v.npy", 2, WHAT, rows=rows)
    file.check()
    file.save(tmp_path / "copy.npy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6  # a few pieces of 4 M numbers, in float64 while they are scaled; the table would take 400 MB


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 2)), "has 3 rows but the items table has 4: give one vector per row of the table, in its order"),
        (np.zeros(4), r"holds an array of shape \[4\]: give one vector per row"),
        (np.array([["a"]] * 4), r"cannot read .* .it holds <U1, not numbers"),
    ],
)
def test_files_of_another_form_are_named(tmp_path, values, message):
    """Prevents a table of another catalog from being read with its rows shifted."""
    np.save(tmp_path / "v.npy", values)
    with pytest.raises(ValueError, match=f"^{WHAT}.*{message}"):
        VectorFile(tmp_path / "v.npy", 2, WHAT, rows=4)


def test_files_that_cannot_be_read_are_named(tmp_path):
    """Prevents a pickle from being loaded, and a stack trace of numpy's where a path is wrong."""
    np.save(tmp_path / "pickle.npy", np.array([[object()]]), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "cut.safetensors").write_bytes(b"abc")
    (tmp_path / "v.pt").write_bytes(b"")
    save_file({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}, tmp_path / "two.safetensors")
    for name, message in {
        "none.npy": "no such file",
        "pickle.npy": "cannot read",
        "cut.npy": "cannot read",
        "cut.safetensors": "cannot read",
        "v.pt": r"files must end in \.npy or \.safetensors",
        "two.safetensors": "name the matrix 'vectors', or store it alone",
    }.items():
        with pytest.raises(ValueError, match=message):
            VectorFile(tmp_path / name, 0, WHAT)


def test_the_row_of_an_infinite_number_is_that_of_the_items_table(tmp_path):
    """Prevents a message about row 7 when the table's row 5 must be repaired."""
    values = np.ones((8, 2), dtype=np.float16)
    values[5, 1] = np.inf
    np.save(tmp_path / "v.npy", values)
    with pytest.raises(ValueError, match="has an infinite number in row 5"):
        VectorFile(tmp_path / "v.npy", 2, WHAT).check()
