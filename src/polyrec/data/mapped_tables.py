"""Tables that are mapped from files instead of held in memory."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from polyrec.core.progress import progress
from polyrec.data.tables import is_hidden, read_table

_ROWS = 1 << 20  # of a piece


def mapped_table(source: Any, name: str, folder: str | Path | None) -> pa.Table:
    """[`~polyrec.data.tables.read_table`] of a parquet file, or a folder of such, without holding it in memory.

    Its columns are written once to an Arrow file in a folder and mapped from there, column by column as they are read;
    the file is found again by paths, sizes and times of the source. Other sources are read as ever.

    Args:
        source, name: as of `read_table`.
        folder: where the Arrow file goes; None: into memory.
    """
    files = [] if folder is None else _parquet_files(source)
    if folder is None or not files:
        return read_table(source, name)
    kept = Path(folder) / f"{name}-{_content(files)}.arrow"
    if not kept.exists():
        try:
            _write(files, name, kept)
        except (pa.ArrowException, OSError, StopIteration) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise ValueError(f"{name}: no space is left for {kept}: choose another cache_dir") from error
            return read_table(source, name)  # which says what is wrong with it
    with pa.memory_map(str(kept)) as mapped:
        return pa.ipc.open_file(mapped).read_all()


def num_rows(source: Any) -> int:
    """Rows of parquet files, by what these say of themselves; 0 of any other source."""
    import pyarrow.parquet as pq

    try:
        return sum(pq.read_metadata(file).num_rows for file in _parquet_files(source))
    except (pa.ArrowException, OSError):
        return 0  # whoever reads it says what is wrong


def _parquet_files(source: Any) -> list[Path]:
    """The files of a table; none where it is of another kind, or in folders that are columns."""
    if not isinstance(source, str | Path):
        return []
    path = Path(source)
    if not path.is_dir():
        return [path] if path.suffix == ".parquet" and path.exists() else []
    files = [file for file in sorted(path.rglob("*.parquet")) if not is_hidden(file.relative_to(path))]
    return files if all(file.parent == path for file in files) else []


def _write(files: list[Path], name: str, kept: Path) -> None:
    import pyarrow.parquet as pq

    kept.parent.mkdir(parents=True, exist_ok=True)
    files = [file for file in files if pq.read_metadata(file).num_rows]
    unfinished = kept.with_suffix(f".{os.getpid()}.tmp")
    try:
        schemas = [next(_pieces([file], name, None)).schema for file in files]
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        with pa.ipc.new_file(str(unfinished), schema) as writer:
            bar = progress(what=f"Reading {name}", total=sum(pq.read_metadata(f).num_rows for f in files), unit="row")
            for piece in _pieces(files, name, schema):
                writer.write_table(piece)
                bar.update(piece.num_rows)
            bar.close()
        os.replace(unfinished, kept)
    finally:
        unfinished.unlink(missing_ok=True)


def _pieces(files: list[Path], name: str, schema: pa.Schema | None) -> Iterator[pa.Table]:
    """Some rows at a time, with plain columns; of one schema, if it is given."""
    import pyarrow.parquet as pq

    for file in files:
        for batch in pq.ParquetFile(file, memory_map=True).iter_batches(_ROWS):
            piece = read_table(pa.Table.from_batches([batch]), name)
            for n, kind in enumerate(piece.schema.types):
                if pa.types.is_dictionary(kind):  # each piece has its own
                    piece = piece.set_column(n, piece.column_names[n], piece.column(n).cast(kind.value_type))
            yield piece if schema is None else _of_schema(piece, schema)


def _of_schema(piece: pa.Table, schema: pa.Schema) -> pa.Table:
    return (
        pa.concat_tables([schema.empty_table(), piece], promote_options="permissive").select(schema.names).cast(schema)
    )


def _content(files: list[Path]) -> str:
    """A name of what the files hold: their paths, sizes and times."""
    found = hashlib.sha256()
    for file in files:
        known = file.stat()
        found.update(f"{file.resolve()}\0{known.st_size}\0{known.st_mtime_ns}\0".encode())
    return found.hexdigest()[:16]
