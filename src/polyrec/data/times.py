"""Times in: dates, timestamps, texts and numbers become float64 seconds since the epoch, or are refused.

Letters: R rows.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.core.schema import ROW_ORDER, Columns
from polyrec.data.arrays import column, decoded, first_bad_row, is_null, is_text, numbers_of_text, shown

# A plain number of seconds beyond this (year 3268) is almost surely milliseconds or finer.
_LATEST_SECOND = 4.1e10
_TO_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_OF_OUR_DAYS = (9e8, 4.2e9)  # seconds, 1998 .. 2103: where the times of a log lie
_SURELY = (1.2e9, 1.9e9)  # 2008 .. 2030: a log of times like these, all of them, counts from 1970
_ZONE = r"\d\s*([Zz]|UTC|[+-]\d\d(:?\d\d)?)$"
_PLAIN = r"^[+-]?\d+(\.\d*)?$"
_CLOCK = r"\d[T ]\d"  # the date is followed by a time of day
# Dates written as one number: (the earliest, the latest, digits of the time of day).
_COMPACT = ((19000101, 21001231, 0), (190001010000, 210012312359, 4), (19000101000000, 21001231235959, 6))


def times(table: pa.Table, columns: Columns, name: str) -> np.ndarray:
    """Return the time column as float64 seconds since the epoch, [R]; row numbers or 0 where there is none.

    Raises:
        ValueError: a time is missing, cannot be read, or is 0 or less where the others are of our days.
    """
    if columns.time is None:
        return np.zeros(table.num_rows)
    if columns.time == ROW_ORDER and ROW_ORDER not in table.column_names:
        return np.arange(table.num_rows, dtype=np.float64)
    values = column(table, columns.time, name, "time")
    what = f"{name}: column {columns.time!r} (time)"
    found = seconds(values, columns.time_unit, what, columns.time_format)
    row = first_bad_row(np.isnan(found))
    if row is not None:
        raise ValueError(f"{what} has no value in row {row}: fill it in or remove the row")
    if len(found) and found.min() <= 0 and np.median(found) > _OF_OUR_DAYS[0]:
        row = int((found <= 0).argmax())
        raise ValueError(
            f"{what} is {shown(values[row])} in row {row}, which means {_date(found[row])}, while most rows are after "
            f"{_date(_OF_OUR_DAYS[0])}: it seems to stand for a missing time; fill it in or remove the row"
        )
    return found


def read_time(value: Any, unit: str = "s", what: str = "time") -> float:
    """One time as somebody wrote it, in seconds since the epoch.

    Args:
        value: an ISO 8601 string, a date, datetime, `numpy.datetime64` or `pandas.Timestamp` (UTC unless it has a
            zone), or a number that counts `unit`.
        unit: "s", "ms", "us" or "ns", see `Columns.time_unit`.
        what: for messages.

    Raises:
        ValueError: it is no time, or one that a number of this unit cannot mean.

    Example:
        >>> read_time("2023-01-31"), read_time(1675123200000, "ms"), read_time("2023-01-31T01:00:00+01:00")
        (1675123200.0, 1675123200.0, 1675123200.0)
    """
    given = value.astype("datetime64[us]") if isinstance(value, np.datetime64) else value
    try:
        values = pa.array([given], from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        values = pa.nulls(1)
    try:
        found = np.nan if is_null(values)[0] else float(seconds(values, unit, what)[0])
    except ValueError as error:
        raise ValueError(str(error).replace(" in row 0", "")) from None
    if np.isnan(found):
        raise ValueError(f"{what} is {value!r}: give an ISO 8601 string, a date or a number")
    return found


def seconds(values: pa.Array, unit: str, what: str, time_format: str | None = None) -> np.ndarray:
    """Dates, timestamps, ISO strings or plain numbers of `unit` as float64 seconds since the epoch, [R], NaN = null.

    Whole numbers that are all dates (20230131, 202301311200, 20230131120000) are read as such.

    Args:
        what: names table and column in messages.
        time_format: of texts that are not ISO 8601, see `Columns.time_format`.

    Raises:
        ValueError: names the first row that is no time, or that means another century than it should.
    """
    values = decoded(values)
    if pa.types.is_null(values.type):
        return np.full(len(values), np.nan)
    if is_text(values.type):
        values = _of_text(values, what, time_format)
    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("s"))
    null = is_null(values)
    if pa.types.is_timestamp(values.type):
        found = np.asarray(values.cast(pa.int64()).fill_null(0)).astype(np.float64) * _TO_SECONDS[values.type.unit]
        row = first_bad_row((np.abs(found) > _LATEST_SECOND) & ~null)
        if row is not None:
            raise ValueError(f"{what} is beyond the year 3000 in row {row}: make it null where it is unknown")
    elif pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
        found = _of_numbers(values, null, unit, what)
    else:
        raise ValueError(f"{what} has type {values.type}: give numbers, timestamps or ISO strings")
    return np.where(null, np.nan, found)


def _of_numbers(values: pa.Array, null: np.ndarray, unit: str, what: str) -> np.ndarray:
    """Numbers as seconds, [R]; anything where one is missing."""
    plain = np.asarray(values.cast(pa.float64(), safe=False).fill_null(np.nan))
    row = first_bad_row(~np.isfinite(plain) & ~null)
    if row is not None:
        raise ValueError(f"{what} is {shown(values[row])} in row {row}: times must be finite")
    # A request's times are floats, and one of them alone may happen to be a date.
    several = not pa.types.is_floating(values.type) or len(np.unique(plain[~null])) > 1
    if several and (dates := _compact_dates(plain, what)) is not None:
        return dates
    found = plain * _TO_SECONDS[unit]
    row = first_bad_row(np.abs(found) > _LATEST_SECOND)
    if row is not None:
        fits = [u for u, factor in _TO_SECONDS.items() if _of_our_days(plain[row] * factor)] or ["ms"]
        raise ValueError(
            f"{what} is {shown(values[row])} in row {row}, which is after the year 3000 if it counts {unit!r}: "
            f'say what it counts, e.g. Columns(time_unit="{fits[0]}")'
        )
    if pa.types.is_float16(values.type) or (pa.types.is_float32(values.type) and (np.abs(plain) > 1 << 24).any()):
        raise ValueError(
            f"{what} has type {values.type}, which rounds times of our days by a minute and more: give int64 or float64"
        )
    _check_unit(plain, unit, what, values)
    return found


def _check_unit(plain: np.ndarray, unit: str, what: str, values: pa.Array) -> None:
    """Refuse numbers that mean January 1970 in this unit and our days in a coarser one, be it all of them or some."""
    for coarser, factor in _TO_SECONDS.items():
        if factor <= _TO_SECONDS[unit]:
            continue
        low = _of_our_days(plain * factor)
        if low.any() and (_of_our_days(plain * factor, *_SURELY) | np.isnan(plain)).all():
            row = int(low.argmax())
            raise ValueError(
                f"{what} is {shown(values[row])} in row {row}, which is in 1970 if it counts {unit!r} but of our days "
                f'if it counts {coarser!r}: say so, Columns(time_unit="{coarser}")'
            )
        if low.any() and _of_our_days(plain * _TO_SECONDS[unit]).any():
            row = int(low.argmax())
            raise ValueError(
                f"{what} counts {coarser!r} in row {row} ({shown(values[row])}) and {unit!r} elsewhere: give all times "
                "one unit"
            )


def _of_our_days(found: np.ndarray, begin: float = _OF_OUR_DAYS[0], end: float = _OF_OUR_DAYS[1]) -> np.ndarray:
    return (found > begin) & (found < end)


def _compact_dates(plain: np.ndarray, what: str) -> np.ndarray | None:
    """Seconds of numbers that are dates written without signs, [R]; None if they are not."""
    known = plain[~np.isnan(plain)]
    for lowest, highest, digits in _COMPACT:
        inside = (known >= lowest) & (known <= highest)
        if not len(known) or inside.mean() < 0.5:
            continue
        day, clock = np.divmod(np.where((plain >= lowest) & (plain <= highest), plain, 0).astype(np.int64), 10**digits)
        clock = clock * 100 if digits == 4 else clock  # without seconds
        month = (day // 10_000 - 1970) * 12 + day // 100 % 100 - 1
        start = month.astype("datetime64[M]").astype("datetime64[D]")
        found = start + (day % 100 - 1)
        valid = (day // 100 % 100 >= 1) & (day // 100 % 100 <= 12)
        valid &= found.astype("datetime64[M]") == month.astype("datetime64[M]")
        valid &= (clock // 10_000 < 24) & (clock // 100 % 100 < 60) & (clock % 100 < 60) & (plain % 1 == 0)
        if valid.sum() < 0.5 * len(known):
            continue
        row = first_bad_row(~valid & ~np.isnan(plain))
        if row is not None:
            raise ValueError(
                f"{what} is {plain[row]:.0f} in row {row}, no date as {known[inside][0]:.0f} is one: repair it, or "
                "give seconds since 1970"
            )
        of_day = clock // 10_000 * 3600 + clock // 100 % 100 * 60 + clock % 100
        return found.astype("datetime64[s]").astype(np.int64) + of_day.astype(np.float64)
    return None


def _of_text(values: pa.Array, what: str, time_format: str | None) -> pa.Array:
    """Texts as timestamps of UTC; as numbers if all of them are numbers and no dates."""
    values = pc.utf8_trim_whitespace(values)
    values = pc.if_else(pc.equal(values, ""), None, values)
    if time_format is None:
        for unit in ("s", "us"):  # fast, and without zones
            try:
                return values.cast(pa.timestamp(unit))
            except pa.ArrowInvalid:
                pass
    import pandas as pd

    texts = values.to_pandas()
    parsed = pd.to_datetime(texts, utc=True, errors="coerce", format="ISO8601")
    if time_format is not None:  # first, since 2024-12-01 may be written %Y-%d-%m
        parsed = pd.to_datetime(texts, utc=True, errors="coerce", format=time_format).fillna(parsed)
    unread = parsed.isna().to_numpy() & ~is_null(values)
    if unread.any():
        plain = numbers_of_text(values)
        if plain is not None:
            return pa.array(plain, from_pandas=True)
        no_number = ~np.asarray(pc.match_substring_regex(values, _PLAIN).fill_null(False))
        row = int((unread & no_number if (unread & no_number).any() else unread).argmax())
        fix = "use ISO 8601, e.g. 2026-11-24T10:00:00"
        if time_format is not None:
            fix += f", or columns.time_format ({time_format!r})"
        elif re.match(r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b", str(values[row])):
            fix += ', or say how a column is written, Columns(time_format="%d.%m.%Y")'
        if re.search(r"\d [A-Za-z]+(/[A-Za-z_]+)?$", str(values[row])):
            fix += "+01:00 (a zone's offset, not its name)"
        raise ValueError(f"{what} cannot be read as a time in row {row}: {shown(values[row])}; {fix}")
    clock = np.asarray(pc.match_substring_regex(values, _CLOCK).fill_null(False))
    zoned = np.asarray(pc.match_substring_regex(values, _ZONE).fill_null(False)) & clock
    if zoned.any() and (clock & ~zoned).any():
        with_zone, without = int(zoned.argmax()), int((clock & ~zoned).argmax())
        raise ValueError(
            f"{what} has a time zone in row {with_zone} ({shown(values[with_zone])}) and none in row {without} "
            f"({shown(values[without])}): give all of them one"
        )
    return pa.array(parsed)


def _date(second: float) -> str:
    return str(np.datetime64(int(second), "s"))[:10]
