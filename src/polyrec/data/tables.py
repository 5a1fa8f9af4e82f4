"""Tables in: files, pandas, Arrow and whatever streams Arrow become one Arrow table whose columns are checked.

Every check raises a ValueError that names the table, the column, the first bad row (0-based) and the fix; no row is
dropped or repaired in silence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from polyrec.data.arrays import column, first_bad_row, is_null, numbers
from polyrec.data.csv_files import read_csv
from polyrec.data.ids import ids, lookup, normalise_ids
from polyrec.data.labels import check_learnable, check_words, label_values, labels
from polyrec.data.times import read_time, seconds, times
from polyrec.data.typed_text import typed

__all__ = [
    "as_array", "as_table", "check_learnable", "check_words", "column", "first_bad_row", "ids", "is_null",
    "label_values", "labels", "lookup", "normalise_ids", "numbers", "read_file", "read_json", "read_table", "read_time",
    "seconds", "times",
]  # fmt: skip

_SOURCES = (
    "a .parquet or .csv path, a folder of parquet files, a pandas DataFrame, a datasets.Dataset, an Arrow table, "
    "whatever streams Arrow (polars, DuckDB) or a dict of columns"
)
# Texts with separators; the last three are those of RecBole.
_CSV = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz", ".inter", ".item", ".user")
_FAILURES = (pa.ArrowException, TypeError, ValueError, OverflowError, NotImplementedError)


def read_table(source: Any, name: str, rows: int | None = None) -> pa.Table:
    """Return `source` as an Arrow table.

    Args:
        source: a path to a .parquet or .csv file (see [`~polyrec.data.csv_files.read_csv`]) or to a folder of parquet
            files, a pandas DataFrame, a `datasets.Dataset`, an Arrow table, reader or data set, any object with
            `__arrow_c_stream__` (polars, DuckDB), or a mapping of column names to sequences.
        name: what the table is ("interactions"), for messages.
        rows: of a file, read about so many rows from several places instead of all.

    Raises:
        ValueError: a path that cannot be read, an empty table, values that no column can hold, or a column name used
            twice.

    Example:
        >>> read_table({"user_id": [1, 2], "item_id": ["007", "7"]}, "interactions").num_rows
        2
    """
    table = _convert(source, name, rows)
    if table.num_rows == 0:
        hint = " (a stream of Arrow can be read once: pass a table)" if isinstance(source, pa.RecordBatchReader) else ""
        raise ValueError(f"{name}: the table has no rows; check the path or the filter that produced it{hint}")
    return table


def _convert(source: Any, name: str, rows: int | None = None) -> pa.Table:
    """[`read_table`] of a table that may have no rows."""
    library, kind = type(source).__module__.split(".")[0], type(source).__name__
    if isinstance(source, str | Path):
        table = read_file(Path(source), name, rows)
    elif isinstance(source, pa.Table):
        table = source
    elif kind in ("DatasetDict", "IterableDatasetDict"):
        known = list(source)
        raise ValueError(f"{name}: a {kind} holds several tables ({known}): pass one, e.g. data[{known[0]!r}]")
    elif isinstance(source, Mapping):
        table = _of_columns({str(key): values for key, values in source.items()}, name)
    elif (library, kind) == ("pandas", "DataFrame"):
        _refuse_twice([str(c) for c in source.columns], name)
        table = _of_columns({str(c): source.iloc[:, n] for n, c in enumerate(source.columns)}, name)
    elif (library, kind) == ("datasets", "Dataset"):
        table = source.with_format("arrow")[:]
    elif hasattr(source, "to_table") and library == "pyarrow":
        table = source.to_table()
    else:
        table = _of_stream(source, name)
    _refuse_twice(table.column_names, name)
    return _plain(table, name).combine_chunks()


def _refuse_twice(names: Sequence[str], name: str) -> None:
    for key in names:
        if names.count(key) > 1:
            raise ValueError(f"{name}: column {key!r} occurs more than once: rename or drop one of them")


def _of_stream(source: Any, name: str) -> pa.Table:
    if hasattr(source, "__arrow_c_stream__") or hasattr(source, "__arrow_c_array__"):
        try:
            return pa.table(source)
        except _FAILURES:
            pass  # a single column
    raise ValueError(f"{name}: cannot read a {type(source).__name__}: pass {_SOURCES}")


def _of_columns(source: Mapping[str, Any], name: str) -> pa.Table:
    for key, values in source.items():
        if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
            raise ValueError(f"{name}: column {key!r} is {_short(values)}: give a list or an array, one value per row")
    lengths = {key: len(values) for key, values in source.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name}: columns differ in length ({lengths}): give one value per row")
    return pa.table({key: as_array(values, f"{name}: column {key!r}") for key, values in source.items()})


def as_array(values: Any, what: str) -> pa.Array | pa.ChunkedArray:
    """One column of a mapping, a data frame or a request.

    Raises:
        ValueError: its values are of several types, or of one that no column can hold.
    """
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if isinstance(values, np.ndarray) and values.ndim > 1:
        values = list(values.reshape(len(values), -1))
    try:
        return pa.array(values, from_pandas=True)
    except OverflowError:
        # As in a csv, whole numbers beyond 64 bits are texts, which keep their digits.
        known = [v for v in values if v is not None]
        if all(isinstance(v, int) for v in known):
            return pa.array([None if v is None else str(v) for v in values])
        raise ValueError(f"{what} holds a whole number beyond 64 bits among others: give texts") from None
    except _FAILURES as error:
        raise ValueError(f"{what} mixes types ({_short(error)}): give values of one type") from error


def _plain(table: pa.Table, name: str) -> pa.Table:
    """Columns in layouts that all of Arrow's functions know: no views, no runs, no extensions, no codes in lists."""
    for n, field in enumerate(table.schema):
        wanted = _plain_type(field.type)
        if wanted == field.type and not isinstance(field.type, pa.BaseExtensionType):
            continue
        values = table.column(n)
        try:
            if isinstance(field.type, pa.BaseExtensionType):
                values = pa.chunked_array([c.storage for c in values.chunks], field.type.storage_type)
            values = values.cast(wanted)
        except _FAILURES as error:
            raise ValueError(
                f"{name}: column {field.name!r} is of {field.type}, which cannot be read: convert it ({_short(error)})"
            ) from error
        table = table.set_column(n, field.name, values)
    return table


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_run_end_encoded(kind):
        return _plain_type(kind.value_type)
    wide = pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind)
    if wide or pa.types.is_list(kind) or pa.types.is_list_view(kind):
        inner = kind.value_type
        inner = inner.value_type if pa.types.is_dictionary(inner) else inner
        return (pa.large_list if wide else pa.list_)(_plain_type(inner))
    return kind


def is_table(path: str) -> bool:
    """Whether a path ends as those of tables do.

    Example:
        >>> is_table("events.csv.gz"), is_table("recipe.yaml")
        (True, False)
    """
    return path.rstrip("/").endswith((*_CSV, ".parquet"))


def read_file(path: Path, name: str, rows: int | None = None) -> pa.Table:
    """Read a .parquet or .csv file, or a folder of parquet files; it may have no rows. `rows`: see [`read_table`]."""
    try:
        if not path.exists():
            raise ValueError(f"{name}: no such file: {path}")
        if path.is_dir():
            return _read_folder(path, name, rows)
        if path.suffix == ".parquet":
            return _read_parquet(path, rows)
        if path.name.endswith(_CSV):
            return read_csv(path, name, rows)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{name}: cannot read {path} ({_short(error)}): the file may be truncated or of another format"
        ) from error
    raise ValueError(
        f"{name}: cannot read {path.name}: files must end in .parquet or .csv: rename "
        "it to .csv (tabs and other separators are found)"
    )


def _read_parquet(path: Path, rows: int | None = None) -> pa.Table:
    import pyarrow.parquet as pq

    if rows is None:
        return pq.read_table(path, memory_map=True, partitioning=None)
    file = pq.ParquetFile(path, memory_map=True)
    if file.num_row_groups < 2:
        return pa.Table.from_batches(islice(file.iter_batches(batch_size=rows), 1), file.schema_arrow)
    kept = np.unique(np.linspace(0, file.num_row_groups - 1, 8).astype(int)).tolist()
    return pa.concat_tables([file.read_row_group(n)[: max(rows // len(kept), 1)] for n in kept])


def _read_folder(folder: Path, name: str, rows: int | None = None) -> pa.Table:
    """The parquet files of a folder under one another, in the order of their names.

    Folders named `key=value` become columns, as in Hive; values that are codes keep their digits.
    """
    files = [f for f in sorted(folder.rglob("*.parquet")) if not is_hidden(f.relative_to(folder))]
    if not files:
        raise ValueError(f"{name}: {folder} is a folder without .parquet files: name the file that is meant")
    parts, keys = [], dict[str, None]()
    for file in files:
        part = _read_parquet(file, None if rows is None else max(rows // len(files), 1))
        for step in file.relative_to(folder).parts[:-1]:
            key, equals, value = step.partition("=")
            if equals and key not in part.column_names:
                keys[key] = None
                known = None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
                part = part.append_column(key, pa.array([known] * part.num_rows, pa.string()))
        parts.append(part)
    try:
        table = pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(
            f"{name}: the files of {folder} do not fit together ({_short(error)}): give their columns one type"
        ) from error
    for key in keys:
        table = table.set_column(table.column_names.index(key), key, typed(table[key]))
    return table


def is_hidden(path: Path) -> bool:
    """Whether a file below a folder is none of its table's."""
    return any(step.startswith((".", "_")) for step in path.parts)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a saved processor; a missing or damaged one is named."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent} has no {path.name}: it is not a folder saved by PolyRecProcessor.save_pretrained"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}): the file is damaged or was not copied completely"
        ) from error


def as_table(history: Any, item_column: str) -> pa.Table | None:
    """A user's events as a table: item ids, dicts, or anything `read_table` takes; None if there are none."""
    if history is None:
        return None
    if isinstance(history, Sequence) and not isinstance(history, str):
        rows = [h if isinstance(h, Mapping) else {item_column: h} for h in history]
        names = dict.fromkeys(name for row in rows for name in row)
        history = {name: [row.get(name) for row in rows] for name in names}
    table = _convert(history, "history")
    return table if table.num_rows else None


def _short(value: object) -> str:
    """One line of at most 100 characters."""
    line = " ".join(str(value).split())
    return line if len(line) <= 100 else f"{line[:100]}..."
