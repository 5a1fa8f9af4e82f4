"""Where the arrays of a log are: in memory, or in files that are mapped and of which the system holds what is read.

Letters: R rows, F columns.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO
from urllib.parse import quote

import numpy as np

_LONGEST = 150  # characters of a file's name

Step = Callable[[int], None]
Engine = Callable[[Step, int], Iterable[object]]  # does a step for 0 to n - 1, in any order, and yields once for each

_BUCKET_BYTES = 1 << 24  # of a matrix that comes in another order than its rows': what is put in order at once
_CHUNK = 1 << 16  # rows that are changed at once


class RowWriter(ABC):
    """A float32 matrix [R, F] whose rows come in any order."""

    @abstractmethod
    def put(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Write some rows, [M] ascending, each once in all calls; values [M, F]."""

    @abstractmethod
    def finish(self, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The matrix, of which every row was changed; NaN in rows that nobody wrote."""


class Storage(ABC):
    """Keeps arrays by name.

    Attributes:
        block: rows of a log that are worked on at once: fewer take less memory, more are faster.
        engine: shares the work on blocks among processes; None: this process does it.
    """

    block: int
    engine: Engine | None = None

    @abstractmethod
    def keep(self, name: str, values: np.ndarray) -> np.ndarray:
        """The same values, where this storage has them."""

    @abstractmethod
    def writer(self, name: str, rows: int, columns: int) -> RowWriter:
        """A matrix that is written piece by piece."""


class Memory(Storage):
    """Arrays stay as they are."""

    block = 1 << 21

    def keep(self, name: str, values: np.ndarray) -> np.ndarray:
        """The array itself."""
        return values

    def writer(self, name: str, rows: int, columns: int) -> RowWriter:
        """A matrix in memory."""
        return _MemoryRows(rows, columns)


MEMORY = Memory()


class Folder(Storage):
    """Arrays are `.npy` files of a folder, mapped copy-on-write: changes of them stay in this process.

    Args:
        path: of the folder, which is made if it is missing.
        complete: what the folder has of a name is what would be kept: it is not written again, as others may read it.
        engine: shares the work on blocks among processes that see the folder. None: this process does it.
    """

    block = 1 << 18

    def __init__(self, path: str | Path, complete: bool = False, engine: Engine | None = None) -> None:
        self.path, self._complete, self.engine = Path(path), complete, engine
        if not complete:
            self.path.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Forget everything; arrays that are mapped stay as long as somebody has them."""
        for file in self.path.iterdir():
            file.unlink()

    def keep(self, name: str, values: np.ndarray) -> np.ndarray:
        """Write an array and map it."""
        if not (self._complete and self.file(name).exists()):
            np.save(self.file(name), values)
        return self.load(name)

    def keep_missing(self, name: str, values: np.ndarray) -> None:
        """[`keep`] an array, unless there is one of its name."""
        if not self.file(name).exists():
            np.save(self.file(name), values)

    def writer(self, name: str, rows: int, columns: int) -> RowWriter:
        """A matrix that goes to buckets of consecutive rows first, and from each of these to its file, in order."""
        return _FolderRows(self, name, rows, columns)

    def load(self, name: str) -> np.ndarray:
        """Map an array that was kept."""
        try:
            return np.asarray(np.load(self.file(name), mmap_mode="c"))
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(
                f"{self.file(name)} is missing or cut off: delete the folder {self.path}, and it is made again"
            ) from error

    def file(self, name: str) -> Path:
        """Where an array is."""
        plain = quote(name, safe="")
        if len(plain) > _LONGEST:
            plain = f"{plain[:_LONGEST]}-{hashlib.sha256(plain.encode()).hexdigest()[:16]}"
        return self.path / f"{plain}.npy"


@contextmanager
def scratch(folder: str | Path | None) -> Iterator[Storage]:
    """A storage for what is needed for a while: files in a folder, which go at the end, or memory (None).

    Arrays stay as long as somebody has them.
    """
    if folder is None:
        yield MEMORY
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as place:
        yield Folder(place)


class _MemoryRows(RowWriter):
    def __init__(self, rows: int, columns: int) -> None:
        self._values = np.full((rows, columns), np.nan, dtype=np.float32)

    def put(self, rows: np.ndarray, values: np.ndarray) -> None:
        self._values[rows] = values

    def finish(self, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        for begin in range(0, len(self._values), _CHUNK):
            self._values[begin : begin + _CHUNK] = change(self._values[begin : begin + _CHUNK])
        return self._values


class _FolderRows(RowWriter):
    def __init__(self, storage: Folder, name: str, rows: int, columns: int) -> None:
        self._storage, self._name, self._shape = storage, name, (rows, columns)
        self._size = max(_BUCKET_BYTES // (4 * max(columns, 1)), 1)
        self._buckets = [storage.file(name).with_suffix(f".{n:05d}.bucket") for n in range(-(-rows // self._size))]
        for bucket in self._buckets:
            bucket.unlink(missing_ok=True)
        # What is in a bucket file: rows within the bucket, each with its values.
        self._record = np.dtype([("row", np.int32), ("values", np.float32, (columns,))])

    def put(self, rows: np.ndarray, values: np.ndarray) -> None:
        bounds = np.searchsorted(rows, np.arange(len(self._buckets) + 1) * self._size)
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            begin, end = bounds[number], bounds[number + 1]
            records = np.empty(end - begin, dtype=self._record)
            records["row"] = rows[begin:end] - number * self._size
            records["values"] = values[begin:end]
            with self._buckets[number].open("ab") as file:
                records.tofile(file)

    def finish(self, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        with self._storage.file(self._name).open("wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": self._shape}
            )
            for number, bucket in enumerate(self._buckets):
                self._append(file, bucket, min(self._size, self._shape[0] - number * self._size), change)
        return self._storage.load(self._name)

    def _append(self, file: BinaryIO, bucket: Path, rows: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
        values = np.full((rows, self._shape[1]), np.nan, dtype=np.float32)
        if bucket.exists():
            records = np.fromfile(bucket, dtype=self._record)
            values[records["row"]] = records["values"]
            bucket.unlink()
        change(values).astype(np.float32, copy=False).tofile(file)
