"""Parquet files of strangers: what reading one would take, found out before it is read.

Sizes in a file's footer are not trusted: every page has a header of its own (Apache Parquet, "Parquet
Modular Format"; in Thrift's compact protocol), by which readers allocate memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_MIB = 1 << 20
_LARGEST_FOOTER = 64 * _MIB
_EXPANSION = 200  # bytes of a table in memory for one on disk
_FREE = 64 * _MIB  # that a file may always expand to
_ROWS_PER_BYTE = 4  # ids are all different, so that a table's file grows with its rows
_BATCH = 1 << 14  # rows looked at at once
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 4}  # 4: an offset
# Fields of a page's header, and of the header of its kind.
_UNPACKED, _PACKED, _DATA, _DATA_2 = 2, 3, 5, 8
_ENCODING = {_DATA: 2, _DATA_2: 4}
# PLAIN, PLAIN_DICTIONARY, RLE, BIT_PACKED, RLE_DICTIONARY, BYTE_STREAM_SPLIT: no value is longer than it is written.
_ENCODINGS = (0, 2, 3, 4, 8, 9)
_LONGEST_HEADER = 64 << 10
_NUM_ROWS = 3  # field of a footer


def allowance(size: int) -> int:
    """Bytes that what is stored in `size` of them may take in memory."""
    return max(_FREE, _EXPANSION * size)


def read_footer(path: Path, name: str) -> pq.FileMetaData:
    """What a parquet file says about itself.

    Raises:
        ValueError: it is cut off or damaged.
    """
    _footer(path, name)
    try:
        return pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{name} cannot be read ({error}): the file is damaged") from error


def _footer(path: Path, name: str) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - 8, 0))
        tail = file.read()
        length = int.from_bytes(tail[:4], "little")
        if size < 12 or tail[4:] != b"PAR1" or length + 12 > size or length > _LARGEST_FOOTER:
            raise ValueError(f"{name} is no complete parquet file: it may be truncated; download it again")
        file.seek(size - 8 - length)
        return file.read(length)


def count_rows(path: Path, name: str) -> int:
    """Rows of a parquet file as its footer says, read without Arrow, which not every footer leaves alive."""
    raw = _footer(path, name)
    try:
        rows = _struct(raw, 0, until=_NUM_ROWS)[0][_NUM_ROWS]
    except (KeyError, IndexError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be read ({error}): the file is damaged") from error
    if type(rows) is not int or rows < 0:
        raise ValueError(f"{name} says that it has {rows} rows: the file is damaged")
    return rows


def check_table(path: Path, name: str, ids: bool) -> int:
    """Refuse a table that becomes much more in memory than it is on disk; returns its number of rows.

    Args:
        name: for messages.
        ids: each of its rows is another item or user.
    """
    about, size = read_footer(path, name), path.stat().st_size
    groups = [about.row_group(g) for g in range(about.num_row_groups)]
    chunks = [g.column(c) for g in groups for c in range(g.num_columns)]
    # Repeated values are stored once.
    widths = [max(g.num_rows, g.column(c).num_values) * _width(about, c) for g in groups for c in range(g.num_columns)]
    unpacked = max(sum(chunk.total_uncompressed_size for chunk in chunks), sum(widths))
    if min([*widths, *(min(c.num_values, c.total_uncompressed_size) for c in chunks)], default=0) < 0:
        raise ValueError(f"{name}: negative sizes: the file is damaged")
    if unpacked > allowance(size) or (ids and about.num_rows > max(1 << 16, _ROWS_PER_BYTE * size)):
        raise ValueError(
            f"{name}: {size:,} bytes would become {about.num_rows:,} rows and {unpacked:,} bytes, more than any "
            "table of polyrec does: it is made to fill memory, and is not loaded"
        )
    _check_pages(path, name, chunks)
    _check_repeats(path, name, about, allowance(size))
    return about.num_rows


def _width(about: pq.FileMetaData, column: int) -> int:
    kind = about.schema.column(column)
    return kind.length if kind.physical_type == "FIXED_LEN_BYTE_ARRAY" else _WIDTHS[kind.physical_type]


def _check_pages(path: Path, name: str, chunks: list[pq.ColumnChunkMetaData]) -> None:
    """Pages may not be larger than the footer says that all of their column are."""
    with path.open("rb") as file:
        for chunk in chunks:
            starts = [chunk.data_page_offset, chunk.dictionary_page_offset]
            at = min((start for start in starts if start), default=0)
            end, left = at + chunk.total_compressed_size, chunk.total_uncompressed_size
            while at < end:
                try:
                    header, length = _page_header(file, at)
                    unpacked, packed = header[_UNPACKED], header[_PACKED]
                    encodings = [header[kind][field] for kind, field in _ENCODING.items() if kind in header]
                except (KeyError, TypeError, IndexError, ValueError, RecursionError) as error:
                    raise ValueError(f"{name}: a page of {chunk.path_in_schema!r} cannot be read: damaged") from error
                left -= unpacked
                if unpacked < 0 or packed < 0 or left < 0:
                    raise ValueError(
                        f"{name}: a page of {chunk.path_in_schema!r} would become {unpacked:,} bytes, more than the "
                        f"{chunk.total_uncompressed_size:,} that the file says: it is made to fill memory, and is not "
                        "loaded"
                    )
                if not set(encodings) <= set(_ENCODINGS):
                    raise ValueError(
                        f"{name}: column {chunk.path_in_schema!r} is stored in a way that polyrec does not write "
                        f"(encoding {encodings[0]}): write the file again with pyarrow's defaults"
                    )
                at += length + packed


def _page_header(file: BinaryIO, at: int) -> tuple[dict[int, Any], int]:
    """{field: value} of the header at a place of a file, and its length."""
    file.seek(at)
    raw = file.read(_LONGEST_HEADER)
    return _struct(raw, 0)


def _struct(raw: bytes, at: int, until: int | None = None) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol, as {field: value}, and where it ends; or the fields up to one of them."""
    found: dict[int, Any] = {}
    field = 0
    while kind := raw[at] & 15:
        step = raw[at] >> 4
        at += 1
        if step:
            field += step
        else:
            field, at = _zigzag(raw, at)
        found[field], at = _value(raw, at, kind)
        if field == until:
            break
    return found, at + 1


def _value(raw: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):  # true, false
        return kind == 1, at
    if kind == 3:
        return raw[at], at + 1
    if kind in (4, 5, 6):
        return _zigzag(raw, at)
    if kind == 8:
        length, at = _varint(raw, at)
        return None, at + length  # statistics of the page, which nobody needs here
    if kind in (9, 10):  # list, set: of the columns, which nobody needs here
        count, kind = raw[at] >> 4, raw[at] & 15
        at += 1
        if count == 15:
            count, at = _varint(raw, at)
        for _ in range(count):
            at = at + 1 if kind in (1, 2) else _value(raw, at, kind)[1]
        return None, at
    if kind == 12:
        return _struct(raw, at)
    raise ValueError(f"unknown type {kind}")


def _zigzag(raw: bytes, at: int) -> tuple[int, int]:
    number, at = _varint(raw, at)
    return (number >> 1) ^ -(number & 1), at


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        number |= (raw[at] & 127) << shift
        at += 1
        if raw[at - 1] < 128:
            return number, at
    raise ValueError("a number without end")


def _check_repeats(path: Path, name: str, about: pq.FileMetaData, limit: int) -> None:
    """Texts are stored once for many rows: count what they would be in memory, without repeating them."""
    columns = [about.schema.column(c) for c in range(about.num_columns)]
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    total = 0
    try:
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            for values in _columns(file, texts):
                total += _unpacked(values)
                if total > limit:
                    break
    except (OSError, IndexError, pa.ArrowException) as error:
        raise ValueError(f"{name} cannot be read ({error}): the file is damaged; download it again") from error
    if total > limit:
        raise ValueError(
            f"{name}: its texts repeat to more than {limit:,} bytes: it is made to fill memory, and is not loaded"
        )


def _columns(file: pq.ParquetFile, names: list[str]) -> Iterator[pa.Array]:
    # Group by group: pyarrow cannot put texts of two dictionaries into one batch of lists.
    for group in range(file.metadata.num_row_groups):
        for batch in file.iter_batches(_BATCH, row_groups=[group], columns=names):
            yield from batch.columns


def _unpacked(values: pa.Array) -> int:
    """Bytes of texts that are kept once each."""
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        values = pc.list_flatten(values)
    if not pa.types.is_dictionary(values.type):
        return values.nbytes
    lengths_K = np.asarray(pc.binary_length(values.dictionary).fill_null(0)).astype(np.int64)
    return int(lengths_K[np.asarray(values.indices.drop_null())].sum())
