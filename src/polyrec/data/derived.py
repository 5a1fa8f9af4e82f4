"""Context that follows from a row's time: the hour of the day, and the age of the item."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from polyrec.data.catalog import EntityTable
from polyrec.data.columns import ColumnEncoder
from polyrec.data.release import item_times
from polyrec.data.statistic_config import DAY, HOUR
from polyrec.data.tables import column, ids, times
from polyrec.schema import Columns

CLOCK, AGE = "hour", "item_age"


def derived_names(columns: Columns) -> list[str]:
    """Names of the context columns that are derived.

    Example:
        >>> derived_names(Columns(clock=0))
        ['hour']
    """
    return [name for name, given in ((CLOCK, columns.clock), (AGE, columns.item_time)) if given is not None]


def with_derived(table: pa.Table, columns: Columns, items: EntityTable) -> pa.Table:
    """Add "hour" (0..23, if `columns.clock` is given) and "item_age" (days, if `columns.item_time` is) to a log.

    Raises:
        ValueError: the log has a column of such a name, and nobody could say which of the two was read.
    """
    for name, values in _derived(table, columns, items).items():
        if name in table.column_names:
            raise ValueError(
                f"interactions: column {name!r} is in the table and also derived (columns.clock, columns.item_time): "
                "rename or drop the column"
            )
        table = table.append_column(name, values)
    return table


def _derived(table: pa.Table, columns: Columns, items: EntityTable) -> dict[str, pa.Array]:
    found: dict[str, pa.Array] = {}
    if not derived_names(columns):
        return found
    now = times(table, columns, "interactions")
    if columns.clock is not None:
        found[CLOCK] = pa.array(((now + columns.clock * HOUR) % DAY // HOUR).astype(np.int64))
    if columns.item_time is not None:
        rows = items.rows(ids(table, columns.item, "interactions", "item id"))
        found[AGE] = pa.array((now - item_times(columns, items)[rows]) / DAY, from_pandas=True)
    return found


def fit_derived(table: pa.Table, columns: Columns, items: EntityTable) -> dict[str, ColumnEncoder]:
    """Encoders of the derived context columns."""
    table = with_derived(table, columns, items)
    kinds = {CLOCK: "categorical", AGE: "numeric"}
    return {
        name: ColumnEncoder.fit(name, column(table, name, "interactions", "derived context"), kinds[name], name)
        for name in derived_names(columns)
    }
