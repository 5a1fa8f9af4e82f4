"""Replay: new events, and whole windows of old ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import fit

from polyrec.data.replay import with_replay


def windows_of(dataset):
    """{(person, first event of the window)} -> events asked in it."""
    return [set(dataset[i]["candidate_rows"]) for i in range(len(dataset))]


@pytest.fixture(scope="module")
def world():
    processor, data = fit()
    log = data.train.log
    whole = processor.training_set(log, np.ones(len(log), dtype=bool), data.train.statistics, max_delay=3000.0)
    return log, whole


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1), seed=st.integers(0, 3), after=st.floats(0, 1))
def test_all_new_events_and_whole_windows_of_old_ones(world, share, seed, after):
    """Prevents a new event from being left out, and an old window from being replayed in pieces."""
    log, whole = world
    new = log.time >= np.quantile(log.time, after)
    found = with_replay(whole, new, share, seed)
    asked = {(e, s) for e, s in zip(found.candidates.event, found.candidates.statistic, strict=True)}
    naive, drawn = set(), 0
    for index in range(len(whole)):
        span = whole.spans(np.array([index]))
        rows = range(span.first_candidate[0], span.last_candidate[0])
        pairs = {(whole.candidates.event[r], whole.candidates.statistic[r]) for r in rows}
        old = {p for p in pairs if not new[p[0]]}
        assert old <= asked or not old & asked
        drawn += bool(old) and old <= asked
        naive |= {p for p in pairs if new[p[0]]}
    assert naive <= asked
    held = sum(any(not new[whole.candidates.event[r]] for r in range(*(int(x[0]) for x in whole.spans(np.array([i]))[3:])))
               for i in range(len(whole)))  # fmt: skip
    assert drawn == round(share * held)


def test_positions_and_statistics_stay_with_their_events(world):
    """Prevents a replayed event from being asked with another one's history."""
    log, whole = world
    found = with_replay(whole, log.time >= np.median(log.time), 0.3)
    known = {(e, s): p for e, p, s in zip(*(getattr(whole.candidates, n) for n in ("event", "position", "statistic")),
                                         strict=True)}  # fmt: skip
    triples = zip(*(getattr(found.candidates, n) for n in ("event", "position", "statistic")), strict=True)
    assert all(known[e, s] == p for e, p, s in triples)


def test_a_seed_draws_the_same_windows(world):
    """Prevents an update from being another one when it is repeated."""
    log, whole = world
    new = log.time >= np.median(log.time)
    events = [with_replay(whole, new, 0.5, seed).candidates.event for seed in (0, 0, 1)]
    assert np.array_equal(events[0], events[1])
    assert not np.array_equal(events[0], events[2])


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_wrong_shares_are_refused(world, share):
    """Prevents 10 (percent) from being read as a share."""
    log, whole = world
    with pytest.raises(ValueError, match="replay is"):
        with_replay(whole, np.zeros(len(log), dtype=bool), share)
