"""States of keys: those of blocks, counted side by side, must combine to that of the whole."""

from __future__ import annotations

from functools import reduce

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_fixtures import PRIOR, STATISTICS, TARGETS, tables

from polyrec.data.event_table import EventTable
from polyrec.data.key_states import KeyStates
from polyrec.data.statistic_config import StatisticConfig
from polyrec.data.statistics import RunningStatistics

# What labels are measured against needs states of its own; these are the states of labels as they are.
PLAIN = [StatisticConfig(c.keys, "none", recent=c.recent, half_life=c.half_life) for c in STATISTICS]
PLAIN = list({c.name: c for c in PLAIN}.values())


def parts(table: EventTable, cuts: list[float]) -> list[np.ndarray]:
    """Rows of each stretch of time."""
    number = np.searchsorted(np.array(sorted(cuts)), table.time, side="right")
    return [np.flatnonzero(number == n) for n in range(len(cuts) + 1)]


def counted(table: EventTable, source: np.ndarray, rows: np.ndarray) -> dict[str, KeyStates]:
    stats = RunningStatistics(PLAIN, TARGETS, PRIOR)
    return stats.over(table.take(rows), {}, source=source[rows]).advanced(PLAIN)


def joined(earlier: dict[str, KeyStates], later: dict[str, KeyStates]) -> dict[str, KeyStates]:
    """The states of two stretches of time, of the keys of both."""
    found = {}
    for config in PLAIN:
        one, two = earlier[config.name], later[config.name]
        keys = np.union1d(one.keys, two.keys)
        found[config.name] = one.at(keys).followed_by(two.at(keys), config)
    return found


def equal(first: dict[str, KeyStates], second: dict[str, KeyStates]) -> None:
    assert first.keys() == second.keys()
    for name, one in first.items():
        np.testing.assert_array_equal(one.keys, second[name].keys, err_msg=name)
        for field in ("sums", "counts", "rows", "last"):
            a, b = getattr(one, field), getattr(second[name], field)
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=f"{name} {field}")


cuts = st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0, 10.0, 20.0, 30.0]), max_size=4)


@settings(max_examples=100, deadline=None)
@given(tables(), cuts, st.integers(0, 2**32 - 1))
def test_states_of_stretches_combine_to_that_of_the_whole(table, at, seed):
    """Prevents a faded sum from fading by the wrong time, or rows of one time from counting as earlier and later."""
    source = np.random.default_rng(seed).random(len(table)) < 0.8
    own = [counted(table, source, rows) for rows in parts(table, at)]
    equal(reduce(joined, own), counted(table, source, np.arange(len(table))))


@settings(max_examples=100, deadline=None)
@given(tables(), cuts)
def test_the_grouping_does_not_matter(table, at):
    """Prevents a scan over blocks from depending on how machines share it."""
    every = np.ones(len(table), dtype=bool)
    own = [counted(table, every, rows) for rows in parts(table, at)]
    backwards = reduce(lambda later, earlier: joined(earlier, later), reversed(own))
    equal(reduce(joined, own), backwards)


@settings(max_examples=50, deadline=None)
@given(tables())
def test_a_stretch_without_rows_changes_nothing(table):
    """Prevents unknown last times from making sums unknown."""
    own = counted(table, np.ones(len(table), dtype=bool), np.arange(len(table)))
    nothing = {name: KeyStates.empty(state.keys, len(TARGETS)) for name, state in own.items()}
    equal(joined(own, nothing), own)
    equal(joined(nothing, own), own)


def test_the_earlier_state_fades_until_the_last_row_of_both():
    """Prevents fading by numbers of rows and by seconds from being mixed up; the figures are computed by hand."""
    one, key = np.array([[1.0]]), np.array([5])
    earlier = KeyStates(key, 8 * one, 4 * one, np.array([4]), np.array([100.0]))
    later = KeyStates(key, one, one, np.array([3]), np.array([106.0]))
    by_rows = earlier.followed_by(later, StatisticConfig(("item",), "none", recent=1.5))
    by_time = earlier.followed_by(later, StatisticConfig(("item",), "none", half_life=2))
    assert (by_rows.sums.item(), by_rows.counts.item()) == (8 / 4 + 1, 4 / 4 + 1)
    assert (by_time.sums.item(), by_time.counts.item()) == (8 / 8 + 1, 4 / 8 + 1)
    assert (by_time.rows.item(), by_time.last.item()) == (7, 106.0)
