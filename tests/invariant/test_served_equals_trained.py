"""What a request shows a model must be what training showed it: features of `resume` on the log with the row appended."""

from __future__ import annotations

import tempfile
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import tiny_config

from polyrec import PolyRecCollator, PolyRecForRecommendation, PolyRecProcessor
from polyrec.data.event_log import Candidates
from polyrec.data.sequences import SequenceDataset

TASKS = [
    {"name": "next_item", "head": "retrieval", "options": {"trending": [[20.0, 50.0], [200.0, 5.0]]}},
    {"name": "like", "head": "binary", "label": "rating >= 4"},
    {"name": "rating", "head": "regression"},
]
STATISTICS = {
    "log": [
        {"keys": ["item"], "baseline": "context", "count": True, "gap": True},
        {"keys": ["item"], "baseline": "item+user", "half_life": 30.0},
        {"keys": ["item.genre"], "baseline": "user", "recent": 3},
        {"keys": ["context.surface"], "baseline": "global", "count": True},
        {"keys": ["user"], "baseline": "item", "count": True, "gap": True},
        {"keys": ["user"], "baseline": "item", "half_life": 20.0, "count": True},
        {"keys": ["user"], "baseline": "context", "recent": 2},
        {"keys": ["user", "item.genre"], "baseline": "item+user", "count": True, "gap": True},
        {"keys": ["user", "item"], "baseline": "none", "count": True},
        {"keys": ["user.age", "item"], "baseline": "item"},
    ],
    "context": [["context.surface"]],
    "targets": ["seconds"],
}
ITEMS = {"item_id": np.arange(6), "genre": ["a", "b", "c", "a", "b", "c"]}
USERS = {"user_id": np.arange(4), "age": [20.0, 30.0, 40.0, 50.0]}
COLUMNS = {
    "feedback": {"rating": "numeric", "seconds": "numeric"},
    "context": {"surface": "categorical"},
    "prior_history": {"watched": [], "liked": ["seconds"]},
    "time_zone": 0,
}
PAST = {"user_id": [0, 2], "watched": [[1, 5], [3]], "liked": [[5], []]}
SURFACE = {"surface": "home"}


def log_of(rows: int, span: int, seed: int) -> pd.DataFrame:
    """Few users, items and times, so that ties, repeats and missing labels are common."""
    random = np.random.default_rng(seed)
    rating = random.integers(1, 6, rows).astype(float)
    rating[random.random(rows) < 0.2] = np.nan
    seconds = random.exponential(5.0, rows)
    seconds[random.random(rows) < 0.2] = np.nan
    log = pd.DataFrame(
        {
            "user_id": random.integers(0, 6, rows),  # 4 and 5 are in no table of users
            "item_id": random.integers(0, 8, rows),  # 6 and 7 are in no catalog
            "timestamp": 1000.0 + random.integers(0, span, rows) * 7.25,
            "rating": rating,
            "surface": random.choice(["home", "search", None], rows),
            "seconds": seconds,
        }
    )
    # A past table is read for the users of a log, so those it tells of are in the log from the beginning.
    first = pd.DataFrame({"user_id": PAST["user_id"], "item_id": 1, "timestamp": 990.0, "rating": 3.0, "seconds": 2.0})
    return pd.concat([first, log], ignore_index=True)


@cache
def fitted() -> tuple[PolyRecProcessor, PolyRecForRecommendation]:
    log = log_of(80, 60, 0)
    processor = PolyRecProcessor.fit(
        log, ITEMS, USERS, tasks=TASKS, columns=COLUMNS, max_history=8, statistics=STATISTICS
    )
    processor.split(log, prior_history=PAST)
    torch.manual_seed(0)
    return processor, PolyRecForRecommendation(tiny_config(processor)).eval()


def reference(log: pd.DataFrame, user: int, time: float) -> dict[str, Any]:
    """The window of training about every item, asked of a user at a time, by `resume` of the log with those rows."""
    processor, _ = fitted()
    items = np.arange(6)
    asked = pd.DataFrame({"user_id": user, "item_id": items, "timestamp": time, "surface": "home"})
    whole, counted = processor.resume(pd.concat([log, asked], ignore_index=True), PAST)
    rows = np.flatnonzero(whole.row >= len(log))
    rows = rows[np.argsort(whole.row[rows])]
    candidates = Candidates(rows, whole.visible()[rows])
    names = [task.name for task in processor.tasks]
    trending = processor.evaluation_set(whole, whole.row >= len(log), counted).trending
    data = SequenceDataset(whole, candidates, names, counted, processor.max_history, stride=1, trending=trending)
    assert len(data) == 1
    return data[0]


def serve(processor: PolyRecProcessor, history: Any, **request: Any) -> dict[str, Any]:
    window = processor.request(history, np.arange(6) + 2, context=SURFACE, **request)
    del window["history_items"]
    return window


def predictions(window: dict[str, Any]) -> dict[str, np.ndarray]:
    batch = PolyRecCollator()([window])
    with torch.no_grad():
        logits = fitted()[1](**{k: v for k, v in batch.items() if k not in ("labels", "candidate_rows")}).logits
    return {name: value.numpy() for name, value in logits.items()}


def assert_equal(window: dict[str, Any], expected: dict[str, Any]) -> None:
    for key in ("item_ids", "candidate_ids", "candidate_positions", "candidate_times"):
        assert np.array_equal(window[key], expected[key]), key
    for key in ("event_features", "candidate_features", "user_features"):
        assert window[key].keys() == expected[key].keys()
        for name, values in expected[key].items():
            found = (key, name, fitted()[0].statistics.names if name == "statistics" else None)
            np.testing.assert_allclose(window[key][name], values, rtol=1e-6, atol=1e-6, err_msg=str(found))
    for name, values in predictions(expected).items():
        np.testing.assert_allclose(predictions(window)[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


def restarted(processor: PolyRecProcessor) -> PolyRecProcessor:
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        return PolyRecProcessor.from_pretrained(folder)


def history_of(log: pd.DataFrame, user: int) -> list[dict[str, Any]]:
    own = log[log.user_id == user].sort_values("timestamp", kind="stable").drop(columns="user_id").astype(object)
    return own.where(own.notna(), None).to_dict("records")


def attributes_of(user: int) -> dict[str, Any]:
    return {"age": USERS["age"][user]} if user < 4 else {}


logs = st.tuples(st.integers(1, 40), st.sampled_from([4, 40]), st.integers(0, 2**32 - 1))
timestamps = st.sampled_from([0.5, 7.25, 1e5])


@settings(max_examples=6, deadline=None)
@given(logs, st.integers(0, 6), timestamps, st.booleans())
def test_stored_users_are_served_as_trained(log, user, later, restart):
    """Prevents statistics, residuals or gaps of a user with stored events from being others than in training."""
    events = log_of(*log)
    now = events.timestamp.max() + later
    expected, processor = reference(events, user, now), fitted()[0]
    processor.resume(events, PAST)
    processor = restarted(processor) if restart else processor
    # Attributes of users without any event are in no file.
    attributes = attributes_of(user) if restart and not (events.user_id == user).any() else None
    assert_equal(serve(processor, None, user_id=user, user=attributes, time=now), expected)


@settings(max_examples=6, deadline=None)
@given(logs, st.sampled_from([1, 3, 4, 5, 6]), timestamps, st.booleans())
def test_histories_that_the_log_knows_are_served_as_trained(log, user, later, restart):
    """Prevents a history sent along from counting a second time in what the log has counted, or against today's rates."""
    events = log_of(*log)
    now = events.timestamp.max() + later
    expected, processor = reference(events, user, now), fitted()[0]
    processor.resume(events, PAST)
    processor = restarted(processor) if restart else processor
    assert_equal(serve(processor, history_of(events, user), user=attributes_of(user), time=now), expected)


@settings(max_examples=6, deadline=None)
@given(logs, st.integers(0, 6), timestamps, st.integers(0, 40), st.integers(1, 4), st.booleans())
def test_updates_are_served_as_trained(log, user, later, cut, batches, restart):
    """Prevents events that came by `update`, in one call or several, from being counted otherwise than by `resume`."""
    events = log_of(*log)
    now = events.timestamp.max() + later
    known = events.timestamp <= events.timestamp.min() + 7.25 * cut
    expected, processor = reference(events, user, now), fitted()[0]
    processor.resume(events[known], PAST)
    processor = restarted(processor) if restart else processor
    if restart:
        processor.extend(users=USERS)  # attributes of users are not saved with a processor
    times = np.unique(events.timestamp[~known])
    for chunk in np.array_split(times, max(min(batches, len(times)), 1)):
        if not len(chunk):
            continue
        processor.update(events[events.timestamp.isin(chunk)])
    processor = restarted(processor) if restart else processor
    assert_equal(serve(processor, None, user_id=user, user=attributes_of(user), time=now), expected)


@settings(max_examples=6, deadline=None)
@given(logs, st.integers(0, 6), timestamps, st.integers(0, 40), st.booleans())
def test_later_events_of_a_user_are_served_as_trained(log, user, later, cut, with_id):
    """Prevents what a user has done since the last update from counting twice, or not for its items."""
    events = log_of(*log)
    known = events.timestamp <= events.timestamp.min() + 7.25 * cut
    if not with_id and user in PAST["user_id"]:
        user = 5  # a history sent along says nothing of the time before the log
    so_far = events[known | (events.user_id == user)]
    now = so_far.timestamp.max() + later
    expected, processor = reference(so_far, user, now), fitted()[0]
    processor.resume(events[known], PAST)
    if with_id:
        window = serve(processor, history_of(events[~known], user), user_id=user, time=now)
    else:
        window = serve(processor, history_of(so_far, user), user=attributes_of(user), time=now)
    assert_equal(window, expected)


@settings(max_examples=8, deadline=None)
@given(logs, st.integers(0, 40), st.lists(st.integers(0, 6), min_size=2, max_size=7), st.randoms())
def test_requests_made_together_are_what_each_is_alone(log, cut, users, random):
    """Prevents a user's statistics, snapshots, attributes or times from leaking into another request of a batch."""
    events = log_of(*log)
    known = events.timestamp <= events.timestamp.min() + 7.25 * cut
    processor = fitted()[0]
    processor.resume(events[known], PAST)
    latest, requests = events.timestamp.max(), []
    for user in users:
        later, whole = history_of(events[~known], user), history_of(events, user)
        requests.append(
            random.choice(
                [
                    {"user_id": user},
                    {"history": later, "user_id": user, "time": latest + 9.5},
                    {"history": whole, "user": attributes_of(user), "context": SURFACE},
                    {"history": [event["item_id"] for event in whole]},
                    {"history": [str(event["item_id"]) for event in whole], "context": {"surface": None}},
                    {"user_id": f"new {user}"},
                    {},
                ]
            )
        )
    items = [np.array(random.choices(range(2, 8), k=random.randint(1, 5))) for _ in requests]
    for found, request, rows in zip(processor.request_many(requests, items), requests, items, strict=True):
        alone = processor.request(request.pop("history", None), rows, **request)
        assert_same(found, {key: values for key, values in alone.items() if key != "candidate_rows"})


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """Every array of a window, bit by bit."""
    if isinstance(expected, dict):
        for key, values in expected.items():
            assert_same(found[key], values, f"{where}/{key}")
    else:
        assert np.array_equal(found, expected, equal_nan=np.asarray(expected).dtype.kind == "f"), where


def test_a_history_without_times_has_no_gaps():
    """Prevents gaps of one second from being made up, in inputs, in statistics and in the hour of an event."""
    processor, events = fitted()[0], log_of(40, 40, 1)
    processor.resume(events, PAST)
    timed = history_of(events, 5)
    untimed = [{name: value for name, value in event.items() if name != "timestamp"} for event in timed]
    assert len(timed) > 2
    now = 1500.0
    known, found = (serve(processor, history, time=now) for history in (timed, untimed))
    assert np.isnan(found["event_features"]["time_gap"]).all()
    assert (found["event_features"]["hour"] == 0).all()  # the code of a missing value
    assert (found["candidate_features"]["hour"] > 1).all()  # the request has a time
    names = np.array(processor.statistics.names)
    of_time = np.array([n.startswith("user") and ("half" in n or n.endswith("seconds_since")) for n in names])
    of_time &= ~np.char.startswith(names, "user.age")
    statistics = found["candidate_features"]["statistics"]
    assert np.isnan(statistics[:, of_time]).all()
    counts = np.char.endswith(names, "log_count") & ~of_time
    assert np.array_equal(statistics[:, counts], known["candidate_features"]["statistics"][:, counts], equal_nan=True)
    for value in predictions(found).values():
        assert np.isfinite(value).all()


def test_requests_that_cannot_be_answered_as_of_their_time_say_so():
    """Prevents an answer about the past from being given with what was counted since, without a word."""
    processor, events = fitted()[0], log_of(40, 40, 1)
    processor.resume(events, PAST)
    latest, items = events.timestamp.max(), np.array([2])
    with pytest.raises(ValueError, match=f"time {latest:g} is not after {latest:g}, the latest event counted"):
        processor.request(None, items, user_id=1, time=latest)
    with pytest.warns(UserWarning, match="the latest event counted: running statistics are those of now"):
        processor.request(None, items, time=latest)
    own = history_of(events, 1)
    with pytest.raises(ValueError, match="history: row 0 has time .*, the latest stored event of this user: beside"):
        processor.request(own[-1:], items, user_id=1)
    with tempfile.TemporaryDirectory() as folder:
        stored, processor.stored_events = processor.stored_events, None
        processor.save_pretrained(folder)
        shared = PolyRecProcessor.from_pretrained(folder)
    processor.stored_events = stored
    with pytest.raises(ValueError, match="this processor has no stored events .*`resume` the log first"):
        shared.request(None, items, user_id=1)
    shared.update(events.assign(timestamp=events.timestamp + 1e5))
    assert (
        shared.request(own, items)["item_ids"].tolist()
        == processor.items.rows(pa.array([event["item_id"] for event in own[-8:]])).tolist()
    )
