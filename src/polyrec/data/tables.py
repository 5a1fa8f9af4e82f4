"""Tables in: parquet, csv, pandas, `datasets.Dataset` or Arrow become one Arrow table whose columns are checked.

Every check raises a ValueError that names the table, the column, the first bad row (0-based) and the fix; no row is
dropped or repaired in silence.
"""

from __future__ import annotations

import json
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
    table = _convert(source, name)
    if table.num_rows == 0:
        raise ValueError(f"{name}: the table has no rows; check the path or the filter that produced it")
    return table


def _convert(source: Any, name: str) -> pa.Table:
    """[`read_table`] of a table that may have no rows."""
    library, kind = type(source).__module__.split(".")[0], type(source).__name__
    if isinstance(source, str | Path):
        table = read_file(Path(source), name)
    elif isinstance(source, pa.Table):
        table = source
    elif kind == "DatasetDict":
        known = list(source)
        raise ValueError(f"{name}: a DatasetDict holds several tables ({known}): pass one, e.g. data[{known[0]!r}]")
    elif isinstance(source, Mapping):
        table = _from_columns(source, name)
    elif (library, kind) == ("pandas", "DataFrame"):
        duplicated = [str(c) for c in source.columns[source.columns.duplicated()]]
        if duplicated:
            raise ValueError(f"{name}: column {duplicated[0]!r} occurs more than once: rename or drop one of them")
        table = pa.Table.from_pandas(source, preserve_index=False)
    elif (library, kind) == ("datasets", "Dataset"):
        table = source.with_format("arrow")[:]
    else:
        raise ValueError(
            f"{name}: cannot read a {kind}: pass a .parquet or .csv path, a pandas DataFrame, a "
            "datasets.Dataset, an Arrow table or a dict of columns"
        )
    for column in table.column_names:
        if table.column_names.count(column) > 1:
            raise ValueError(f"{name}: column {column!r} occurs more than once: rename or drop one of them")
    return table.combine_chunks()


def _from_columns(source: Mapping[str, Any], name: str) -> pa.Table:
    lengths = {str(key): len(values) for key, values in source.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name}: columns differ in length ({lengths}): give one value per row")
    columns = {}
    for key, values in source.items():
        try:
            columns[key] = pa.array(values) if isinstance(values, Sequence) else values
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"{name}: column {key!r} mixes types ({error}): give values of one type") from error
    return pa.table(columns)


def read_file(path: Path, name: str) -> pa.Table:
    """Read a .parquet or .csv file, which may have no rows."""
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
    """A person's events as a table: item ids, dicts, or anything `read_table` takes; None if there are none."""
    if history is None:
        return None
    if isinstance(history, Sequence) and not isinstance(history, str):
        rows = [h if isinstance(h, Mapping) else {item_column: h} for h in history]
        names = dict.fromkeys(name for row in rows for name in row)
        history = {name: [row.get(name) for row in rows] for name in names}
    table = _convert(history, "history")
    return table if table.num_rows else None


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
        try:
            return values.cast(pa.int64())
        except pa.ArrowInvalid:  # hashes of 64 bits without sign
            return values.cast(pa.large_string())
    if pa.types.is_floating(values.type):
        row = first_bad_row(~np.equal(np.mod(np.asarray(values), 1), 0))
        if row is not None:
            raise ValueError(f"{what} is fractional in row {row} ({values[row]}): give whole numbers or strings")
        return values.cast(pa.int64())
    try:
        return values.cast(pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{what} has type {values.type}: give integers or strings") from error


def lookup(values: pa.Array, known: pa.Array) -> pa.Array:
    """Position of each value among `known`, null where it is not one of them.

    Numbers and strings are compared as text, so that a value of another type is an unknown one, or, like 5 and "5",
    the same.

    Example:
        >>> lookup(pa.array(["5", "a"]), pa.array([4, 5])).to_pylist()
        [1, None]
    """
    if values.type != known.type:
        values, known = values.cast(pa.large_string()), known.cast(pa.large_string())
    return pc.index_in(values, value_set=known)


def times(table: pa.Table, columns: Columns, name: str) -> np.ndarray:
    """Return the time column as float64 seconds since the epoch, [R]."""
    values = column(table, columns.time, name, "time")
    what = f"{name}: column {columns.time!r} (time)"
    row = first_bad_row(is_null(values))
    if row is not None:
        raise ValueError(f"{what} has no value in row {row}: fill it in or remove the row")
    return seconds(values, columns.time_unit, what)


def seconds(values: pa.Array, unit: str, what: str) -> np.ndarray:
    """Dates, timestamps, ISO strings or plain numbers of `unit` as float64 seconds since the epoch, [R], NaN = null.

    Args:
        what: names table and column in messages.
    """
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values = _parse_times(values, what)
    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("s"))
    null = is_null(values)
    if pa.types.is_timestamp(values.type):
        found = np.asarray(values.cast(pa.int64()).fill_null(0)).astype(np.float64) * _TO_SECONDS[values.type.unit]
        return np.where(null, np.nan, found)
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise ValueError(f"{what} has type {values.type}: give numbers, timestamps or ISO strings")
    found = np.asarray(values.fill_null(0)).astype(np.float64) * _TO_SECONDS[unit]
    row = first_bad_row(~np.isfinite(found) & ~null)
    if row is not None:
        raise ValueError(f"{what} is {values[row]} in row {row}: times must be finite")
    row = first_bad_row(np.abs(found) > _LATEST_SECOND)
    if row is not None:
        raise ValueError(
            f"{what} is {values[row]} in row {row}, which is after the year 3000 if it counts {unit!r}: "
            'say what it counts, e.g. Columns(time_unit="ms")'
        )
    return np.where(null, np.nan, found)


def _parse_times(values: pa.Array, what: str) -> pa.Array:
    import pandas as pd

    parsed = pd.to_datetime(values.to_pandas(), utc=True, errors="coerce", format="ISO8601")
    row = first_bad_row(parsed.isna().to_numpy() & ~is_null(values))
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
        if task.ranks_catalog:
            values = np.where(values > 0, 1.0, np.nan)
        _check_labels(values, task, rule, name)
        with np.errstate(over="ignore"):  # refused below
            result[:, j] = values
        row = first_bad_row(np.isinf(result[:, j]))
        if row is not None:
            raise ValueError(
                f"{name}: label of task {task.name!r} is {values[row]:g} in row {row}, more than float32 holds: "
                "divide the column by a constant"
            )
    return result


# head -> (labels must be whole numbers, from, to, what to do otherwise); limits by name are options of the task.
_ALLOWED: dict[str, tuple[bool, float | str, float | str, str]] = {
    "binary": (True, 0, 1, 'use a comparison such as label="{column} >= {value:g}", or head="regression"'),
    "multiclass": (True, 0, "num_classes", "number the classes 0, 1, 2, .. and count them all in num_classes"),
    "ordinal": (True, "minimum", "maximum", 'give whole numbers from minimum to maximum, or use head="regression"'),
    "count": (True, 0, np.inf, 'give counts, or use head="regression"'),
    "watch_time": (False, 0, np.inf, "repair the column, or make such values null: unknown"),
}


def _check_labels(values: np.ndarray, task: TaskConfig, rule: Label, name: str) -> None:
    """Refuse the first known label that the task's head cannot mean."""
    if task.head not in _ALLOWED:
        return
    whole, lowest, highest, fix = _ALLOWED[task.head]
    low = task.options.get(lowest, -np.inf) if isinstance(lowest, str) else lowest
    high = task.options.get(highest, np.inf) if isinstance(highest, str) else highest
    if highest == "num_classes":
        high -= 1
    row = first_bad_row((values < low) | (values > high) | (whole & (values % 1 > 0)))  # NaN is none of these
    if row is None:
        return
    limits = f"{low:g} or {high:g}" if high - low == 1 else f"a {'whole ' * whole}number from {low:g} to {high:g}"
    raise ValueError(
        f"{name}: label of {task.head} task {task.name!r} is {values[row]:g} in row {row} (column {rule.column!r}), "
        f"not {limits}: {fix.format(column=rule.column, value=values[row])}"
    )


def label_values(table: pa.Table, rule: Label, what: str) -> np.ndarray:
    """Evaluate one label rule, float64 [R]; a comparison with an unknown value stays unknown (NaN)."""
    if rule.column not in table.column_names:
        raise ValueError(f"{what}: no column {rule.column!r}; {nearest(rule.column, table.column_names)}")
    values = numbers(column(table, rule.column, what, "label"), f"{what} (column {rule.column!r})") / rule.divisor
    if rule.log1p:
        row = first_bad_row(values < 0)
        if row is not None:
            raise ValueError(
                f"{what} (column {rule.column!r}) is {values[row] * rule.divisor:g} in row {row}: log1p needs numbers "
                ">= 0; repair them, or make them null: unknown"
            )
        values = np.log1p(values)
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
            rule = task.label or task.name
            raise ValueError(
                f"task {task.name!r} has no label in the training rows: check label={rule!r} or drop the task"
            )
        if not task.ranks_catalog and known.min() == known.max():
            raise ValueError(
                f"the label of task {task.name!r} is {known[0]:g} in every training row, so nothing can be learnt: "
                f"check label={task.label!r} or drop the task"
            )
