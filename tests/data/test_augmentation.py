"""Transforms of training windows: what they change, and what no transform may do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from window_fixtures import dataset, gaps, make_log, same_windows, users, windows

from polyrec.data.augmentation import (
    ByLength,
    Compose,
    Crop,
    Insert,
    Mask,
    OneOf,
    Reorder,
    SimilarItems,
    Substitute,
)
from polyrec.data.event_log import Candidates
from polyrec.data.sequences import SequenceDataset

SIMILAR = SimilarItems(np.concatenate([np.zeros((2, 2), np.int64), 500 + np.arange(2 * 80).reshape(80, 2)]))
shares = st.floats(0, 1)
simple = st.one_of(
    st.builds(Crop, shares),
    st.builds(Mask, shares),
    st.builds(Reorder, shares),
    st.builds(Substitute, shares, st.just(SIMILAR)),
    st.builds(Insert, shares, st.just(SIMILAR)),
)
# Items that were put in have no neighbours in SIMILAR, so a chain has one transform that invents items.
transforms = st.one_of(
    simple,
    st.builds(lambda a, b, c: Compose(Crop(a), Reorder(b), c), shares, shares, simple),
    st.builds(lambda a, b: OneOf(a, b, chance=0.8), simple, simple),
    st.builds(lambda limit, a, b: ByLength(limit, a, b), st.integers(0, 8), simple, simple),
)


def origin(item_ids, stars):
    """Which event of the log each event of a window is or was derived from."""
    invented = item_ids >= 500
    return np.where(invented, (item_ids - 500) // 2, np.where(item_ids == 1, stars, item_ids - 2))


@settings(max_examples=150, deadline=None)
@given(users, gaps, transforms, st.integers(1, 8), st.sampled_from(["strict", "order"]), st.integers(0, 3))
def test_no_candidate_sees_what_it_could_not_see_before(users, gaps, transform, max_history, ties, epoch):
    """Prevents a transform from showing a candidate its own event, or a later one, or anything made of these."""
    log = make_log(users, gaps, event_features={"stars": np.arange(sum(users)), "score": np.arange(sum(users)) / 2})
    plain, changed = (
        dataset(log, ties, max_history=max_history),
        dataset(log, ties, max_history=max_history, transform=transform),
    )
    for before, after in zip(windows(plain, epoch), windows(changed, epoch), strict=True):
        assert len(after["item_ids"]) <= max_history
        for values in after["event_features"].values():
            assert len(values) == len(after["item_ids"])
        for key in set(before) - {"item_ids", "event_features", "candidate_positions"}:
            assert same_windows({key: before[key]}, {key: after[key]}), key
        old, new = (origin(w["item_ids"], w["event_features"]["stars"]) for w in (before, after))
        for p, q in zip(before["candidate_positions"], after["candidate_positions"], strict=True):
            assert 0 <= q <= len(after["item_ids"])
            assert set(new[:q]) <= set(old[:p])


@settings(max_examples=40, deadline=None)
@given(users, gaps, transforms, st.integers(0, 3))
def test_a_transform_changes_no_log_and_repeats(users, gaps, transform, epoch):
    """Prevents a change of one window from staying in the log for all epochs, and a resumed run from drawing others."""
    log = make_log(users, gaps)
    item, stars = log.item.copy(), log.event_features["stars"].copy()
    data = dataset(log, max_history=8, transform=transform)
    one, two = windows(data, epoch), windows(data, epoch)
    assert all(same_windows(a, b) for a, b in zip(one, two, strict=True))
    assert np.array_equal(log.item, item)
    assert np.array_equal(log.event_features["stars"], stars)


def test_epochs_and_windows_draw_for_themselves():
    """Prevents one change from being memorised, and all people from being masked at the same places."""
    data = dataset(make_log([12, 12], [1]), max_history=12, transform=Mask(0.5))
    drawn = {tuple(w["item_ids"] == 1) for epoch in range(3) for w in windows(data, epoch)}
    assert len(drawn) == 6


# ------------------------------------------------------------------ each of them
def changed(transform, length=40, max_history=80, seed=0):
    """One person's window, who is asked about every event, before and after."""
    log = make_log([length], [1], event_features={"stars": np.arange(length), "score": np.arange(length) / 2})
    window = dataset(log, "order", max_history=max_history)[0]
    return window, transform(window, np.random.default_rng(seed))


def test_crop_forgets_the_oldest():
    """Prevents the latest events, which say most, from being cut off."""
    lengths = set()
    for seed in range(40):
        before, after = changed(Crop(0.5), seed=seed)
        left = len(after["item_ids"])
        assert 20 <= left < 40
        assert np.array_equal(after["item_ids"], before["item_ids"][-left:])
        assert np.array_equal(after["candidate_positions"], np.maximum(before["candidate_positions"] - (39 - left), 0))
        lengths.add(left)
    assert len(lengths) > 10


def test_mask_hides_items_in_its_share_and_nothing_else():
    """Prevents feedback from being lost with the item, and padding (0) from standing in for the unknown item (1)."""
    before, after = changed(Mask(0.3), length=79)
    hidden = after["item_ids"] == 1
    assert 10 < hidden.sum() < 40
    assert np.array_equal(after["item_ids"][~hidden], before["item_ids"][~hidden])
    assert same_windows(before["event_features"], after["event_features"])


def test_reorder_moves_a_run_with_its_features():
    """Prevents ratings from staying behind when their items move, and the whole history from being shuffled."""
    before, after = changed(Reorder(0.2))
    moved = np.flatnonzero(before["item_ids"] != after["item_ids"])
    assert 1 < len(moved) <= 8
    assert moved.max() - moved.min() < 8
    assert sorted(after["item_ids"]) == sorted(before["item_ids"])
    assert np.array_equal(after["event_features"]["stars"], after["item_ids"] - 2)


@pytest.mark.parametrize("transform", [Crop(0.9), Reorder(0.5)])
def test_gaps_are_those_of_the_changed_history(transform):
    """Prevents a gap that went with its event from telling what was cropped before it, or where it stood."""
    length = 20
    gap = np.arange(length, dtype=np.float32)
    gap[0] = np.nan
    window = {
        "item_ids": np.arange(length) + 2,
        "event_features": {"time_gap": gap},
        "candidate_positions": np.array([length]),
    }
    found = transform(window, np.random.default_rng(3))
    assert not np.array_equal(found["item_ids"], window["item_ids"])
    expected = gap[length - len(found["item_ids"]) :].copy()
    expected[0] = np.nan  # whoever comes first has no event before
    assert np.array_equal(found["event_features"]["time_gap"], expected, equal_nan=True)
    assert gap[1:].tolist() == list(range(1, length))  # the log's own gaps stay


def test_insert_adds_unknown_events_of_similar_items():
    """Prevents an invented event from carrying a rating nobody gave, and positions from pointing before it."""
    before, after = changed(Insert(0.5, SIMILAR))
    new = after["item_ids"] >= 500
    assert 10 < new.sum() < 30
    assert np.array_equal(after["item_ids"][~new], before["item_ids"])
    assert np.array_equal(after["event_features"]["stars"][~new], before["event_features"]["stars"])
    assert (after["event_features"]["stars"][new] == 0).all()
    assert np.isnan(after["event_features"]["score"][new]).all()
    of = after["item_ids"][np.flatnonzero(new) - 1] - 2  # right behind the event they are like
    assert np.array_equal((after["item_ids"][new] - 500) // 2, of)
    behind = np.searchsorted(np.flatnonzero(~new), np.arange(len(new) + 1))  # own events before each place
    assert np.array_equal(behind[after["candidate_positions"]], before["candidate_positions"])


def test_a_window_that_grew_keeps_its_latest_events():
    """Prevents a backbone of max_history places from being fed more, or the latest events from being the ones to go."""
    window = dataset(make_log([6], [1]), max_history=5, transform=Insert(1.0, SIMILAR))[0]
    own = window["item_ids"] < 500
    assert len(own) == 5
    assert window["item_ids"][own].tolist() == [5, 6]  # of 2, 3, 4, 5, 6, each followed by another
    assert window["candidate_positions"].tolist() == [0, 0, 0, 1, 3, 5]


def test_substitute_draws_among_the_neighbours():
    """Prevents always the same neighbour, and an item without neighbours from becoming padding."""
    similar = SimilarItems(np.array([[0, 0], [0, 0], [3, 4], [0, 0], [2, 0]]))
    drawn = similar.draw(np.array([2] * 50 + [3, 4, 1]), np.random.default_rng(0))
    assert set(drawn[:50]) == {3, 4}
    assert drawn[50:].tolist() == [3, 2, 1]
    before, after = changed(Substitute(0.4, SIMILAR))
    assert 8 < (before["item_ids"] != after["item_ids"]).sum() < 26


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), max_size=30), st.integers(1, 3), st.integers(1, 4))
def test_similar_items_are_those_of_a_naive_count(events, count, span):
    """Prevents people from being counted together, pairs beyond the span, and ties of the score from being random."""
    events = sorted(events, key=lambda e: e[0])
    user, item = (np.array([e[i] for e in events], dtype=np.int64) for i in (0, 1))
    found = SimilarItems.fit(user, item, 8, count, span).neighbours
    together = np.zeros((8, 8))
    for i in range(len(events)):
        for j in range(i + 1, min(i + span, len(events) - 1) + 1):
            if user[i] == user[j] and item[i] != item[j] and min(item[i], item[j]) >= 2:
                together[item[i], item[j]] += 1
                together[item[j], item[i]] += 1
    for one in range(8):
        met = [other for other in range(8) if together[one, other]]
        score = {other: together[one, other] / np.sqrt((item == one).sum() * (item == other).sum()) for other in met}
        best = sorted(met, key=lambda other: (-round(score[other], 12), other))[:count]
        held = [other for other in found[one] if other]
        assert np.allclose([score[o] for o in held], [score[o] for o in best])
        assert len(set(held)) == len(best)


def test_long_and_short_histories_are_told_apart():
    """Prevents short histories from being cropped to nothing."""
    transform = ByLength(3, short=Mask(1.0), long=Crop(0.0))
    short = {"item_ids": np.array([5, 6, 7]), "event_features": {}, "candidate_positions": np.array([3])}
    long = short | {"item_ids": np.array([5, 6, 7, 8])}
    assert transform(short, np.random.default_rng(0))["item_ids"].tolist() == [1, 1, 1]
    assert transform(long, np.random.default_rng(0))["item_ids"].tolist() == [5, 6, 7, 8]
    assert ByLength(3)(short, np.random.default_rng(0)) is short


@pytest.mark.parametrize("length", [0, 1])
def test_tiny_histories_survive(length):
    """Prevents somebody without history from breaking a transform."""
    empty = np.zeros(0, dtype=np.int64)
    log = make_log([2], [1])
    asked = Candidates(np.array([length]), np.array([length]))
    for transform in (Crop(1.0), Mask(1.0), Reorder(1.0), Substitute(1.0, SIMILAR), Insert(1.0, SIMILAR)):
        window = SequenceDataset(log, asked, ["y"], transform=transform)[0]
        assert len(window["candidate_ids"]) == 1
    assert len(SIMILAR.draw(empty, np.random.default_rng(0))) == 0
    assert not SimilarItems.fit(empty, empty, 4).neighbours.any()


def test_wrong_shares_are_refused():
    """Prevents a share in percent."""
    for make in (Crop, Mask, Reorder):
        with pytest.raises(ValueError, match=rf"share of {make.__name__} is 20; it must be in \[0, 1\]"):
            make(20)
    with pytest.raises(ValueError, match="OneOf needs transforms and a chance in"):
        OneOf()
    with pytest.raises(ValueError, match="count and span must be >= 1, not 0 and 5"):
        SimilarItems.fit(np.zeros(1, int), np.zeros(1, int), 4, count=0)
