"""Logs counted block by block: the numbers must be those of one pass over the whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_fixtures import CONTEXT, PRIOR, STATISTICS, TARGETS, close, log, naive, stats, tables

from polyrec.data.event_table import EventTable
from polyrec.data.log_passes import LogPasses, time_blocks
from polyrec.data.statistics import RunningStatistics


def order_of(time: np.ndarray) -> np.ndarray:
    """The rank of each row in time."""
    order = np.empty(len(time), dtype=np.int64)
    order[np.argsort(time, kind="stable")] = np.arange(len(time))
    return order


def passes(table: EventTable, size: int, source: np.ndarray | None = None, kept: np.ndarray | None = None) -> LogPasses:
    blocks = time_blocks(order_of(table.time), table.time, size)
    return LogPasses(stats(), blocks, table.take, source, kept)


def features(found: LogPasses, rows: int) -> np.ndarray:
    result = np.full((rows, len(stats().names)), np.nan)
    for block, over in found:
        result[block] = over.features()
    return result


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 9))
def test_blocks_hold_every_row_once_and_never_part_a_time(times, size):
    """Prevents rows of one second from seeing each other's labels, and rows from being lost between blocks."""
    time = np.array(times, dtype=float)
    blocks = list(time_blocks(order_of(time), time, size))
    assert sorted(np.concatenate(blocks).tolist()) == list(range(len(time)))
    for earlier, later in pairwise(blocks):
        assert time[earlier].max() < time[later].min()
    assert all((time[block] == time[block].max()).sum() > len(block) - size for block in blocks)
    assert all((np.diff(block) > 0).all() for block in blocks)


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(1, 6), st.data())
def test_blocks_give_the_features_of_the_definition(table, size, data):
    """Prevents a sum, a faded sum, a gap or a baseline from being lost or counted twice between two blocks."""
    source = None
    if data.draw(st.booleans()):
        source = np.array(data.draw(st.lists(st.booleans(), min_size=len(table), max_size=len(table))))
    close(features(passes(table, size, source), len(table)), naive(STATISTICS, table, PRIOR, source=source))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([7, 40, 1000]), st.sampled_from(["time", "some", "none"]))
def test_states_are_those_of_the_rows_that_are_kept(seed, size, which):
    """Prevents events of the test set from staying in the state that a model is served from."""
    table = log(seed=seed)
    random = np.random.default_rng(seed)
    cut = float(random.integers(1, 200))
    source, kept = None, table.time < cut
    if which == "some":  # as leave-one-out holds rows out of the middle
        source = kept = random.random(len(table)) < 0.7
    elif which == "none":
        kept = None
    found = passes(table, size, source, kept)
    features(found, len(table))
    expected = stats()
    expected.update(table if kept is None else table.take(np.flatnonzero(kept)))
    assert found.last_time == expected.last_time
    assert found.states.keys() == expected._states.keys()
    for name, state in found.states.items():
        other = expected._states[name]
        assert state.keys.tolist() == other.keys.tolist(), name
        for field in ("sums", "counts", "rows", "last"):
            np.testing.assert_allclose(getattr(state, field), getattr(other, field), rtol=1e-9, atol=1e-9)


def test_nothing_of_a_user_stays_in_the_states():
    """Prevents what is counted per user from reaching files that are shared."""
    found = passes(log(), 50)
    features(found, len(log()))
    personal = {config.name for config in STATISTICS if config.personal}
    assert not personal & found.states.keys()


def test_a_later_label_changes_nothing_before_it():
    """Prevents a block from reading the labels of those after it."""
    table = log(seed=3)
    before = features(passes(table, 30), len(table))
    targets = table.targets.copy()
    targets[table.time > 100] = 1.0
    after = features(passes(replace(table, targets=targets), 30), len(table))
    early = table.time <= 100
    np.testing.assert_array_equal(before[early], after[early])


def test_context_levels_are_those_of_the_whole_log():
    """Prevents baselines of rare contexts from starting anew in every block."""
    table = log(rows=500, seed=4)
    whole = RunningStatistics(STATISTICS, TARGETS, PRIOR, CONTEXT).compute(table)
    close(features(passes(table, 60), len(table)), whole)
