"""Splits against naive loops, and the guard against the future."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrec.data.splits import LeakageError, check_leakage, leave_one_out, split_by_cuts, split_by_fractions

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
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 10), st.integers(0, 10))
def test_time_splits_never_leak(time, first, second):
    """Prevents a training row from lying after a test row, however times tie."""
    time = np.array(time, dtype=float)
    order = np.argsort(time, kind="stable")
    part = split_by_fractions(order, (0.5, 0.25, 0.25))
    check_leakage(part, time)
    assert np.bincount(part, minlength=3).sum() == len(time)
    cuts = sorted([first, second])
    part = split_by_cuts(time, cuts)
    check_leakage(part, time)
    assert part.tolist() == [0 if t < cuts[0] else 1 if t < cuts[1] else 2 for t in time]


def test_the_guard_names_a_planted_row():
    """Prevents time leakage through hand-made splits (the fault behind many published gains)."""
    time, part = np.array([1.0, 9.0, 5.0, 6.0]), np.array([0, 0, 1, 2])
    with pytest.raises(LeakageError, match="row 7 is a training row at time 9.*first validation row at 5"):
        check_leakage(part, time, rows=np.array([6, 7, 8, 9]))
    check_leakage(part, time, person=np.array([0, 1, 0, 0]))  # another person's future is allowed per person
    with pytest.raises(LeakageError, match="of the same person"):
        check_leakage(part, time, person=np.array([0, 0, 0, 0]))


def test_impossible_shares_are_refused():
    """Prevents shares that do not sum to 1 from losing rows."""
    with pytest.raises(ValueError, match="sum to 1"):
        split_by_fractions(np.arange(4), (0.8, 0.1))
    with pytest.raises(ValueError, match="in order"):
        split_by_cuts(np.arange(4.0), (3, 1))
