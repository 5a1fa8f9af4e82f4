"""Context that follows from a row's time: the hour of the day, and the age of the item."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from polyrec.data.catalog import EntityTable
from polyrec.data.columns import ColumnEncoder
from polyrec.data.statistic_config import DAY, HOUR
from polyrec.data.tables import column, ids, seconds, times
from polyrec.schema import Columns

CLOCK, AGE = "hour", "item_age"


def with_derived(table: pa.Table, columns: Columns, items: EntityTable) -> pa.Table:
    """Add "hour" (0..23, if `columns.clock` is given) and "item_age" (days, if `columns.item_time` is) to a log."""
    if columns.clock is None and columns.item_time is None:
        return table
    now = times(table, columns, "interactions")
    for name, values in _derived(table, columns, items, now).items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, values)
    return table


def _derived(table: pa.Table, columns: Columns, items: EntityTable, now: np.ndarray) -> dict[str, pa.Array]:
    found: dict[str, pa.Array] = {}
    if columns.clock is not None:
        found[CLOCK] = pa.array(((now + columns.clock * HOUR) % DAY // HOUR).astype(np.int64))
    if columns.item_time is not None:
        values = column(items.table, columns.item_time, "items", "item time")
        what = f"items: column {columns.item_time!r} (item time)"
        born = np.concatenate([[np.nan, np.nan], seconds(values, columns.time_unit, what)])
        rows = items.rows(ids(table, columns.item, "interactions", "item id"))
        found[AGE] = pa.array((now - born[rows]) / DAY, from_pandas=True)
    return found


def fit_derived(table: pa.Table, columns: Columns, items: EntityTable) -> dict[str, ColumnEncoder]:
    """Encoders of the derived context columns; a log that has a declared column of such a name is refused."""
    found = _derived(table, columns, items, times(table, columns, "interactions"))
    declared = {*columns.context, *columns.feedback}
    for name in found:
        if name in declared:
            raise ValueError(
                f"column {name!r} is declared and also derived (columns.clock, columns.item_time): rename the column"
            )
    kinds = {CLOCK: "categorical", AGE: "numeric"}
    return {n: ColumnEncoder.fit(n, v, kinds[n], f"interactions: {n!r}") for n, v in found.items()}
