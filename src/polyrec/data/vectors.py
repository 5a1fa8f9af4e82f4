"""Vectors that another model made of an item, a user or a context: a list column, or a file with one row per item.

Vectors are scaled to length 1. What tells two of them apart in the spaces that encoders learn is their direction, and
with length 1 a linear map of them starts at the size of an embedding, whatever their width (entries of size 1, i.e.
length sqrt(W), would start sqrt(W) times larger and drown the id embeddings). A missing vector, one with a gap in it,
and one of zeros, which has no direction, become a row of NaN.

Letters: R rows, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path

import numpy as np
import pyarrow as pa

from polyrec.data.tables import first_bad_row, is_null

_CHUNK = 1 << 22  # numbers read at once: 16 MiB


def vector_column(values: pa.Array, what: str, width: int | None = None) -> np.ndarray:
    """A column of lists as vectors of length 1, float32 [R, W], NaN = missing.

    Args:
        what: names table and column in messages.
        width: that all must have; None: that of the first.

    Example:
        >>> vector_column(pa.array([[3.0, 4.0], None, [0.0, 2.0], [1.0, None]]), "items: column 'v'").tolist()
        [[0.6..., 0.8...], [nan, nan], [0.0, 1.0], [nan, nan]]
    """
    present = ~is_null(values)
    lists = values.drop_null()
    if pa.types.is_fixed_size_list(values.type):
        lists = lists.cast(pa.list_(values.type.value_type))
    if not pa.types.is_null(values.type) and not _holds_numbers(values.type):
        raise ValueError(
            f"{what} has type {values.type} but is declared 'embedding': give lists of numbers, all equally long"
        )
    lengths = np.asarray(lists.value_lengths()) if len(lists) else np.zeros(0, dtype=np.int64)
    if width is None:
        if not lengths.size:
            raise ValueError(f"{what} holds no vector at all, so its width is unknown: fill it in or do not declare it")
        width = int(lengths[0])
    wrong = first_bad_row((lengths != width) | (lengths == 0))
    if wrong is not None:
        row = int(np.flatnonzero(present)[wrong])
        raise ValueError(
            f"{what} holds {lengths[wrong]} numbers in row {row}, not {width or 'at least 1'}: give vectors of one "
            "width, or declare the column 'multi' if these are categories"
        )
    found = np.full((len(values), width), np.nan, dtype=np.float32)
    if lengths.size:
        flat = lists.flatten().cast(pa.float64()).fill_null(np.nan)
        found[present] = unit_rows(np.asarray(flat).reshape(-1, width), lambda i: int(np.flatnonzero(present)[i]), what)
    return found


def unit_rows(x_RW: np.ndarray, row: Callable[[int], int], what: str) -> np.ndarray:
    """Rows scaled to length 1, float32 [R, W]; NaN where one has a gap or no direction.

    Args:
        row: the row of the user's table that index i is, for the message about an infinite number.
    """
    x_RW = x_RW.astype(np.float64)
    bad = first_bad_row(np.isinf(x_RW).any(axis=1))
    if bad is not None:
        raise ValueError(
            f"{what} has an infinite number in row {row(bad)}: repair the vector, or make it null (in a file, NaN) "
            "where it is unknown"
        )
    largest_R1 = np.abs(x_RW).max(axis=1, keepdims=True)  # divided out first, so that no square is too large or small
    with np.errstate(invalid="ignore"):
        x_RW = x_RW / np.where(largest_R1 > 0, largest_R1, np.nan)
    return (x_RW / np.linalg.norm(x_RW, axis=1, keepdims=True)).astype(np.float32)


def _holds_numbers(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and (
        pa.types.is_floating(kind.value_type)
        or pa.types.is_integer(kind.value_type)
        or pa.types.is_decimal(kind.value_type)
        or pa.types.is_null(kind.value_type)
    )


class VectorFile:
    """A .npy or .safetensors file with one vector per item, read in pieces and never whole.

    It looks like the array [N, W] of an encoded attribute: `first` rows of missing vectors (padding, the unknown item)
    come before those of the file.

    Args:
        path: an array [R, W] (.npy), or a file whose only matrix, or the one named "vectors", is meant (.safetensors).
        first: rows of missing vectors before those of the file.
        what: names the file's use in messages.
        rows: that the file must have; None: any.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "v.npy"
        >>> np.save(path, np.array([[3.0, 4.0], [np.nan, 0.0]]))
        >>> VectorFile(path, first=1, what="items: embedding 'v'")[np.array([0, 1])].tolist()
        [[nan, nan], [0.6..., 0.8...]]
    """

    def __init__(self, path: str | Path, first: int, what: str, rows: int | None = None) -> None:
        self.path, self.first, self.what = Path(path), first, what
        self.added: np.ndarray | None = None  # see `extended`
        if not self.path.is_file():
            raise ValueError(f"{what}: no such file: {path}")
        shape = self._open()
        if len(shape) != 2 or shape[1] < 1:
            raise ValueError(
                f"{what}: {path} holds an array of shape {list(shape)}: give one vector per row, [rows, W]"
            )
        self.rows, self.width = shape
        self._in_file = self.rows
        if rows is not None and rows != self.rows:
            raise ValueError(
                f"{what}: {path} has {self.rows} rows but the items table has {rows}: give one vector per row of the "
                "table, in its order (a row of NaN where there is none)"
            )

    def __len__(self) -> int:
        return self.first + self.rows

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """Vectors of rows, float32 [len(index), W]."""
        found = np.full((len(index), self.width), np.nan, dtype=np.float32)
        row = index - self.first
        real = (row >= 0) & (row < self._in_file)
        found[real] = unit_rows(self._read(row[real]), lambda i: int(row[real][i]), self.what)
        if self.added is not None:
            found[row >= self._in_file] = self.added[row[row >= self._in_file] - self._in_file]
        return found

    def extended(self, vectors_KW: np.ndarray) -> VectorFile:
        """The same file with further rows, which are held in memory until it is saved.

        Args:
            vectors_KW: of length 1, NaN where one is missing (see `vector_column`).
        """
        grown = copy(self)
        grown.added = vectors_KW if self.added is None else np.concatenate([self.added, vectors_KW])
        grown.rows += len(vectors_KW)
        return grown

    def chunks(self, begin: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
        """Rows from `begin` on in order, a few at a time: where they lie, and float32 [rows, W]."""
        step = max(_CHUNK // self.width, 1)
        for start in range(begin, len(self), step):
            stop = min(start + step, len(self))
            yield slice(start, stop), self[np.arange(start, stop)]

    def check(self) -> None:
        """Refuse an infinite number, after reading the file once."""
        for _ in self.chunks():
            pass

    def save(self, path: Path) -> None:
        """Write the vectors, at length 1 and with half precision, as .npy."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")  # `path` may be the file that is being read
        written = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=(self.rows, self.width))
        for rows, values in self.chunks(self.first):
            written[rows.start - self.first : rows.stop - self.first] = values
        written.flush()
        part.replace(path)

    def _open(self) -> tuple[int, ...]:
        """Map the file; returns its shape."""
        try:
            if self.path.suffix == ".npy":
                array = np.load(self.path, mmap_mode="r", allow_pickle=False)
                if array.dtype.kind not in "fiu":
                    raise ValueError(f"it holds {array.dtype}, not numbers")
                self._read: Callable[[np.ndarray], np.ndarray] = array.__getitem__
                return array.shape
            if self.path.suffix == ".safetensors":
                return self._open_safetensors()
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{self.what}: cannot read {self.path} ({error})") from error
        raise ValueError(f"{self.what}: cannot read {self.path.name}: files must end in .npy or .safetensors")

    def _open_safetensors(self) -> tuple[int, ...]:
        from safetensors import SafetensorError, safe_open

        try:
            file = safe_open(self.path, framework="pt")  # not numpy, which knows no bfloat16
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  (not a dict)
        matrices = [name for name, shape in shapes.items() if len(shape) == 2]
        if "vectors" not in matrices and len(matrices) != 1:
            raise ValueError(f"its tensors are {shapes}: name the matrix 'vectors', or store it alone")
        table = file.get_slice("vectors" if "vectors" in matrices else matrices[0])

        def read(index: np.ndarray) -> np.ndarray:
            if not len(index):
                return np.zeros((0, table.get_shape()[1]), dtype=np.float32)
            low = int(index.min())  # a slice is read as a whole: callers ask for neighbours
            return table[low : int(index.max()) + 1].float().numpy()[index - low]

        self._read = read
        return tuple(table.get_shape())
