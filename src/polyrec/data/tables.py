"""Tables in: parquet, csv, pandas, `datasets.Dataset` or Arrow become one Arrow table whose columns are checked.

Every check raises a ValueError that names the table, the column, the first bad row (0-based) and the fix; no row is
dropped or repaired in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.registry import nearest
from polyrec.schema import Columns, Label, TaskConfig

# A plain number of seconds beyond this (year 3268) is almost surely milliseconds or finer.
_LATEST_SECOND = 4.1e10
_TO_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def read_table(source: Any, name: str) -> pa.Table:
    """Return `source` as an Arrow table.

    Args:
        source: a path to a .parquet or .csv file, a pandas DataFrame, a `datasets.Dataset`, an Arrow table, or a
            mapping of column names to sequences.
        name: what the table is ("interactions"), for messages.

    Raises:
        ValueError: a path that cannot be read, an empty table, or a column name used twice.
    """
    if isinstance(source, str | Path):
        table = _read_file(Path(source), name)
    elif isinstance(source, pa.Table):
        table = source
    elif isinstance(source, Mapping):
        table = pa.table(dict(source))
    elif type(source).__module__.split(".")[0] == "pandas":
        duplicated = [str(c) for c in source.columns[source.columns.duplicated()]]
        if duplicated:
            raise ValueError(f"{name}: column {duplicated[0]!r} occurs more than once: rename or drop one of them")
        table = pa.Table.from_pandas(source, preserve_index=False)
    elif type(source).__module__.split(".")[0] == "datasets":
        table = source.with_format("arrow")[:]
    else:
        raise ValueError(
            f"{name}: cannot read a {type(source).__name__}: pass a .parquet or .csv path, a pandas DataFrame, a "
            "datasets.Dataset, an Arrow table or a dict of columns"
        )
    for column in table.column_names:
        if table.column_names.count(column) > 1:
            raise ValueError(f"{name}: column {column!r} occurs more than once: rename or drop one of them")
    if table.num_rows == 0:
        raise ValueError(f"{name}: the table has no rows; check the path or the filter that produced it")
    return table.combine_chunks()


def _read_file(path: Path, name: str) -> pa.Table:
    if not path.exists():
        raise ValueError(f"{name}: no such file: {path}")
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        reader, arguments = pq.read_table, {"memory_map": True}
    elif path.suffix == ".csv":
        import pyarrow.csv as pv

        reader, arguments = pv.read_csv, {}
    else:
        raise ValueError(f"{name}: cannot read {path.name}: files must end in .parquet or .csv")
    try:
        return reader(path, **arguments)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise ValueError(
            f"{name}: cannot read {path} ({error}): the file may be truncated or of another format"
        ) from error


def as_table(history: Any, item_column: str) -> pa.Table | None:
    """A person's events as a table: item ids, dicts, or anything `read_table` takes; None if there are none."""
    if history is None:
        return None
    if isinstance(history, Sequence) and not isinstance(history, str):
        if not history:
            return None
        rows = [h if isinstance(h, Mapping) else {item_column: h} for h in history]
        return pa.Table.from_pylist([dict(r) for r in rows])
    return read_table(history, "history")


def column(table: pa.Table, key: str, name: str, role: str) -> pa.Array:
    """Return one column as a single Arrow array, or say which columns there are."""
    if key not in table.column_names:
        raise ValueError(f"{name}: no column {key!r} (needed as {role}); {nearest(key, table.column_names)}")
    values = table[key]
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def first_bad_row(bad: np.ndarray) -> int | None:
    """Index of the first True, or None."""
    return int(bad.argmax()) if bad.any() else None


def is_null(values: pa.Array) -> np.ndarray:
    """[R] bool: missing, with NaN counted as missing."""
    return np.asarray(pc.is_null(values, nan_is_null=True))


def ids(table: pa.Table, key: str, name: str, role: str) -> pa.Array:
    """Return an id column, integers as int64 and anything else as strings; a missing id is refused."""
    values = column(table, key, name, role)
    row = first_bad_row(is_null(values))
    if row is not None:
        raise ValueError(f"{name}: column {key!r} ({role}) has no value in row {row}: fill it in or remove the row")
    return normalise_ids(values, f"{name}: column {key!r} ({role})")


def normalise_ids(values: pa.Array, what: str = "ids") -> pa.Array:
    """Integers become int64, strings large strings, so that ids of two tables compare equal whatever their width."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_integer(values.type):
        return values.cast(pa.int64())
    if pa.types.is_floating(values.type):
        row = first_bad_row(~np.equal(np.mod(np.asarray(values), 1), 0))
        if row is not None:
            raise ValueError(f"{what} is fractional in row {row} ({values[row]}): ids must be whole numbers or strings")
        return values.cast(pa.int64())
    try:
        return values.cast(pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{what} has type {values.type}: ids must be integers or strings") from error


def times(table: pa.Table, columns: Columns, name: str) -> np.ndarray:
    """Return the time column as float64 seconds since the epoch, [R]."""
    values = column(table, columns.time, name, "time")
    row = first_bad_row(is_null(values))
    what = f"{name}: column {columns.time!r} (time)"
    if row is not None:
        raise ValueError(f"{what} has no value in row {row}: fill it in or remove the row")
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values = _parse_times(values, what)
    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(values.type):
        unit = values.type.unit
        return np.asarray(values.cast(pa.int64())).astype(np.float64) * _TO_SECONDS[unit]
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise ValueError(f"{what} has type {values.type}: give numbers, timestamps or ISO strings")
    seconds = np.asarray(values).astype(np.float64) * _TO_SECONDS[columns.time_unit]
    row = first_bad_row(~np.isfinite(seconds))
    if row is not None:
        raise ValueError(f"{what} is {values[row]} in row {row}: times must be finite")
    row = first_bad_row(np.abs(seconds) > _LATEST_SECOND)
    if row is not None:
        raise ValueError(
            f"{what} is {values[row]} in row {row}, which is after the year 3000 if it counts {columns.time_unit!r}: "
            'say what it counts, e.g. Columns(time_unit="ms")'
        )
    return seconds


def _parse_times(values: pa.Array, what: str) -> pa.Array:
    import pandas as pd

    parsed = pd.to_datetime(values.to_pandas(), utc=True, errors="coerce", format="ISO8601")
    row = first_bad_row(parsed.isna().to_numpy())
    if row is not None:
        raise ValueError(
            f"{what} cannot be read as a time in row {row}: {values[row]}; use ISO 8601, e.g. 2026-11-24T10:00:00"
        )
    return pa.array(parsed)


def numbers(values: pa.Array, what: str) -> np.ndarray:
    """Return a column as float64 with NaN for missing, [R]; text and infinities are refused with the first bad row."""
    if pa.types.is_null(values.type):
        return np.full(len(values), np.nan)
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_decimal(values.type)):
        example = next((v for v in values.to_pylist() if v is not None), None)
        raise ValueError(
            f"{what} holds {values.type} values such as {example!r} but is used as a number: "
            "convert it, or declare it 'categorical', 'multi' or 'text'"
        )
    result = np.asarray(values.cast(pa.float64()).fill_null(np.nan))
    row = first_bad_row(np.isinf(result))
    if row is not None:
        raise ValueError(f"{what} is infinite in row {row}: replace it by a number, or by null where it is unknown")
    return result


def labels(table: pa.Table, tasks: list[TaskConfig], name: str) -> np.ndarray:
    """Return the labels of all tasks, float32 [R, T], NaN = unknown, checked against each task's head.

    A retrieval task's label is 1 where the event counts as a next item, NaN where it does not.
    """
    result = np.full((table.num_rows, len(tasks)), np.nan, dtype=np.float32)
    for j, task in enumerate(tasks):
        rule = task.parsed_label
        if rule is None:
            result[:, j] = 1.0
            continue
        values = label_values(table, rule, f"{name}: label of task {task.name!r}")
        if task.head == "retrieval":
            values = np.where(values > 0, 1.0, np.nan)
        if task.head == "binary":
            row = first_bad_row(~np.isnan(values) & (values != 0) & (values != 1))
            if row is not None:
                raise ValueError(
                    f"{name}: label of binary task {task.name!r} is {values[row]:g} in row {row}, not 0 or 1: "
                    f'use a comparison such as label="{rule.column} >= {values[row]:g}", or head="regression"'
                )
        result[:, j] = values
    return result


def label_values(table: pa.Table, rule: Label, what: str) -> np.ndarray:
    """Evaluate one label rule, float64 [R]; a comparison with an unknown value stays unknown (NaN)."""
    if rule.column not in table.column_names:
        raise ValueError(f"{what}: no column {rule.column!r}; {nearest(rule.column, table.column_names)}")
    values = numbers(column(table, rule.column, what, "label"), f"{what} (column {rule.column!r})")
    if rule.op is None:
        return values
    compare = {
        "==": np.equal,
        "!=": np.not_equal,
        ">=": np.greater_equal,
        "<=": np.less_equal,
        ">": np.greater,
        "<": np.less,
    }
    return np.where(np.isnan(values), np.nan, compare[rule.op](values, rule.value).astype(np.float64))


def check_learnable(values: np.ndarray, tasks: list[TaskConfig]) -> None:
    """Refuse a task whose training labels are all missing, or (unless retrieval) all the same: nothing can be learnt.

    Args:
        values: labels of the training rows, [R, T].
    """
    for j, task in enumerate(tasks):
        known = values[~np.isnan(values[:, j]), j]
        if known.size == 0:
            raise ValueError(
                f"task {task.name!r} has no label in the training rows: check label={task.label!r} or drop the task"
            )
        if task.head != "retrieval" and known.min() == known.max():
            raise ValueError(
                f"the label of task {task.name!r} is {known[0]:g} in every training row, so nothing can be learnt: "
                f"check label={task.label!r} or drop the task"
            )
