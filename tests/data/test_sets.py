"""Logs without times: users have sets of events, whose order in a file says nothing, and no row knows itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from polyrec import PolyRecProcessor
from polyrec.core.schema import RESIDUALS, STATISTICS
from polyrec.data.splits import LeakageError
from polyrec.data.training_rows import TrainingSetSketch

TASKS: list[Any] = [{"name": "next_item", "head": "retrieval"}, {"name": "like", "head": "binary"}]
COLUMNS = {"time": None, "feedback": {"like": "numeric", "row": "numeric"}}
COUNTED = {"log": [{"keys": ["item"], "baseline": "none", "shrinkage": 0.0}, {"keys": ["user"], "baseline": "item"}]}
PART = {"statistics": COUNTED, "max_history": 8, "verbose": False}


def log_of(rows: int = 240, users: int = 12, items: int = 15, seed: int = 0) -> pd.DataFrame:
    """Labels are coins; each row has a number of its own, though several are of one user and item."""
    random = np.random.default_rng(seed)
    table = {"user_id": random.integers(0, users, rows), "item_id": [f"i{n}" for n in random.integers(0, items, rows)]}
    return pd.DataFrame(table | {"like": random.integers(0, 2, rows), "row": np.arange(rows)})


def fitted(table: pd.DataFrame, **options: Any):
    processor = PolyRecProcessor.fit(table, tasks=TASKS, columns=COLUMNS, **PART | options)
    return processor, processor.split(table)


@pytest.fixture(scope="module")
def table():
    return log_of()


@pytest.fixture(scope="module")
def split(table):
    return fitted(table)


def rows_of(part) -> np.ndarray:
    return part.log.row[part.candidates.event]


def flat(window: dict[str, Any], path: str = "") -> dict[str, np.ndarray]:
    return {
        name: array
        for key, value in window.items()
        for name, array in (flat(value, f"{key}.") if isinstance(value, dict) else {path + key: value}).items()
    }


def test_the_order_of_the_file_changes_nothing(table, split):
    """Prevents a split, an order of training or a count that follows where rows stand in a file."""
    processor, parts = split
    other, changed = fitted(table.sample(frac=1, random_state=3))
    for mine, its in zip(parts, changed, strict=True):
        mine.set_epoch(2), its.set_epoch(2)
        assert len(mine) == len(its) > 0
        for index in range(len(mine)):
            one, two = flat(mine[index]), flat(its[index])
            for name in one:
                np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    np.testing.assert_array_equal(processor.item_vectors(4), other.item_vectors(4))
    for one, two in zip(processor.item_neighbours("like", 4), other.item_neighbours("like", 4), strict=True):
        np.testing.assert_array_equal(one.values, two.values)
    assert processor.label_summary == other.label_summary


def test_shares_of_every_user_are_held_out(table, split):
    """Prevents users without a training row, and a held-out part of a few users alone."""
    parts = split[1]
    assert sorted(np.concatenate([rows_of(part) for part in parts])) == list(range(len(table)))
    user = table["user_id"].to_numpy()
    size = np.bincount(user)
    for part in (parts.valid, parts.test):
        assert (np.abs(np.bincount(user[rows_of(part)], minlength=len(size)) - size / 10) < 1).all()
    few = pd.DataFrame({"user_id": [1, 2, 2, 3, 3, 3], "item_id": list("abcabc"), "like": 1, "row": range(6)})
    processor = PolyRecProcessor.fit(
        few, tasks=TASKS[:1], columns=COLUMNS | {"feedback": {}}, max_history=8, verbose=False
    )
    for seed in range(5):
        trained = rows_of(processor.split(few, fractions=(0.2, 0.4, 0.4), seed=seed).train)
        assert set(few["user_id"][trained]) == {1, 2, 3}
    drawn = [tuple(np.sort(rows_of(split[0].split(table, seed=seed).test))) for seed in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]


def test_training_sees_other_training_rows_and_the_rest_sees_all_of_them(table, split):
    """Prevents a row in its own history, a held-out row in any, and one order that is memorised."""
    parts = split[1]
    trained, user, seen = set(rows_of(parts.train)), table["user_id"].to_numpy(), set()
    scale = fitted(table)[0].event_encoders["event"]["row"].encode
    code = np.asarray(scale(pd.Series(range(len(table))).pipe(lambda s: __import__("pyarrow").array(s)), "row"))
    number = {np.float32(value): row for row, value in enumerate(code)}
    for epoch in range(3):
        parts.train.set_epoch(epoch)
        for part in parts:
            for window in (part[n] for n in range(len(part))):
                events = [number[value] for value in window["event_features"]["row"]]
                assert set(events) <= trained
                assert len(set(events)) == len(events)
                asked = part.log.row[part.candidates.event[window["candidate_rows"]]]
                for row, position in zip(asked, window["candidate_positions"], strict=True):
                    assert row not in events[:position]
                    assert set(user[events[:position]]) <= {user[row]}
                    if part is not parts.train:
                        assert position == len(events) == min((user[list(trained)] == user[row]).sum(), 8)
                    seen.add((row, frozenset(events[:position])))
    most = {row: len([1 for other, _ in seen if other == row]) for row in trained}
    assert np.mean(list(most.values())) > 2  # in three epochs, nearly always three histories


def test_statistics_count_other_training_rows_only(table, split):
    """Prevents a label in its own statistic, and held-out labels in any."""
    processor, parts = split
    log, names = parts.train.log, processor.statistics.names
    label, trained = table["like"].to_numpy()[log.row], np.isin(log.row, rows_of(parts.train))
    expected = np.zeros((len(log), len(names)), dtype=np.float32)
    column = names.index("item-none.like")
    for row in range(len(log)):
        others = trained & (log.item == log.item[row]) & (log.time < log.time[row])
        assert not others[row]
        expected[row, column] = label[others].mean() if others.any() else np.nan
        if not trained[row]:  # all of them
            assert others.sum() == (trained & (log.item == log.item[row])).sum()
    found = processor.statistics.scaler.transform(expected)[:, column]
    for part in parts:
        np.testing.assert_allclose(part.statistics[part.candidates.event, column], found[part.candidates.event], 1e-5)


def test_no_row_tells_its_own_label():
    """Prevents statistics over all rows but one's own: of coins they tell every label, as what the sum lacks."""
    table = log_of(1800, users=40, items=20, seed=1)
    processor, parts = fitted(table)
    log, train = parts.train.log, parts.train.candidates.event
    label, item = log.labels[train, 1].astype(float), log.item[train]
    sums, counts = np.bincount(item, label)[item], np.bincount(item)[item]
    counted = parts.train.statistics[train, processor.statistics.names.index("item-none.like")].astype(float)

    def within_items(values: np.ndarray) -> float:
        known = ~np.isnan(values)
        mean = np.bincount(item[known], values[known], item.max() + 1) / np.bincount(item[known])
        return float(np.corrcoef((values - mean[item])[known], label[known])[0, 1])

    assert within_items((sums - label) / (counts - 1)) < -0.98
    assert abs(within_items(counted)) < 0.08


def test_residuals_of_events_do_not_tell_other_labels_of_their_user():
    """Prevents a visible event from telling the label asked about, by the baseline that it is measured against."""
    table = log_of()
    processor, parts = fitted(table)
    log, user = parts.train.log, 3
    own = np.flatnonzero((log.user_ids.to_numpy()[log.user] == user) & np.isin(log.row, rows_of(parts.train)))
    yes, no = (own[log.labels[own, 1] == value][0] for value in (1, 0))
    changed = table.copy()
    changed.loc[log.row[yes], "like"], changed.loc[log.row[no], "like"] = 0, 1  # the mean of all stays
    after = fitted(changed)[1].train.log
    kept = np.setdiff1d(own, [yes, no])
    np.testing.assert_array_equal(log.row, after.row)
    np.testing.assert_allclose(log.event_features[RESIDUALS][kept], after.event_features[RESIDUALS][kept], atol=1e-6)
    prior, spread = processor.statistics.log.prior[0], processor.statistics.spread["like"]
    trained = np.isin(log.row, rows_of(parts.train))
    for row in own:
        others = trained & (log.item == log.item[row]) & (log.user != log.user[row])
        expected = prior + (log.labels[others, 1] - prior).sum() / (5 + others.sum())
        np.testing.assert_allclose(
            log.event_features[RESIDUALS][row, 0], (log.labels[row, 1] - expected) / spread, rtol=1e-4
        )


def test_a_request_is_what_an_evaluation_shows(split, tmp_path):
    """Prevents served histories and statistics of sets from differing from measured ones, also of a saved processor."""
    processor, parts = split
    processor.save_pretrained(tmp_path)
    for served in (processor, PolyRecProcessor.from_pretrained(tmp_path)):
        for index in range(4):
            window = parts.test[index]
            user = parts.test.log.user_ids[int(parts.test.user_codes()[window["candidate_rows"][0]])].as_py()
            asked = served.request(None, window["candidate_ids"], user_id=user)
            np.testing.assert_array_equal(asked["item_ids"], window["item_ids"])
            np.testing.assert_array_equal(asked["candidate_positions"], window["candidate_positions"])
            for name, values in window["event_features"].items():
                np.testing.assert_allclose(asked["event_features"][name], values, rtol=1e-5, atol=1e-6, err_msg=name)
            told = asked["candidate_features"][STATISTICS]
            np.testing.assert_allclose(told, window["candidate_features"][STATISTICS], rtol=1e-4, atol=1e-5)
        assert len(served.request(["i1", "i2"], np.array([4]))["item_ids"]) == 2


def test_another_split_is_known_to_have_learnt_what_is_judged(table, split):
    """Prevents a teacher of other held-out rows from passing, as places in a drawn order differ between splits."""
    processor, parts = split
    other = processor.split(table, seed=1)
    learnt = TrainingSetSketch.of_examples(other.train, processor.items.ids)
    judged = np.isin(parts.test.log.row, rows_of(parts.test))
    with pytest.raises(LeakageError, match="was trained on"):
        learnt.check(parts.test.log, judged, processor.items.ids)
    TrainingSetSketch.of_examples(parts.train, processor.items.ids).check(parts.test.log, judged, processor.items.ids)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"order": "row"}, {}, "columns.order needs times, and columns.time is None"),
        ({"time_zone": 1}, {}, "columns.time_zone needs times"),
        ({"time": "__row__", "item_time": "row"}, {}, "columns.item_time needs times, and columns.time is '__row__'"),
        ({}, {"statistics": {"log": [{"keys": ["item"], "baseline": "none", "gap": True}]}}, "'item-none' fades or"),
        ({}, {"tasks": [{"name": "n", "head": "retrieval", "options": {"item_age": "first_event"}}]}, "item_age"),
    ],
)
def test_what_needs_times_is_refused(table, columns, options, message):
    """Prevents ages, gaps and hours that are made up."""
    with pytest.raises(ValueError, match=message):
        PolyRecProcessor.fit(table, **{"tasks": TASKS, **PART, "columns": COLUMNS | columns, **options})


def test_splits_and_updates_that_need_times_are_refused(table, split):
    """Prevents a split by an order that is not there, and a random one of a log that has times."""
    processor, parts = split
    with pytest.raises(ValueError, match="the split by 'leave_one_out' needs times"):
        processor.split(table, by="leave_one_out")
    with pytest.raises(ValueError, match="max_delay is 5.0, but the log has no times"):
        processor.split(table, max_delay=5.0)
    with pytest.raises(ValueError, match="nothing can be hidden from a time on"):
        processor.without_updates(parts.test, 5.0)
    for call in (processor.update, processor.resume):
        with pytest.raises(ValueError, match="a log without times .* cannot go on: .* train again"):
            call(table)
    with pytest.raises(ValueError, match="time is given, but the log that was fitted has no times"):
        processor.request(["i1"], np.array([4]), time=9.0)
    timed = PolyRecProcessor.fit(table, tasks=TASKS, columns={"time": "row"}, **PART)
    with pytest.raises(ValueError, match='"random" would train on events after those'):
        timed.split(table, by="random")


def test_rows_stand_for_times_only_where_they_are_said_to(table):
    """Prevents the order of a file from being lost that somebody states, and from being used otherwise."""
    processor = PolyRecProcessor.fit(table, tasks=TASKS, columns={"time": "__row__"}, **PART)
    parts = processor.split(table, by="leave_one_out")
    last = table.groupby("user_id")["row"].max()
    assert sorted(rows_of(parts.test)) == sorted(last)
    assert len(processor.request(["i1", "i2"], np.array([4]))["item_ids"]) == 2
