"""Context that follows from a row's time: the hour of the day, and the age of the item."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa

from polyrec.core.schema import Columns
from polyrec.data.catalog import EntityTable
from polyrec.data.columns import ColumnEncoder
from polyrec.data.release import item_times
from polyrec.data.statistic_config import DAY, HOUR
from polyrec.data.tables import column, ids, times

CLOCK, AGE = "hour", "item_age"
_QUARTER, _EPOCH = 900, datetime(1970, 1, 1, tzinfo=UTC)


def derived_names(columns: Columns) -> list[str]:
    """Names of the context columns that are derived.

    Example:
        >>> derived_names(Columns(time_zone=0))
        ['hour']
    """
    return [name for name, given in ((CLOCK, columns.time_zone), (AGE, columns.item_time)) if given is not None]


def with_derived(table: pa.Table, columns: Columns, items: EntityTable) -> pa.Table:
    """Add "hour" (0..23, if `columns.time_zone` is given) and "item_age" (days, if `columns.item_time` is) to a log.

    Raises:
        ValueError: the log has a column of such a name, and nobody could say which of the two was read.
    """
    for name, values in _derived(table, columns, items).items():
        if name in table.column_names:
            raise ValueError(
                f"interactions: column {name!r} is in the table and also derived (columns.time_zone, "
                "columns.item_time): rename or drop the column"
            )
        table = table.append_column(name, values)
    return table


def _derived(table: pa.Table, columns: Columns, items: EntityTable) -> dict[str, pa.Array]:
    found: dict[str, pa.Array] = {}
    if not derived_names(columns):
        return found
    now = times(table, columns, "interactions")
    if columns.time_zone is not None:
        found[CLOCK] = pa.array(hours_of_day(now, columns.time_zone))
    if columns.item_time is not None:
        rows = items.rows(ids(table, columns.item, "interactions", "item id"))
        found[AGE] = ages(columns, items, rows, now)
    return found


def ages(columns: Columns, items: EntityTable, rows: np.ndarray, now: np.ndarray) -> pa.Array:
    """Days since items (rows of the item table) appeared at some times (seconds), null = unknown."""
    assert columns.item_time is not None
    appeared = item_times(columns, items)
    _refuse_years(appeared, now, columns.item_time)
    return pa.array((now - appeared[rows]) / DAY, from_pandas=True)


def hours_of_day(seconds: np.ndarray, zone: float | str) -> np.ndarray:
    """Hour of the day of times since the epoch, int64 [R], 0..23.

    Args:
        seconds: [R].
        zone: hours from UTC, or the name of a time zone, whose summer time counts.

    Example:
        >>> # 11:00 UTC in January and in July
        >>> hours_of_day(np.array([1673780400.0, 1689418800.0]), "Europe/Berlin").tolist()
        [12, 13]
    """
    if not isinstance(zone, str):
        return ((seconds + zone * HOUR) % DAY // HOUR).astype(np.int64)
    region = ZoneInfo(zone)
    # No zone changes its clock but at a quarter of an hour; a log has few of them, so each is looked up once.
    quarters, index = np.unique(np.floor(seconds / _QUARTER), return_inverse=True)
    hours = [(_EPOCH + timedelta(seconds=q * _QUARTER)).astimezone(region).hour for q in quarters.tolist()]
    return np.array(hours, dtype=np.int64)[index]


def _refuse_years(appeared: np.ndarray, now: np.ndarray, name: str) -> None:
    """Refuse item times that are years (1995), read as so many seconds after 1970."""
    known = appeared[~np.isnan(appeared)]
    if len(known) and len(now) and known.min() >= 1000 and known.max() <= 2200 and now.min() > _QUARTER * 1000:
        raise ValueError(
            f"items: column {name!r} (item time) holds {known[0]:.0f}, which counts seconds since 1970, but events are "
            f"{now.min():.0f} seconds after it: give dates, e.g. '{known[0]:.0f}-01-01', if these are years"
        )


def fit_derived(table: pa.Table, columns: Columns, items: EntityTable) -> dict[str, ColumnEncoder]:
    """Encoders of the derived context columns."""
    table = with_derived(table, columns, items)
    kinds = {CLOCK: "categorical", AGE: "numeric"}
    return {
        name: ColumnEncoder.fit(name, column(table, name, "interactions", "derived context"), kinds[name], name)
        for name in derived_names(columns)
    }
