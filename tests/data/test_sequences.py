"""Windows against a naive reading of the log."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrec import PolyRecProcessor
from polyrec.data.sequences import Candidates, EventLog, SequenceDataset


def make_log(people, gaps):
    """A log of people with the given numbers of events; gaps of 0 are ties."""
    person = np.repeat(np.arange(len(people)), people)
    rows = len(person)
    time = np.cumsum(np.resize(gaps, rows)).astype(float)
    return EventLog(
        person=person,
        item=np.arange(rows) + 2,
        time=time,
        order=np.arange(rows),
        row=np.arange(rows),
        user_ids=pa.array(np.arange(len(people))),
        labels=np.arange(rows, dtype=np.float32)[:, None],
        event_features={"stars": np.arange(rows)},
        candidate_features={"hour": np.arange(rows) * 10},
        user_features={"age": np.arange(len(people)) * 100},
    )


def dataset(log, ties="strict", statistics=None, max_history=5, **options):
    """Every event of a log as a candidate of its own."""
    asked = Candidates(np.arange(len(log)), log.visible(ties))
    return SequenceDataset(log, asked, ["y"], statistics, max_history, **options)


people = st.lists(st.integers(1, 12), min_size=1, max_size=5)
gaps = st.lists(st.integers(0, 2), min_size=1, max_size=7)


@settings(max_examples=40, deadline=None)
@given(people, gaps, st.integers(1, 6), st.integers(1, 6), st.sampled_from(["strict", "order"]))
def test_each_candidate_sees_exactly_its_past(people, gaps, max_history, stride, ties):
    """Prevents windows from losing or doubling candidates, from showing the future, and from forgetting the latest events."""
    log = make_log(people, gaps)
    stride = min(stride, max_history)
    statistics = np.arange(len(log), dtype=np.float32)[:, None]
    data = dataset(log, ties, statistics, max_history, stride=stride)
    seen_rows = []
    for i, window in enumerate(data[i] for i in range(len(data))):
        assert len(window["item_ids"]) <= max_history
        assert data.lengths[i] == max(len(window["item_ids"]), len(window["candidate_ids"]))
        assert_rows(window["event_features"], window["item_ids"] - 2, stars=1, hour=10)
        assert_rows(window["candidate_features"], window["candidate_ids"] - 2, hour=10)
        assert window["user_features"] == {"age": 100 * log.person[window["candidate_ids"][0] - 2]}
        assert np.array_equal(data.labels()[window["candidate_rows"], 0], window["labels"]["y"])
        assert (data.people()[window["candidate_rows"]] * 100 == window["user_features"]["age"]).all()
        for item, position, label in zip(
            window["candidate_ids"], window["candidate_positions"], window["labels"]["y"], strict=True
        ):
            row = item - 2
            assert label == row
            own = [r for r in range(len(log)) if log.person[r] == log.person[row]]
            past = [r for r in own if (log.time[r] < log.time[row] if ties == "strict" else r < row)]
            visible = window["item_ids"][:position] - 2
            assert visible.tolist() == past[len(past) - len(visible) :]
            assert len(visible) >= min(len(past), max_history - stride)
            seen_rows.append(row)
    assert sorted(seen_rows) == list(range(len(log)))
    assert data.num_candidates == len(log)


def assert_rows(features, rows, **factors):
    """Each feature, and the statistics, are those of the given rows of the log."""
    assert set(features) == {*factors, "statistics"}
    assert features["statistics"][:, 0].tolist() == rows.tolist()
    for name, factor in factors.items():
        assert (features[name] == factor * rows).all(), name


@settings(max_examples=30, deadline=None)
@given(people, gaps, st.integers(1, 6), st.data())
def test_some_candidates_see_the_same_as_among_all(people, gaps, max_history, data):
    """Prevents training and test windows of one log from disagreeing about what a candidate saw."""
    log = make_log(people, gaps)
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(log) - 1), min_size=1))))
    some = SequenceDataset(log, Candidates(rows, log.visible()[rows]), ["y"], None, max_history)
    seen = seen_by_each(some)
    assert sorted(seen) == rows.tolist()
    everything = seen_by_each(dataset(log, max_history=max_history))
    assert all(everything[row] == events for row, events in seen.items())


def seen_by_each(data):
    """{row of the candidate: rows of the events it sees}."""
    found = {}
    for window in (data[i] for i in range(len(data))):
        for item, position in zip(window["candidate_ids"], window["candidate_positions"], strict=True):
            found[item - 2] = (window["item_ids"][:position] - 2).tolist()
    return found


@settings(max_examples=40, deadline=None)
@given(people, gaps, st.lists(st.integers(-1, 30), min_size=1, max_size=5))
def test_visible_counts_are_the_naive_loop(people, gaps, cutoffs):
    """Prevents an off-by-one between people, at ties or at a cut-off."""
    log = make_log(people, gaps)
    cutoff = np.resize(np.array(cutoffs, dtype=float), len(log))
    strict, ordered, before = log.visible("strict"), log.visible("order"), log.visible_before(cutoff)
    for r in range(len(log)):
        own = [q for q in range(len(log)) if log.person[q] == log.person[r]]
        assert strict[r] == sum(log.time[q] < log.time[r] for q in own)
        assert ordered[r] == sum(q < r for q in own)
        assert before[r] == sum(log.time[q] < cutoff[r] for q in own)


@settings(max_examples=20, deadline=None)
@given(people, gaps, st.integers(0, 3))
def test_shuffled_ties_stay_in_their_time(people, gaps, epoch):
    """Prevents tie shuffling from moving an event across times, and from asking about an event that is visible."""
    log = make_log(people, gaps)
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


@settings(max_examples=20, deadline=None)
@given(gaps, st.integers(0, 3), st.sampled_from(["strict", "order"]))
def test_shuffled_ties_ask_about_every_event_once(gaps, epoch, ties):
    """Prevents shuffling from asking about one event of a basket twice and never about another."""
    data = dataset(make_log([7, 4], gaps), ties, max_history=8, shuffle_ties=True)
    data.set_epoch(epoch)
    asked = np.concatenate([data[i]["candidate_ids"] for i in range(len(data))])
    assert sorted(asked - 2) == list(range(11))


def test_epochs_draw_other_orders():
    """Prevents the order of a basket's lines in the file from being learnt by heart."""
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
