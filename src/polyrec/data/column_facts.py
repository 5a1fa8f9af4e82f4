"""What a sample of a table says of its columns: their values, what they determine, and whether they are times.

Letters: R sampled rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.data.arrays import column, decoded, is_null, is_number, is_text, numbers_of_text
from polyrec.data.times import seconds

_FEW = 32  # distinct values that are kept
_SAMPLE = 200  # texts that are looked at before all of them are read as times
_TO_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_LOG_BEGINS, _SURELY_BEGINS, _ENDS = 3e8, 9e8, 4.2e9  # seconds: 1979, 1998 and 2103
_DAY_MONTH = re.compile(r"^\d{1,2}(?P<sign>[./-])\d{1,2}(?P=sign)(?P<year>\d{4}|\d{2})(?!\d)")
_SOME_DATE = re.compile(r"\d.*\d.*\d|\d.*[A-Za-z]{3}.*\d")  # what every other format writes
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", "T%H:%M:%S", ", %H:%M", ", %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
_OTHER_FORMATS = (
    *(day + clock for day in ("%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y") for clock in _CLOCKS),
    "%m %d, %Y", "%Y-%m-%d %H:%M:%S UTC", "%Y-%m-%d %H:%M:%S.%f UTC", "%a %b %d %H:%M:%S %z %Y", "%d/%b/%Y:%H:%M:%S %z",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class TimeReading:
    """One way to read a column as times.

    Args:
        seconds: float64 [R], NaN = missing.
        unit, format: `Columns.time_unit` and `Columns.time_format`.
        counts: small numbers that order events and are no dates.
    """

    seconds: np.ndarray
    unit: str = "s"
    format: str | None = None
    counts: bool = False

    @property
    def span(self) -> str:
        """From when to when."""
        low, high = np.nanmin(self.seconds), np.nanmax(self.seconds)
        if self.counts:
            return f"counts from {low:g} to {high:g}, no dates"
        return f"{np.datetime64(int(low), 's')!s:.10} to {np.datetime64(int(high), 's')!s:.10}"


@dataclass(frozen=True, eq=False)
class ColumnFacts:
    """A column of a sample.

    Args:
        name: of the column.
        kind: "whole", "number", "text", "bool", "time", "empty" or "other".
        known: share of rows with a value.
        distinct: values.
        codes: int64 [R], a number per value, -1 = missing.
        values, counts: the value of each code and its rows, where there are at most 32.
        plain: float64 [R] of numbers.
    """

    name: str
    kind: str
    known: float
    distinct: int
    codes: np.ndarray
    values: tuple[object, ...] = ()
    counts: tuple[int, ...] = ()
    plain: np.ndarray | None = None

    @property
    def low(self) -> float:
        """The least number."""
        return np.nan if self.plain is None else float(np.nanmin(self.plain))

    @property
    def high(self) -> float:
        """The largest number."""
        return np.nan if self.plain is None else float(np.nanmax(self.plain))

    @property
    def rows(self) -> int:
        """Rows with a value."""
        return int((self.codes >= 0).sum())

    @property
    def repeated(self) -> float:
        """Rows per value."""
        return self.rows / max(self.distinct, 1)

    @property
    def ranked(self) -> list[tuple[object, int]]:
        """Values and their rows, the most frequent first."""
        return sorted(zip(self.values, self.counts, strict=True), key=lambda pair: -pair[1])

    @property
    def is_id(self) -> bool:
        """Whether its values can be ids."""
        return self.kind in ("whole", "text") and self.distinct > 1


def facts(table: pa.Table, name: str) -> ColumnFacts:
    """What is in a column of a sample.

    Example:
        >>> found = facts(pa.table({"stars": [5.0, 4.0, None, 5.0]}), "stars")
        >>> found.kind, found.values, found.known
        ('whole', (5.0, 4.0), 0.75)
    """
    values = decoded(column(table, name, "sample", "column"))
    missing = is_null(values)
    if is_text(values.type):
        missing |= np.asarray(pc.equal(pc.utf8_trim_whitespace(values), "").fill_null(False))
    known = 1 - float(missing.mean())
    if pa.types.is_nested(values.type) or pa.types.is_binary(values.type):
        return ColumnFacts(name, "other", known, 0, np.full(len(values), -1))
    if missing.all():
        return ColumnFacts(name, "empty", 0.0, 0, np.full(len(values), -1))
    coded = pc.if_else(pa.array(missing), None, values).dictionary_encode()
    codes = np.asarray(coded.indices.fill_null(-1)).astype(np.int64)
    words = coded.dictionary
    kind, plain, few, counts = _kind(words), None, (), ()
    if kind in ("whole", "number"):
        plain = np.append(_plain(words), np.nan)[codes]
    if len(words) <= _FEW:
        few, counts = tuple(words.to_pylist()), tuple(np.bincount(codes[codes >= 0]).tolist())
    return ColumnFacts(name, kind, known, len(words), codes, few, counts, plain)


def _kind(words: pa.Array) -> str:
    if pa.types.is_temporal(words.type):
        return "time"
    if pa.types.is_boolean(words.type):
        return "bool"
    if is_number(words.type) or (is_text(words.type) and numbers_of_text(words) is not None):
        return "whole" if not (np.nan_to_num(_plain(words)) % 1).any() else "number"
    return "text" if is_text(words.type) else "other"


def _plain(words: pa.Array) -> np.ndarray:
    found = numbers_of_text(words) if is_text(words.type) else np.asarray(words.cast(pa.float64(), safe=False))
    assert found is not None
    return found


def determines(one: ColumnFacts, other: ColumnFacts) -> bool:
    """Whether rows with one value of a column have one value of another, as an item has one category.

    Example:
        >>> table = pa.table({"item": [1, 1, 2, 2, 3, 3] * 2, "genre": ["a", "a", "b", "b", "a", "a"] * 2})
        >>> item, genre = facts(table, "item"), facts(table, "genre")
        >>> determines(item, genre), determines(genre, item)
        (True, False)
    """
    both = (one.codes >= 0) & (other.codes >= 0)
    size = np.bincount(one.codes[both], minlength=one.distinct or 1)
    kept = both.copy()
    kept[both] = size[one.codes[both]] > 1  # a value that occurs once tells everything
    first, second = one.codes[kept], other.codes[kept]
    if not len(first):
        return False
    pair, count = np.unique(first * max(other.distinct, 1) + second, return_counts=True)
    most = np.zeros(one.distinct, dtype=np.int64)
    np.maximum.at(most, pair // max(other.distinct, 1), count)
    others = len(first) - np.bincount(second).max()  # rows of which the most frequent value alone would be wrong
    return bool(others >= 3 and len(first) - most.sum() <= 0.02 * others)


def same(one: ColumnFacts, other: ColumnFacts, shared: bool = False) -> bool:
    """Whether two columns divide the rows alike, as an id and a name do, up to a few.

    Args:
        shared: several values of the first may share one of the second.
    """
    pairs = len(np.unique(np.stack([one.codes, other.codes]), axis=1).T)
    least = one.distinct if shared else min(one.distinct, other.distinct)
    return pairs <= 1.02 * least + (one.known < 1 or other.known < 1)


def time_readings(table: pa.Table, name: str, named: bool, time_format: str | None = None) -> list[TimeReading]:
    """The ways in which a column can be read as times: none, one, or two where day and month could change places.

    Args:
        named: its name says that it is a time; then small numbers are a count of events.
        time_format: the only format that texts may have.

    Example:
        >>> table = pa.table({"day": ["31.12.2024", "01.01.2025"], "when": ["1/2/2024", "3/4/2024"]})
        >>> [reading.format for reading in time_readings(table, "day", True)]
        ['%d.%m.%Y']
        >>> [reading.format for reading in time_readings(table, "when", True)]
        ['%d/%m/%Y', '%m/%d/%Y']
    """
    values = decoded(column(table, name, "sample", "time"))
    if pa.types.is_temporal(values.type) and not (pa.types.is_time(values.type) or pa.types.is_duration(values.type)):
        return [TimeReading(seconds(values, "s", name))]
    if is_text(values.type) and numbers_of_text(values) is None:
        return _of_text(values, name, time_format)
    if not is_number(values.type) and not is_text(values.type):
        return []
    plain = numbers_of_text(values) if is_text(values.type) else np.asarray(values.cast(pa.float64(), safe=False))
    assert plain is not None
    if time_format is not None and is_text(values.type):
        return _of_text(values, name, time_format)
    return _of_numbers(values, plain, name, named)


def _of_numbers(values: pa.Array, plain: np.ndarray, name: str, named: bool) -> list[TimeReading]:
    known = plain[~np.isnan(plain)]
    if not len(known) or not np.isfinite(known).all() or known.min() == known.max():
        return []
    begin = _LOG_BEGINS if named else _SURELY_BEGINS
    for unit, factor in _TO_SECONDS.items():
        if known.min() * factor > begin and known.max() * factor < _ENDS:
            return [TimeReading(plain * factor, unit)]
    found = _tried(values, name)
    if found is None:  # texts such as 0829, which would be years
        return []
    if not np.array_equal(found, plain, equal_nan=True):
        return [TimeReading(found)]  # dates written as one number
    if named and known.min() >= 0 and known.max() < _LOG_BEGINS and not (known % 1).any():
        return [TimeReading(plain, counts=True)]
    return []


def _of_text(values: pa.Array, name: str, time_format: str | None) -> list[TimeReading]:
    some = pc.unique(values.drop_null())[:_SAMPLE]
    if time_format is not None:
        formats: list[str | None] = [time_format]
    else:
        formats = [None, *_formats(str(some[0]))]
    found = []
    for written in formats:
        if _tried(some, name, written) is None:
            continue
        if (read := _tried(values, name, written)) is not None:
            found.append(TimeReading(read, format=written))
            if written is None:
                break
    return _in_order(found)


def _formats(example: str) -> list[str]:
    """Formats that a text may have, day before month first."""
    if not (begin := _DAY_MONTH.match(example.strip())):
        return list(_OTHER_FORMATS) if _SOME_DATE.search(example) else []
    sign, year = begin["sign"], "%Y" if len(begin["year"]) == 4 else "%y"
    days = [f"%d{sign}%m{sign}{year}"]
    if sign != ".":  # with points, no country writes the month first
        days.append(f"%m{sign}%d{sign}{year}")
    return [day + clock for day in days for clock in _CLOCKS]


def _in_order(readings: list[TimeReading]) -> list[TimeReading]:
    """Of two readings, the one by which the file is in order of time, if only one is."""
    if len(readings) < 2:
        return readings
    forward = [float((np.diff(r.seconds) >= 0).mean()) for r in readings]
    best = int(np.argmax(forward))
    if forward[best] > 0.99 and sorted(forward)[-2] < 0.95 and len(readings[0].seconds) >= 20:
        return [readings[best]]
    return readings


def _tried(values: pa.Array, name: str, time_format: str | None = None) -> np.ndarray | None:
    try:
        found = seconds(values, "s", name, time_format)
    except ValueError:
        return None
    known = found[~np.isnan(found)]
    if not len(known) or known.min() <= -_ENDS or (is_text(values.type) and known.max() > _ENDS):
        return None
    return found
