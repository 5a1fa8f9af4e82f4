"""Times: read as they are meant, or refused with the fix."""

import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from polyrec import PolyRecProcessor
from polyrec.core.schema import Columns
from polyrec.data.tables import read_time, seconds, times
from polyrec.data.times import _COMPACT

NOON = 1675166400  # 2023-01-31 12:00 UTC


@pytest.mark.parametrize(
    "values",
    [[20230131, 20230201], [202301310000, 202302010000], [20230131000000, 20230201000000], ["20230131", "20230201"]],
)
@pytest.mark.parametrize("unit", ["s", "ms"])
def test_dates_written_as_numbers_are_dates(values, unit):
    """Prevents two days from being 70 seconds apart, at two o'clock."""
    found = seconds(pa.array(values), unit, "x")
    assert found.tolist() == [pd.Timestamp(day).timestamp() for day in ("2023-01-31", "2023-02-01")]


def test_every_compact_date_is_the_one_of_the_calendar():
    """Prevents leap days, and the last minute of a day, from being another one."""
    days = pd.date_range("1904-01-01", "2100-12-31", freq="97h")
    for form, (_, _, digits) in zip(("%Y%m%d", "%Y%m%d%H%M", "%Y%m%d%H%M%S"), _COMPACT, strict=True):
        written = pa.array([int(day.strftime(form)) for day in days])
        expected = (days.floor("D") if digits == 0 else days.floor("min")).astype("datetime64[s]").astype("int64")
        assert np.array_equal(seconds(written, "s", "x"), expected)
    plain = pa.array([20_230_131, 7, 19, 23, 25_000_000])  # seconds, one of which happens to be a date
    assert np.array_equal(seconds(plain, "s", "x"), np.asarray(plain))


@pytest.mark.parametrize(
    ("values", "unit", "message"),
    [
        ([20230131, 20230231], "s", "is 20230231 in row 1, no date as 20230131 is one"),
        ([20230131, 0], "s", "is 0 in row 1, no date"),
        ([20230131235959, 20230131240000], "s", "is 20230131240000 in row 1, no date"),
        ([NOON, NOON], "ms", "in 1970 if it counts 'ms' but of our days if it counts 's': say so"),
        ([NOON * 1000], "us", "if it counts 'ms': say so"),
        ([NOON * 1000, NOON], "ms", r"counts 's' in row 1 \(1675166400\) and 'ms' elsewhere"),
        ([NOON, NOON * 1000], "s", 'row 1, which is after the year 3000 .*time_unit="ms"'),
        ([NOON * 10**6], "s", 'time_unit="us"'),
        ([NOON, NOON, 0], "s", "is 0 in row 2, which means 1970-01-01, .* missing time"),
        ([-1, NOON, NOON], "s", "is -1 in row 0, which means 1969-12-31"),
        (pa.array([float(NOON)] * 2, pa.float32()), "s", "has type float, which rounds times"),
        (["2023-01-31T10:00Z", "2023-01-31T10:00"], "s", "a time zone in row 0 .* and none in row 1"),
        (["2023-01-31 10:00 Europe/Berlin"], "s", "row 0: .*a zone's offset, not its name"),
        (["1675166400", "soon", "1675166400"], "s", "row 1: soon; use ISO 8601"),
        (["x" * 1000], "s", "row 0: x{60}[.]{3}; use"),
        (["31.01.2023"], "s", "row 0: 31.01.2023; use ISO 8601"),
        (["2023-01-31", "9999-12-31"], "s", "beyond the year 3000 in row 1: make it null"),
        (["2023-01-31", " "], "s", "no value in row 1"),
        (pa.array([1, 2], pa.duration("s")), "s", "has type duration"),
        (pa.array([None, None]), "s", "no value in row 0"),
    ],
)
def test_times_that_mean_another_century_are_refused(values, unit, message):
    """Prevents units, gaps and zones from being guessed: a log in 1970, or with half its events there."""
    with pytest.raises(ValueError, match=f"column 'timestamp'.*{message}"):
        times(pa.table({"timestamp": values}), Columns(time_unit=unit), "log")


def test_small_numbers_are_what_they_are():
    """Prevents counters and relative times, which are no dates, from being refused."""
    for values in ([10, 20, 15], [0, 0], [-5, 3], [0, 86400 * 400], [1995, 2003]):
        assert times(pa.table({"timestamp": values}), Columns(), "log").tolist() == values
    assert seconds(pa.array([0, 2000]), "ms", "x").tolist() == [0, 2]


@pytest.mark.parametrize(
    "value",
    [
        "2023-01-31T12:00",
        " 2023-01-31 13:00:00+01:00 ",
        datetime.datetime(2023, 1, 31, 12),
        datetime.datetime(2023, 1, 31, 12, tzinfo=datetime.UTC),
        pd.Timestamp("2023-01-31T13:00", tz="Europe/Berlin"),
        np.datetime64("2023-01-31T12"),
        NOON,
        float(NOON),
        np.int64(NOON),
        str(NOON),
        202301311200,
    ],
)
def test_one_time_is_read_like_a_column(value):
    """Prevents a cut or a request from accepting other times than the log does."""
    assert read_time(value) == NOON
    assert read_time("2023-01-31") == read_time(datetime.date(2023, 1, 31)) == NOON - 12 * 3600
    assert read_time(NOON * 1000, "ms") == NOON


@pytest.mark.parametrize("value", [None, "", "soon", float("nan"), float("inf"), True, [NOON], {}, 10**30, NOON * 1000])
def test_what_is_no_time_is_one_line(value):
    """Prevents numpy's and Arrow's errors from being the answer to a typo."""
    with pytest.raises(ValueError, match=r"^cuts\[0\] (is|has|cannot)") as error:
        read_time(value, what="cuts[0]")
    assert "\n" not in str(error.value)
    assert "row" not in str(error.value)


def test_item_times_that_are_years_are_refused():
    """Prevents films of 1995 from having appeared half an hour after 1970 began."""
    log = {"user_id": [1, 1], "item_id": [5, 6], "timestamp": [NOON, NOON + 1], "rating": [1.0, 2.0]}
    items = {"item_id": [5, 6], "year": [1995, 2003]}
    with pytest.raises(ValueError, match=r"'year' \(item time\) holds 1995.* give dates, e.g. '1995-01-01'"):
        PolyRecProcessor.fit(
            log, items, tasks=[{"name": "rating", "head": "regression"}], columns={"item_time": "year"}
        )


def test_times_of_a_format_are_those_of_strptime():
    """Prevents the first of December from being the twelfth of January."""
    written = ["01.12.2023 08:30", "2023-12-02", None, "13.01.2024 00:00"]
    found = seconds(pa.array(written), "s", "x", "%d.%m.%Y %H:%M")
    utc = datetime.UTC
    assert found[0] == datetime.datetime.strptime(written[0], "%d.%m.%Y %H:%M").replace(tzinfo=utc).timestamp()
    assert found[1] == datetime.datetime(2023, 12, 2, tzinfo=utc).timestamp()  # ISO stays ISO, as requests write it
    assert np.isnan(found[2])
    swapped = seconds(pa.array(["2023-12-01"]), "s", "x", "%Y-%d-%m")  # the format goes before ISO
    assert swapped[0] == datetime.datetime(2023, 1, 12, tzinfo=utc).timestamp()
    with pytest.raises(ValueError, match=r"row 0: 13/01/2024; use ISO 8601.*, or columns.time_format \('%m/%d/%Y'\)"):
        times(pa.table({"timestamp": ["13/01/2024"]}), Columns(time_format="%m/%d/%Y"), "log")
    with pytest.raises(ValueError, match=r"columns.time_format is '%H:%M', which says no day"):
        Columns(time_format="%H:%M")
