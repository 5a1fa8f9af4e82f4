"""Splits against naive loops, and the guard against the future."""

import inspect
from dataclasses import fields
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrec import PolyRecProcessor
from polyrec.data.settings import FitSettings, SplitSettings
from polyrec.data.splits import LeakageError, check_leakage, leave_one_out, split_by_cuts, split_by_fractions

SHARES = [(0.5, 0.25, 0.25), (0.8, 0.1, 0.1), (1.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.6, 0.0, 0.4)]
TASKS = [{"name": "next_item", "head": "retrieval"}, {"name": "rating", "head": "regression"}]
lengths = st.lists(st.integers(0, 6), min_size=1, max_size=8)


@settings(max_examples=30, deadline=None)
@given(lengths)
def test_leave_one_out_is_the_naive_loop(sizes):
    """Prevents a person's test event from training, and short histories from losing their only events."""
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    expected = []
    for n in sizes:
        expected += [0] * n if n < 3 else [0] * (n - 2) + [1, 2]
    assert leave_one_out(offsets).tolist() == expected


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.sampled_from(SHARES))
def test_shares_are_the_naive_loop(time, shares):
    """Prevents a training row from lying after a test row however times tie, and shares from drifting."""
    time = np.array(time, dtype=float)
    order = np.argsort(time, kind="stable")
    part = split_by_fractions(order, shares)
    first, second = round(shares[0] * len(time)), round((shares[0] + shares[1]) * len(time))
    expected = [0 if n < first else 1 if n < second else 2 for n in range(len(time))]
    assert part[order].tolist() == expected
    check_leakage(part, time)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 10), st.integers(0, 10))
def test_cuts_are_the_naive_loop(time, first, second):
    """Prevents an event at a cut from falling before it."""
    time = np.array(time, dtype=float)
    cuts = sorted([first, second])
    part = split_by_cuts(time, cuts)
    check_leakage(part, time)
    assert part.tolist() == [0 if t < cuts[0] else 1 if t < cuts[1] else 2 for t in time]


def test_the_guard_names_a_planted_row():
    """Prevents time leakage through hand-made splits (the fault behind many published gains)."""
    time, part = np.array([1.0, 9.0, 5.0, 6.0]), np.array([0, 0, 1, 2])
    with pytest.raises(LeakageError, match="row 7 is a training row at time 9.*first validation row at 5"):
        check_leakage(part, time, rows=np.array([6, 7, 8, 9]))
    check_leakage(part, time, user=np.array([0, 1, 0, 0]))  # another person's future is allowed per person
    with pytest.raises(LeakageError, match="row 1 .* first validation row of the same user at 5: .* Split by time"):
        check_leakage(part, time, user=np.array([0, 0, 0, 0]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 2), st.integers(0, 2)), max_size=12), st.booleans())
def test_the_guard_is_the_naive_loop(rows, by_user):
    """Prevents the guard from missing a pair of parts, a person or a row, and from refusing ties."""
    time, part, user = (np.array([r[k] for r in rows], dtype=np.int64) for k in range(3))
    pairs = [(a, b) for a in rows for b in rows if 0 <= a[1] < b[1] and (not by_user or a[2] == b[2])]
    if any(a[0] > b[0] for a, b in pairs):
        with pytest.raises(LeakageError):
            check_leakage(part, time.astype(float), user if by_user else None)
    else:
        check_leakage(part, time.astype(float), user if by_user else None)


@pytest.mark.parametrize(("earlier", "later"), list(combinations(["training", "validation", "test"], 2)))
def test_a_late_row_of_a_real_log_is_named(tables, earlier, later):
    """Prevents the guard from naming a row of the sorted log, which the user has never seen."""
    events = {name: np.asarray(values)[::-1] for name, values in tables["interactions"].items()}
    log = PolyRecProcessor.fit(events, tasks=TASKS).encode_events(events)
    names = ["training", "validation", "test"]
    part = np.full(len(log), -1, dtype=np.int8)
    part[log.order == len(log) - 1] = names.index(earlier)
    part[log.order == 0] = names.index(later)
    last = np.flatnonzero(events["timestamp"] == events["timestamp"].max())[-1]
    with pytest.raises(LeakageError, match=f"row {last} is a {earlier} row .* first {later} row at"):
        check_leakage(part, log.time, rows=log.row)


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({"fractions": (0.5, 0.3, 0.2)}, (200, 120, 80)),
        ({"fractions": (1, 0, 0)}, (400, 0, 0)),
        ({"by": "leave_one_out"}, (320, 40, 40)),
    ],
)
def test_a_split_asks_about_every_event_once(tables, options, counts):
    """Prevents an event from being lost between two parts, or from training and testing."""
    parts = PolyRecProcessor.fit(**tables, tasks=TASKS).split(tables["interactions"], **options)
    assert tuple(p.num_candidates for p in parts) == counts
    asked = np.concatenate([p.candidates.event for p in parts])
    assert sorted(asked) == list(range(400))


def test_leave_one_out_of_a_log_is_the_naive_loop(tables):
    """Prevents the last event of the file, instead of the last in time, from testing."""
    parts = PolyRecProcessor.fit(**tables, tasks=TASKS).split(tables["interactions"], by="leave_one_out")
    time, user = tables["interactions"]["timestamp"], tables["interactions"]["user_id"]
    for part, place in ((parts.test, -1), (parts.valid, -2)):
        rows = part.log.row[part.candidates.event]
        for row in rows:
            own = np.flatnonzero(user == user[row])
            assert row == own[np.argsort(time[own], kind="stable")][place]
        assert sorted(user[rows]) == sorted(set(user))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "tme"}, "by is 'tme'; it must be 'time' or 'leave_one_out' or 'random' or null; did you mean 'time'"),
        ({"fractions": (0, 0.5, 0.5)}, r"leaves no training rows: check fractions=\(0.0, 0.5, 0.5\)"),
        ({"cuts": (0, 0)}, r"leaves no training rows: .* cuts=\(0.0, 0.0\)"),
        ({"max_delay": -1}, "max_delay is -1; it must be a number >= 0"),
        ({"max_delay": float("inf")}, "max_delay is inf; it must be a number >= 0"),
        ({"delayed_share": 0.5}, "delayed_share is 0.5 and max_delay 0"),
        ({"shuffle_ties": "no"}, "shuffle_ties is 'no'; it must be true or false"),
        ({"keep_negatives": {"like": 0}}, r"keep_negatives.like is 0; it must be a number in \(0, 1\]"),
        ({"cuts": ["soon", "later"]}, r"cuts\[0\] cannot be read as a time: soon; use ISO 8601"),
        ({"cuts": [3, 2]}, "the first must not be later"),
        ({"cuts": [1, 2], "by": "leave_one_out"}, "cuts are times, but the split is by"),
    ],
)
def test_impossible_splits_are_refused(tables, options, message):
    """Prevents training on nothing."""
    with pytest.raises(ValueError, match=message):
        PolyRecProcessor.fit(**tables, tasks=TASKS).split(tables["interactions"], **options)


def test_impossible_shares_are_refused():
    """Prevents shares that do not sum to 1 from losing rows."""
    with pytest.raises(ValueError, match="sum to 1"):
        split_by_fractions(np.arange(4), (0.8, 0.1))
    with pytest.raises(ValueError, match="three shares >= 0"):
        split_by_fractions(np.arange(4), (1.2, -0.1, -0.1))
    with pytest.raises(ValueError, match="in order"):
        split_by_cuts(np.arange(4.0), (3, 1))
    with pytest.raises(ValueError, match="two times"):
        split_by_cuts(np.arange(4.0), (1, float("nan")))


@pytest.mark.parametrize("kind", [str, pd.Timestamp, pd.Timestamp.to_pydatetime, pd.Timestamp.to_datetime64])
def test_cuts_are_times_of_any_kind(kind):
    """Prevents ISO text and dates from failing where the time column accepts them, or from being read in local time."""
    timestamps = [pd.Timestamp("2024-01-05T12:00:00"), pd.Timestamp("2024-02-01")]
    given = [kind(m) for m in timestamps]
    assert SplitSettings(cuts=given).cut_times == tuple(m.tz_localize("UTC").timestamp() for m in timestamps)


def test_recipes_know_every_argument_of_a_split():
    """Prevents an argument of `split` or `fit` from being unknown to recipes, or a default from differing."""
    for function, declared, tables in (
        (PolyRecProcessor.split, SplitSettings(), ("interactions", "prior_history", "past", "cache_dir", "engine")),
        (
            PolyRecProcessor.fit,
            FitSettings(),
            ("interactions", "items", "users", "tasks", "columns", "verbose", "cache_dir"),
        ),
    ):
        arguments = inspect.signature(function).parameters
        own = {n: p.default for n, p in arguments.items() if n not in ("self", *tables)}
        assert own == {f.name: getattr(declared, f.name) for f in fields(declared)}
