"""Windows against a naive reading of the log."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from window_fixtures import dataset, gaps, joined, make_log, same_windows, seen_by_each, two_views, users, windows

from polyrec import PolyRecCollator, PolyRecProcessor
from polyrec.data.augmentation import Mask
from polyrec.data.encoding import time_gap
from polyrec.data.event_log import Candidates
from polyrec.data.prior_history import PriorHistory
from polyrec.data.sequences import SequenceDataset
from polyrec.data.untimed import Untimed


@settings(max_examples=40, deadline=None)
@given(users, gaps, st.integers(1, 6), st.integers(1, 6), st.sampled_from(["strict", "order"]))
def test_each_candidate_sees_exactly_its_past(users, gaps, max_history, stride, ties):
    """Prevents windows from losing or doubling candidates, from showing the future, and from forgetting the latest events."""
    log = make_log(users, gaps)
    stride = min(stride, max_history)
    statistics = np.arange(len(log), dtype=np.float32)[:, None]
    data = dataset(log, ties, statistics, max_history, stride=stride)
    seen_rows = []
    for i, window in enumerate(data[i] for i in range(len(data))):
        assert len(window["item_ids"]) <= max_history
        assert data.lengths[i] == max(len(window["item_ids"]), len(window["candidate_ids"]))
        assert_rows(window["event_features"], window["item_ids"] - 2, stars=1, hour=10)
        assert_rows(window["candidate_features"], window["candidate_ids"] - 2, hour=10, statistics=1)
        assert window["user_features"] == {"age": 100 * log.user[window["candidate_ids"][0] - 2]}
        assert np.array_equal(data.labels()[window["candidate_rows"], 0], window["labels"]["y"])
        assert (data.user_codes()[window["candidate_rows"]] * 100 == window["user_features"]["age"]).all()
        for item, position, label in zip(
            window["candidate_ids"], window["candidate_positions"], window["labels"]["y"], strict=True
        ):
            row = item - 2
            assert label == row
            own = [r for r in range(len(log)) if log.user[r] == log.user[row]]
            past = [r for r in own if (log.time[r] < log.time[row] if ties == "strict" else r < row)]
            visible = window["item_ids"][:position] - 2
            assert visible.tolist() == past[len(past) - len(visible) :]
            assert len(visible) >= min(len(past), max_history - stride)
            seen_rows.append(row)
    assert sorted(seen_rows) == list(range(len(log)))
    assert data.num_candidates == len(log)


def assert_rows(features, rows, **factors):
    """Each feature, and the statistics, are those of the given rows of the log."""
    assert set(features) == set(factors)
    for name, factor in factors.items():
        assert (features[name].reshape(len(rows)) == factor * rows).all(), name


@settings(max_examples=30, deadline=None)
@given(users, gaps, st.integers(1, 6), st.data())
def test_some_candidates_see_the_same_as_among_all(users, gaps, max_history, data):
    """Prevents training and test windows of one log from disagreeing about what a candidate saw."""
    log = make_log(users, gaps)
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(log) - 1), min_size=1))))
    some = SequenceDataset(log, Candidates(rows, log.visible()[rows]), ["y"], None, max_history)
    everything = dataset(log, max_history=max_history)
    found = [
        {data.candidates.event[row]: events for row, events in seen_by_each(data).items()}
        for data in (some, everything)
    ]
    assert sorted(found[0]) == rows.tolist()
    assert all(found[1][row] == events for row, events in found[0].items())


@settings(max_examples=40, deadline=None)
@given(users, gaps, st.lists(st.integers(-1, 30), min_size=1, max_size=5))
def test_visible_counts_are_the_naive_loop(users, gaps, cutoffs):
    """Prevents an off-by-one between people, at ties or at a cut-off."""
    log = make_log(users, gaps)
    cutoff = np.resize(np.array(cutoffs, dtype=float), len(log))
    strict, ordered, before = log.visible("strict"), log.visible("order"), log.visible_before(cutoff)
    for r in range(len(log)):
        own = [q for q in range(len(log)) if log.user[q] == log.user[r]]
        assert strict[r] == sum(log.time[q] < log.time[r] for q in own)
        assert ordered[r] == sum(q < r for q in own)
        assert before[r] == sum(log.time[q] < cutoff[r] for q in own)


@settings(max_examples=20, deadline=None)
@given(users, gaps, st.integers(0, 3))
def test_shuffled_ties_stay_in_their_time(users, gaps, epoch):
    """Prevents tie shuffling from moving an event across times, and from asking about an event that is visible."""
    log = make_log(users, gaps)
    plain, shuffled = dataset(log, "order"), dataset(log, "order", shuffle_ties=True)
    shuffled.set_epoch(epoch)
    for i in range(len(plain)):
        before, after = plain[i], shuffled[i]
        assert np.array_equal(log.time[before["item_ids"] - 2], log.time[after["item_ids"] - 2])
        assert np.array_equal(log.time[before["candidate_ids"] - 2], log.time[after["candidate_ids"] - 2])
        for item, position in zip(after["candidate_ids"], after["candidate_positions"], strict=True):
            assert item not in after["item_ids"][:position]
        assert np.array_equal(after["candidate_ids"] - 2, after["labels"]["y"])
        assert np.array_equal(shuffled[i]["item_ids"], after["item_ids"])  # one order per epoch


@settings(max_examples=40, deadline=None)
@given(users, gaps, st.integers(0, 3), st.integers(1, 6), st.sampled_from(["strict", "order"]))
def test_shuffled_ties_ask_about_every_event_once(users, gaps, epoch, max_history, ties):
    """Prevents shuffling from asking about one event of a basket twice and never about another, at edges of windows, too."""
    log = make_log(users, gaps)
    data = dataset(log, ties, max_history=max_history, shuffle_ties=True)
    found = windows(data, epoch)
    assert sorted(joined(found, "candidate_ids") - 2) == list(range(len(log)))
    assert sorted(joined(found, "candidate_rows")) == list(range(len(log)))
    for window in found:
        assert np.array_equal(data.candidates.event[window["candidate_rows"]], window["candidate_ids"] - 2)
        assert np.array_equal(data.labels()[window["candidate_rows"], 0], window["labels"]["y"])


@settings(max_examples=40, deadline=None)
@given(users, gaps, st.integers(0, 3), st.integers(1, 6))
def test_shuffled_ties_of_a_strict_log_show_the_same_events(users, gaps, epoch, max_history):
    """Prevents the draw from showing a line of a basket to another one, which the strict rule forbids."""
    log = make_log(users, gaps)
    plain = seen_by_each(dataset(log, max_history=max_history))
    shuffled = seen_by_each(dataset(log, max_history=max_history, shuffle_ties=True), epoch)
    for row, events in shuffled.items():
        assert sorted(log.time[events]) == sorted(log.time[plain[row]])
        assert (log.time[events] < log.time[row]).all()


def test_a_shuffled_basket_is_asked_in_its_new_order():
    """Prevents candidates from keeping the places of the file while events move: each must see just what now precedes it."""
    log = make_log([8], [0])
    data = dataset(log, "order", max_history=8, shuffle_ties=True)
    orders = set()
    for epoch in range(5):
        seen = seen_by_each(data, epoch)
        assert sorted(len(events) for events in seen.values()) == list(range(8))
        assert all(
            set(one) < set(two) or set(two) < set(one) for one in seen.values() for two in seen.values() if one != two
        )
        orders.add(tuple(sorted(seen, key=lambda row: len(seen[row]))))
    assert len(orders) == 5


@settings(max_examples=30, deadline=None)
@given(users, gaps, st.integers(0, 3), st.integers(2, 6))
def test_gaps_of_shuffled_ties_say_nothing_of_the_files_order(users, gaps, epoch, max_history):
    """Prevents the event that the file has first in a tie from being known by its gap wherever it comes to stand."""
    log = make_log(users, gaps)
    log.event_features["time_gap"] = time_gap(log)
    data = dataset(log, max_history=max_history, shuffle_ties=True)
    data.set_epoch(epoch)
    for i in range(len(data)):
        window, start = data[i], int(data.spans(np.array([i])).start[0])
        own = log.time[log.offsets[data.spans(np.array([i])).user[0]] :][start:]
        seen = log.time[window["item_ids"] - 2]  # of the events in their new order
        before = log.time[log.offsets[data.spans(np.array([i])).user[0]] + start - 1] if start else np.nan
        expected = ((np.log1p(np.diff(seen, prepend=before)) - 8) / 4).astype(np.float32)
        assert np.array_equal(seen, own[: len(seen)])
        assert np.array_equal(window["event_features"]["time_gap"], expected, equal_nan=True)


def test_epochs_draw_other_orders():
    """Prevents the order of a basket's lines in the file from being memorised."""
    data = dataset(make_log([12], [0]), "order", max_history=12, shuffle_ties=True)
    orders = set()
    for epoch in range(5):
        data.set_epoch(epoch)
        orders.add(tuple(data[0]["item_ids"]))
    assert len(orders) == 5


def test_visible_before_counts_a_persons_past():
    """Prevents a frozen view from seeing events at or after its cut-off."""
    log = make_log([3, 2], [1])  # times 1 2 3 | 4 5
    assert log.visible_before(np.array([2.0, 3.0, 9.0, 4.0, 4.5])).tolist() == [1, 2, 3, 0, 1]


def test_a_hidden_view_is_not_asked_what_comes_next():
    """Prevents next-item training from a stale state."""
    log = make_log([3], [1])
    views = Candidates(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0]), np.array([0, 1, 2, 3]))
    data = SequenceDataset(log, views, ["y"], None, 5, own_view_tasks=("y",))
    labels = np.concatenate([data[i]["labels"]["y"] for i in range(len(data))])
    assert np.isnan(labels).sum() == 1
    assert data.own_view.sum() == 3


def test_reading_a_window_does_not_change_the_log():
    """Prevents labels masked for one view from being lost to all others."""
    log = make_log([3], [1])
    views = Candidates(np.array([2, 2]), np.array([2, 0]), np.array([2, 3]))
    data = SequenceDataset(log, views, ["y"], None, 5, own_view_tasks=("y",))
    for _ in range(2):
        assert np.isnan(data[0]["labels"]["y"]).tolist() == [True, False]
    assert not np.isnan(log.labels).any()


def test_no_candidates_no_windows():
    """Prevents an empty validation part from breaking the evaluation."""
    log, nothing = make_log([3], [1]), np.zeros(0, dtype=np.int64)
    data = SequenceDataset(log, Candidates(nothing, nothing), ["y"])
    assert (len(data), data.lengths, data.num_candidates) == (0, [], 0)


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([None, "line"]))
def test_a_log_is_sorted_whatever_the_file(random, order):
    """Prevents histories from depending on the order of rows in a file that is not sorted."""
    rows = random.sample(range(12), 12)
    table = {"user_id": [r % 3 for r in rows], "item_id": rows, "timestamp": [r // 6 for r in rows], "line": rows}
    columns = {"order": order} if order else {"feedback": ["line"]}
    log = PolyRecProcessor.fit(table, tasks=[{"name": "next", "head": "retrieval"}], columns=columns).encode_events(
        table
    )
    assert log.row[np.argsort(log.order)].tolist() == sorted(
        range(12), key=lambda i: (rows[i] // 6, rows[i] if order else i)
    )
    for p, name in enumerate(log.user_ids.to_pylist()):
        own = [i for i in range(12) if rows[i] % 3 == name]
        expected = sorted(own, key=lambda i: (rows[i] // 6, rows[i] if order else i))
        assert log.row[log.offsets[p] : log.offsets[p + 1]].tolist() == expected
        assert (log.item[log.offsets[p] : log.offsets[p + 1]] - 2).tolist() == [rows[i] for i in expected]


def test_bad_arguments_are_refused():
    """Prevents a stride beyond the window from skipping candidates, and a misspelt rule for ties."""
    log = make_log([2], [1])
    with pytest.raises(ValueError, match="stride"):
        dataset(log, stride=6)
    with pytest.raises(ValueError, match='"strict"'):
        log.visible("loose")


# ------------------------------------------------------------------ one view of an event per epoch
@settings(max_examples=40, deadline=None)
@given(users, gaps, st.integers(1, 6), st.floats(0, 1), st.floats(0, 4), st.booleans(), st.integers(0, 3))
def test_every_event_is_asked_in_one_view(users, gaps, max_history, share, delay, shuffle_ties, epoch):
    """Prevents an epoch from asking an event twice or not at all when its two views lie in different windows."""
    log = make_log(users, gaps)
    both = two_views(log, delay, max_history, shuffle_ties=shuffle_ties)
    data = two_views(log, delay, max_history, shuffle_ties=shuffle_ties, delayed_share=share)
    found = windows(data, epoch)
    assert sorted(joined(found, "candidate_ids") - 2) == list(range(len(log)))
    seen = seen_by_each(both, epoch)
    for window in found:
        rows = window["candidate_rows"]
        assert np.array_equal(data.candidates.event[rows] + 2, window["candidate_ids"])
        assert np.array_equal(window["candidate_features"]["statistics"][:, 0], data.candidates.statistic[rows])
        for row, position in zip(rows, window["candidate_positions"], strict=True):
            assert (window["item_ids"][:position] - 2).tolist() == seen[row]
        assert len(window["item_ids"]) == window["candidate_positions"].max(initial=0)  # no event is read for nobody


def test_views_are_drawn_anew_in_their_share():
    """Prevents an epoch from repeating the last one's choice, and the share from being that of the other view."""
    log = make_log([50] * 40, [1])
    data = two_views(log, 3.0, 50, delayed_share=0.3)
    drawn = []
    for epoch in range(4):
        rows = joined(windows(data, epoch), "candidate_rows")
        drawn.append(set(data.candidates.event[rows[~data.own_view[rows]]]))
    assert all(abs(len(d) / len(log) - 0.3) < 0.04 for d in drawn)
    assert abs(len(drawn[0] & drawn[1]) / len(log) - 0.09) < 0.03  # independent from epoch to epoch
    other_seed = two_views(log, 3.0, 50, delayed_share=0.3, seed=1)
    rows = joined(windows(other_seed), "candidate_rows")
    assert set(data.candidates.event[rows[~data.own_view[rows]]]) != drawn[0]
    assert abs(sum(data.lengths) / sum(two_views(log, 3.0, 50).lengths) - 0.5) < 0.1  # an epoch costs as without delay


def test_a_window_whose_candidates_are_asked_elsewhere_is_empty_and_collates():
    """Prevents a window without questions from breaking the batch, or from costing as much as one with them."""
    from polyrec import PolyRecCollator

    log = make_log([4], [1])
    data = two_views(log, 2.0, 2, delayed_share=0.0)
    alone = SequenceDataset(
        log,
        Candidates(np.array([3, 3]), np.array([3, 0]), np.array([3, 7])),
        ["y"],
        np.zeros((8, 1)),
        2,
        delayed_share=0.0,
    )
    empty = [w for w in windows(alone) if not len(w["candidate_ids"])]
    assert len(empty) == 1
    assert len(empty[0]["item_ids"]) == 0
    batch = PolyRecCollator()([*windows(data), *empty])
    assert batch["candidate_rows"][-1].tolist() == [-1] * batch["candidate_ids"].shape[1]
    assert batch["labels"]["y"][-1].isnan().all()


def test_views_that_cannot_be_chosen_from_are_refused():
    """Prevents three views of one event from being asked with a chance nobody stated."""
    log = make_log([3], [1])
    views = Candidates(np.array([1, 1, 1]), np.array([1, 0, 0]), np.array([1, 4, 5]))
    with pytest.raises(ValueError, match="event 1 of the log occurs 2 times in one kind of view"):
        SequenceDataset(log, views, ["y"], delayed_share=0.5)
    with pytest.raises(ValueError, match=r"delayed_share is 2; it must be in \[0, 1\]"):
        two_views(log, 1.0, delayed_share=2)


# ------------------------------------------------------------------ windows without times
@pytest.mark.parametrize("shuffle_ties", [False, True])
def test_a_share_of_windows_has_no_times(shuffle_ties):
    """Prevents a model from meeting unknown gaps for the first time in a request, and from losing more than those."""
    log = make_log([20] * 60, [1])
    log.event_features["time_gap"] = time_gap(log)
    statistics = np.random.default_rng(0).random((len(log), 3)).astype(np.float32)
    options = {"statistics": statistics, "max_history": 5, "shuffle_ties": shuffle_ties}
    plain = dataset(log, **options)
    hidden = dataset(log, **options, untimed=Untimed(0.3, ("time_gap", "hour"), np.array([0, 2])))
    drawn = []
    for epoch in range(2):
        whole, found = windows(plain, epoch), windows(hidden, epoch)
        drawn.append([bool((w["event_features"]["hour"] == 0).all()) and len(w["item_ids"]) > 1 for w in found])
        for without, one, other in zip(drawn[-1], whole, found, strict=True):
            if without:
                assert np.isnan(other["event_features"].pop("time_gap")).all()
                values = one["candidate_features"]["statistics"].copy()
                values[:, [0, 2]] = np.nan
                one["candidate_features"]["statistics"] = values
                del one["event_features"]["time_gap"], one["event_features"]["hour"], other["event_features"]["hour"]
            assert same_windows(one, other)
    assert all(abs(np.mean(d) - 0.3) < 0.08 for d in drawn)
    assert drawn[0] != drawn[1]
    assert all(same_windows(a, b) for a, b in zip(windows(hidden.fixed()), windows(plain.fixed()), strict=True))
    # The same when windows are read at once.
    one, other = (PolyRecCollator()(w) for w in (hidden.__getitems__([3, 0, 7, 8]), [hidden[i] for i in (3, 0, 7, 8)]))
    for key in ("event_features", "candidate_features"):
        for name, value in other[key].items():
            assert np.array_equal(one[key][name], value, equal_nan=value.is_floating_point()), name


# ------------------------------------------------------------------ copies
def test_other_candidates_keep_every_option():
    """Prevents `with_candidates` from asking stale states what comes next, or from losing what training draws."""
    log = make_log([6], [0, 1], labels=np.array([[0], [1], [0], [0], [1], [0]], dtype=np.float32))
    options = {
        "shuffle_ties": True, "seed": 4, "own_view_tasks": ("y",), "delayed_share": 0.5, "keep_negatives": {"y": 0.5},
        "transform": Mask(0.5), "max_history": 4, "stride": 2,
    }  # fmt: skip
    data = two_views(log, 1.0, **options)
    other = data.with_candidates(data.candidates, data.statistics)
    for name, value in options.items():
        assert getattr(other, name) == value, name
    assert all(same_windows(a, b) for a, b in zip(windows(data, 2), windows(other, 2), strict=True))
    assert data.with_candidates(data.candidates, data.statistics, stride=4).stride == 4


def test_nothing_is_drawn_in_a_fixed_copy():
    """Prevents an evaluation from reading changed histories or from leaving questions out; the original goes on drawing."""
    log = make_log([9, 5], [0, 1], labels=np.resize([0, 1], 14).astype(np.float32)[:, None])
    training = {"shuffle_ties": True, "delayed_share": 0.5, "keep_negatives": {"y": 0.2}, "transform": Mask(0.5)}
    data = two_views(log, 1.0, **training)
    fixed, plain = windows(data.fixed(), 3), windows(two_views(log, 1.0), 3)
    assert all(same_windows(a, b) for a, b in zip(fixed, plain, strict=True))
    assert data.transform is not None


def test_labels_are_those_that_are_asked():
    """Prevents an evaluation of a training set from counting questions that its own-view tasks never ask."""
    log = make_log([3], [1])
    views = Candidates(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0]), np.array([0, 1, 2, 3]))
    data = SequenceDataset(log, views, ["y"], None, 5, own_view_tasks=("y",))
    asked = {
        row: label for w in windows(data) for row, label in zip(w["candidate_rows"], w["labels"]["y"], strict=True)
    }
    assert np.array_equal(data.labels()[:, 0], [asked[row] for row in range(4)], equal_nan=True)
    assert np.isnan(data.labels()).sum() == 1


# ------------------------------------------------------------------ weights, past
def test_weights_go_with_their_candidates():
    """Prevents the weight of one row from reaching another row's label, whatever order the windows ask in."""
    log = make_log([7, 3], [0, 1], sample_weight={"y": np.arange(10, dtype=np.float32) + 0.5})
    for window in windows(dataset(log, "order", max_history=3, shuffle_ties=True)):
        assert np.array_equal(window["sample_weight"]["y"], window["labels"]["y"] + 0.5)
    assert "sample_weight" not in windows(dataset(make_log([2], [1])))[0]


@settings(max_examples=30, deadline=None)
@given(users, gaps, st.integers(1, 6), st.integers(0, 4), st.data())
def test_the_past_comes_before_the_first_event(users, gaps, max_history, length, data):
    """Prevents events of the past from pushing out those of the log, from reaching other people, or from moving positions."""
    log = make_log(users, gaps)
    held = data.draw(st.lists(st.integers(0, 5), min_size=len(users), max_size=len(users)))
    offsets = np.concatenate([[0], np.cumsum(held)])
    item = 1000 + np.arange(offsets[-1])
    log.prior_history = PriorHistory(offsets, item, {}, {"stars": item}, length)
    plain = seen_by_each(dataset(dataclasses.replace(log, prior_history=None), max_history=max_history))
    with_past = dataset(log, max_history=max_history)
    for i, window in enumerate(windows(with_past)):
        assert len(window["item_ids"]) <= max_history
        assert with_past.lengths[i] == max(len(window["item_ids"]), len(window["candidate_ids"]))
        old = window["item_ids"] >= 1000
        assert np.array_equal(window["event_features"]["stars"], window["item_ids"] - 2 * ~old)
        assert (window["event_features"]["hour"][old] == 0).all()
        user = window["user_features"]["age"] // 100
        assert np.isin(
            window["item_ids"][old], item[offsets[user] : offsets[user + 1]][-length:] if length else []
        ).all()
        for row, position in zip(window["candidate_rows"], window["candidate_positions"], strict=True):
            seen = window["item_ids"][:position]
            assert (seen[seen < 1000] - 2).tolist() == plain[row]
            assert (np.diff((seen >= 1000).astype(int)) <= 0).all()
