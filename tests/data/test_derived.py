"""Context that follows from a row's time: the hour of the day, and the age of the item."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import COLUMNS, TASKS, synthetic_log

from polyrec import Columns, PolyRecProcessor
from polyrec.data.catalog import EntityTable
from polyrec.data.derived import derived_names, with_derived

DAY = 86400


def catalog(born) -> EntityTable:
    """Items 0, 1, .. of which the column "born" says when they appeared."""
    ids = pa.array(np.arange(len(born)))
    return EntityTable(ids, pa.table({"item_id": ids, "born": born}), {})


def derived(times, items=None, item=None, **columns):
    item = np.zeros(len(times), dtype=np.int64) if item is None else item
    table = pa.table({"user_id": item, "item_id": item, "timestamp": times})
    return with_derived(table, Columns(**columns), items or catalog([0]))


# ------------------------------------------------------------------ hour
@settings(max_examples=60, deadline=None)
@given(
    st.one_of(  # a log of our days with events of 1970 is refused
        *(
            st.lists(st.datetimes(datetime(y, 1, 1), datetime(y + 30, 1, 1)), min_size=1, max_size=5)
            for y in (1965, 2000)
        )
    ),
    st.sampled_from([0, 8, -5, 5.5, 12.75, -11, 14]),
)
def test_hours_are_those_of_the_users_time_zone(timestamps, offset):
    """Prevents an offset of the wrong sign, one that loses its half hours, and midnight in the wrong day."""
    timestamps = [m.replace(microsecond=0, tzinfo=UTC) for m in timestamps]
    zone = timezone(timedelta(hours=offset))
    found = derived(np.array([m.timestamp() for m in timestamps]), time_zone=offset)
    assert found["hour"].to_pylist() == [m.astimezone(zone).hour for m in timestamps]
    assert pa.types.is_integer(found["hour"].type)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.datetimes(datetime(1999, 1, 1), datetime(2040, 1, 1)), min_size=1, max_size=5),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "UTC"]),
)
def test_hours_of_a_zone_are_those_of_pandas(timestamps, zone):
    """Prevents half of the year from being an hour off."""
    timestamps = pd.DatetimeIndex([m.replace(microsecond=0) for m in timestamps], tz="UTC")
    found = derived(np.array([m.timestamp() for m in timestamps]), time_zone=zone)
    assert found["hour"].to_pylist() == timestamps.tz_convert(zone).hour.tolist()


@pytest.mark.parametrize(
    ("time_zone", "message"),
    [
        ("Europe/Berlim", "columns.time_zone is 'Europe/Berlim', which is no time zone; did you mean 'Europe/Berlin'"),
        ("nowhere", "hours from UTC"),
        ("../../etc/passwd", "no time zone"),
        (25, "hours from UTC are -24 to 24"),
        (float("nan"), "columns.time_zone"),
        (True, "time_zone"),
    ],
)
def test_an_unknown_time_zone_is_refused(time_zone, message):
    """Prevents a misspelt zone from being UTC, or an error of the last step."""
    with pytest.raises(ValueError, match=message):
        Columns(time_zone=time_zone)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_of_any_unit_and_type_give_the_same_hour_and_age(unit):
    """Prevents milliseconds from being taken for seconds where times become context."""
    factor = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    seconds = np.array([1_600_000_000, 1_600_050_000])
    items, given = catalog((seconds[:1] - DAY) * factor), {"time_zone": 1, "item_time": "born", "time_unit": unit}
    expected = {"hour": [13, 3], "item_age": [1.0, 1.0 + 50_000 / DAY]}
    stamps = pa.array(seconds * factor).cast(pa.timestamp(unit))
    for times in (seconds * factor, stamps, [str(t) for t in stamps.cast(pa.timestamp("s")).to_pylist()]):
        found = derived(times, items, **given)
        assert found["hour"].to_pylist() == expected["hour"]
        assert found["item_age"].to_pylist() == pytest.approx(expected["item_age"])


# ------------------------------------------------------------------ age
@pytest.mark.parametrize(
    "born",
    [
        pa.array([date(2020, 1, 1), None, date(2020, 3, 1)]),
        pa.array([datetime(2020, 1, 1), None, datetime(2020, 3, 1)]),
        pa.array(["2020-01-01", None, "2020-03-01T00:00:00"]),
        pa.array([1577836800.0, float("nan"), 1583020800.0]),
    ],
    ids=["dates", "timestamps", "text", "numbers"],
)
def test_ages_are_days_and_what_has_no_date_has_none(born):
    """Prevents a missing date from becoming an age of 50 years, and an item from having the age of another."""
    now = datetime(2020, 1, 11, 12, tzinfo=UTC).timestamp()
    found = derived(np.full(5, now), catalog(born), np.array([0, 1, 2, 99, 0]), item_time="born")
    age = found["item_age"].to_pylist()
    assert age == [10.5, None, -49.5, None, 10.5]  # 99 is not in the catalog; an item may be taken before its date


def test_a_column_that_is_no_time_is_refused():
    """Prevents text that cannot be a date from becoming an unknown age, and a missing column an error far away."""
    with pytest.raises(ValueError, match=r"items: column 'born' \(item time\) cannot be read as a time in row 0: soon"):
        derived([1], catalog(["soon"]), item_time="born")
    with pytest.raises(ValueError, match=r"items: no column 'borne' \(needed as item time\); .*mean 'born'"):
        derived([1], catalog([1]), item_time="borne")


# ------------------------------------------------------------------ in a processor
def born_log():
    """The synthetic log, whose item number i appeared i days before its first event; nobody knows about the last."""
    tables = synthetic_log()
    start = tables["interactions"]["timestamp"].min()
    born = [date.fromtimestamp(0) + timedelta(seconds=int(start), days=-i) for i in range(24)]
    tables["items"]["born"] = [*born[:-1], None]
    return tables


def processor_of(tables, **columns):
    columns = COLUMNS | {"time_zone": 8, "item_time": "born"} | columns
    return PolyRecProcessor.fit(**tables, tasks=TASKS, columns=columns, max_history=8)


def test_nothing_is_derived_unless_asked_for():
    """Prevents context that nobody declared from becoming a feature."""
    assert derived_names(Columns()) == []
    table = pa.table({"timestamp": [1]})
    assert with_derived(table, Columns(), catalog([0])) is table
    assert derived_names(Columns(time_zone=0.0, item_time="born")) == ["hour", "item_age"]  # 0 is UTC, not nothing


def test_derived_context_is_a_feature_of_candidates_and_of_past_events():
    """Prevents a derived column from being computed and never read."""
    tables = born_log()
    processor = processor_of(tables)
    kinds = {f.name: (f.source, f.kind) for f in processor.features}
    assert kinds["hour"] == ("candidate", "categorical")
    assert kinds["item_age"] == ("candidate", "numeric")
    train = processor.split(tables["interactions"]).train
    window, log = train[0], train.log
    for part in ("event_features", "candidate_features"):
        assert {"hour", "item_age"} <= set(window[part])
    hours = np.array(processor.event_encoders["candidate"]["hour"].vocabulary)
    codes = log.candidate_features["hour"]
    known = codes >= 2  # the hour of a test row may not occur in training
    assert np.array_equal(hours[codes[known] - 2], ((log.time + 8 * 3600) // 3600 % 24)[known])
    age = (
        log.time / DAY
        - np.array([(b - date(1970, 1, 1)).days if b else np.nan for b in tables["items"]["born"]])[log.item - 2]
    )
    scaled = log.candidate_features["item_age"]
    assert np.array_equal(np.isnan(scaled), np.isnan(age))
    order = np.argsort(age)
    assert (np.diff(scaled[order][~np.isnan(scaled[order])]) >= 0).all()  # ranks keep the order


@pytest.mark.parametrize("name", ["hour", "item_age"])
def test_a_log_with_a_column_of_that_name_is_refused(name):
    """Prevents a label, weight or context of the log from being replaced by what was derived, or the other way round."""
    tables = born_log()
    processor = processor_of(tables)
    tables["interactions"][name] = tables["interactions"]["rating"]
    message = f"interactions: column '{name}' is in the table and also derived .* rename or drop the column"
    with pytest.raises(ValueError, match=message):
        processor_of(tables)
    with pytest.raises(ValueError, match=message):
        processor.encode_events(tables["interactions"])


def test_requests_know_the_hour_and_the_age_of_each_item(tmp_path):
    """Prevents every item of a request from having the age of the catalog's first one."""
    tables = born_log()
    processor = processor_of(tables)
    log = processor.split(tables["interactions"]).train.log
    items = np.array([4, 2, 25, 10])
    processor.save_pretrained(tmp_path)
    loaded = PolyRecProcessor.from_pretrained(tmp_path)
    now = float(log.time.max()) + 1.0
    moment = {"user_id": np.zeros(4), "item_id": items - 2, "timestamp": np.full(4, now), "surface": ["home"] * 4}
    expected = processor.encode_events(moment | {"rating": np.full(4, np.nan)})
    for one in (processor, loaded):
        features = one.request([3, 4], items, time=now)["candidate_features"]
        for name in ("hour", "item_age"):
            assert np.array_equal(features[name], expected.candidate_features[name], equal_nan=name == "item_age"), name
        assert np.isnan(features["item_age"]).tolist() == [False, False, True, False]
        assert len(set(features["item_age"][[0, 1, 3]])) == 3
        later = one.request([3, 4], items, time=now + 3600.0)["candidate_features"]
        assert (later["item_age"] != features["item_age"])[[0, 1, 3]].any()


def test_requests_are_not_told_what_is_derived():
    """Prevents an hour that somebody passes by hand from being ignored in silence."""
    processor = processor_of(born_log())
    with pytest.raises(ValueError, match="unknown context column 'hour'; known: surface"):
        processor.request([3], np.array([2]), context={"hour": 3})


@pytest.mark.parametrize("row", [0, 1, 26, -1])
def test_requests_ask_about_items_of_the_catalog(row):
    """Prevents padding, the unknown item or a row beyond the catalog from being answered as if it were an item."""
    processor = processor_of(born_log())
    with pytest.raises(ValueError, match=rf"items\[1\] is {row}: give rows of the item table, 2..25"):
        processor.request([3], np.array([2, row]))
