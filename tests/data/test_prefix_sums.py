"""Sums over earlier rows of a key against plain loops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrec.data.prefix_sums import Occurrences


@dataclass
class Case:
    """Rows with a key, a time, a value, and whether they may be counted."""

    key: np.ndarray
    time: np.ndarray
    values: np.ndarray
    counted: np.ndarray

    @property
    def found(self) -> Occurrences:
        rank = np.unique(self.time, return_inverse=True)[1]
        return Occurrences.find(np.arange(len(self.key)), self.key, rank, self.counted)

    def earlier(self, r: int, limit: float) -> list[int]:
        """Countable rows of the same key before `limit`, oldest first."""
        rows = [q for q in range(len(self.key)) if self.counted[q] and self.key[q] == self.key[r]]
        return sorted((q for q in rows if self.time[q] < limit), key=lambda q: self.time[q])


@st.composite
def cases(draw):
    rows = draw(st.integers(1, 20))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counted = random.random(rows) < draw(st.sampled_from([0.0, 0.6, 1.0]))
    time = random.integers(0, draw(st.sampled_from([3, 30])), rows).astype(float)
    return Case(random.integers(0, 4, rows) * 7, time, random.normal(size=(rows, 2)), counted)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_sums_and_last_times_are_the_naive_loop(case):
    """Prevents a sum from reaching into the neighbouring key, its own time or a row that may not be counted."""
    found = case.found
    sums, last = found.sums(case.values), found.last_before(case.time)
    for r in range(len(case.key)):
        earlier = case.earlier(r, case.time[r])
        np.testing.assert_allclose(sums[r], case.values[earlier].sum(0), atol=1e-9)
        assert found.end[r] - found.begin[r] == len(earlier)
        assert np.array_equal(last[r], max(case.time[earlier], default=np.nan), equal_nan=True)


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(-1, 31))
def test_a_limit_hides_what_lies_at_or_after_it(case, limit):
    """Prevents a frozen view from counting one row too many."""
    timestamps, rank = np.unique(case.time, return_inverse=True)
    until = np.minimum(rank, np.searchsorted(timestamps, limit))
    sums = case.found.until(until).sums(case.values)
    for r in range(len(case.key)):
        earlier = case.earlier(r, min(case.time[r], limit))
        np.testing.assert_allclose(sums[r], case.values[earlier].sum(0), atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from([0.5, 3.0, 100.0]))
def test_decayed_sums_are_the_definition(case, half_life):
    """Prevents weights from being shifted by one row or carried over to the next key."""
    found = case.found
    clock = case.time[found.row[found.source]]
    sums = found.decayed_sums(case.values, clock, case.time, half_life)
    for r in range(len(case.key)):
        earlier = case.earlier(r, case.time[r])
        weights = 0.5 ** ((case.time[r] - case.time[earlier]) / half_life)
        np.testing.assert_allclose(sums[r], weights @ case.values[earlier], atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from([0.5, 3.0]))
def test_totals_of_each_key(case, half_life):
    """Prevents the state written for serving from missing a key's latest rows."""
    found = case.found
    totals = found.group_sums(case.values)
    faded = found.group_decayed_sums(case.values, case.time[found.row[found.source]], half_life)
    assert found.keys.tolist() == sorted(set(case.key))
    for g, key in enumerate(found.keys):
        rows = np.flatnonzero((case.key == key) & case.counted)
        np.testing.assert_allclose(totals[g], case.values[rows].sum(0), atol=1e-9)
        weights = 0.5 ** ((case.time[rows].max(initial=-np.inf) - case.time[rows]) / half_life)
        np.testing.assert_allclose(faded[g], weights @ case.values[rows], atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_positions_count_moments_alike(case):
    """Prevents the order of ties in a file from deciding which of them is more recent."""
    found = case.found
    for s, q in enumerate(found.row[found.source]):
        assert found.position[s] == sum(case.time[p] <= case.time[q] for p in case.earlier(q, np.inf))


def test_sums_do_not_cancel_over_long_logs():
    """Prevents weights of 2^(time / half-life) from overflowing and small sums from drowning in large ones."""
    rows = 4096
    case = Case(np.zeros(rows, dtype=np.int64), np.arange(rows) * 1e6, np.ones((rows, 1)), np.ones(rows, dtype=bool))
    found = case.found
    with np.errstate(over="raise", invalid="raise"):
        sums = found.decayed_sums(case.values, case.time, case.time, 1e6)
    np.testing.assert_allclose(sums[1:, 0], 1 - 0.5 ** np.arange(1, rows), rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(cases(), st.integers(1, 3))
def test_rows_of_other_worlds_are_not_there(case, worlds):
    """Prevents a request, or a variant of one, from counting the events of another in the same pass."""
    rows = np.arange(len(case.key))
    world, rank = rows * 7 % worlds, np.unique(case.time, return_inverse=True)[1]
    found = Occurrences.find(rows, case.key, rank, case.counted, world)
    for r in rows:
        earlier = [q for q in case.earlier(r, case.time[r]) if world[q] == world[r]]
        np.testing.assert_allclose(found.sums(case.values)[r], case.values[earlier].sum(0), atol=1e-9)
    assert set(found.keys) == set(case.key)
