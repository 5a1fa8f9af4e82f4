"""Tables of a saved processor: written with a checksum for every page, read by one thread, which a damaged file stops
with an error instead of ending the process."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_saved(table: pa.Table, path: Path) -> None:
    """Write a table without the notes that pandas and others have left on it, which nobody reads and all would see.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "items.parquet"
        >>> write_saved(pa.table({"item_id": [1]}).replace_schema_metadata({"by": "me"}), path)
        >>> read_saved(path, "items").schema.metadata is None
        True
    """
    plain = pa.schema([field.remove_metadata() for field in table.schema])
    pq.write_table(pa.Table.from_arrays(table.columns, schema=plain), path, write_page_checksum=True)


def read_saved(path: Path, name: str) -> pa.Table:
    """Read what [`write_saved`] wrote.

    Args:
        name: what the table is, for messages.

    Raises:
        ValueError: the file is missing, may not be read, or is damaged.
    """
    if not path.exists():
        raise ValueError(f"{name}: no such file: {path}")
    try:
        with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            return file.read(use_threads=False)
    except PermissionError as error:
        raise ValueError(f"{name}: no permission to read {path}: chmod it") from error
    except (pa.ArrowException, OSError, IndexError) as error:
        raise ValueError(
            f"{name}: cannot read {path} ({error}): the file may be truncated or of another format"
        ) from error
