"""Windows against a naive reading of the log, and padding."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrec.data.collator import PolyRecCollator
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
    )


people = st.lists(st.integers(1, 12), min_size=1, max_size=5)
gaps = st.lists(st.integers(0, 2), min_size=1, max_size=7)


@settings(max_examples=40, deadline=None)
@given(people, gaps, st.integers(1, 6), st.integers(1, 6), st.sampled_from(["strict", "order"]))
def test_each_candidate_sees_exactly_its_past(people, gaps, max_history, stride, ties):
    """Prevents windows from losing or doubling candidates, from showing the future, and from forgetting the latest events."""
    log = make_log(people, gaps)
    stride = min(stride, max_history)
    asked = np.arange(len(log))
    data = SequenceDataset(log, Candidates(asked, log.visible(ties)), ["y"], None, max_history, stride)
    seen_rows = []
    for window in (data[i] for i in range(len(data))):
        assert len(window["item_ids"]) <= max_history
        assert np.array_equal(window["event_features"]["stars"] + 2, window["item_ids"])
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
    assert sorted(seen_rows) == asked.tolist()


@settings(max_examples=20, deadline=None)
@given(people, gaps, st.integers(0, 3))
def test_shuffled_ties_stay_in_their_time(people, gaps, epoch):
    """Prevents tie shuffling from moving an event across times, and from asking about an event that is visible."""
    log = make_log(people, gaps)
    plain = SequenceDataset(log, Candidates(np.arange(len(log)), log.visible("order")), ["y"], None, 5)
    shuffled = SequenceDataset(log, plain.candidates, ["y"], None, 5, shuffle_ties=True)
    shuffled.set_epoch(epoch)
    for i in range(len(plain)):
        before, after = plain[i], shuffled[i]
        assert np.array_equal(log.time[before["item_ids"] - 2], log.time[after["item_ids"] - 2])
        assert np.array_equal(log.time[before["candidate_ids"] - 2], log.time[after["candidate_ids"] - 2])
        for item, position in zip(after["candidate_ids"], after["candidate_positions"], strict=True):
            assert item not in after["item_ids"][:position]
        assert np.array_equal(after["candidate_ids"] - 2, after["labels"]["y"])
        assert np.array_equal(shuffled[i]["item_ids"], after["item_ids"])  # one order per epoch


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


def test_padding_is_marked_as_missing():
    """Prevents padded candidates from counting as labels, and padded numbers from passing for zeros."""
    log = make_log([1, 4], [1])
    log.candidate_features["price"] = np.ones(len(log), dtype=np.float32)
    data = SequenceDataset(log, Candidates(np.arange(5), log.visible()), ["y"], None, 5)
    batch = PolyRecCollator(pad_to_multiple_of=4)([data[0], data[1]])
    assert batch["item_ids"].shape == (2, 4)
    assert batch["candidate_ids"].shape == (2, 4)
    padding = batch["candidate_ids"] == 0
    assert padding.sum() == 3
    assert torch.isnan(batch["labels"]["y"][padding]).all()
    assert torch.isnan(batch["candidate_features"]["price"][padding]).all()
    assert (batch["candidate_rows"][padding] == -1).all()


def test_bad_arguments_are_refused():
    """Prevents a stride beyond the window from skipping candidates, and a misspelt rule for ties."""
    log = make_log([2], [1])
    with pytest.raises(ValueError, match="stride"):
        SequenceDataset(log, Candidates(np.arange(2), log.visible()), ["y"], None, 5, stride=6)
    with pytest.raises(ValueError, match='"strict"'):
        log.visible("loose")
