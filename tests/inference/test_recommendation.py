"""From a history to recommendations that a person can read."""

from __future__ import annotations

import copy
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from model_fixtures import PAIR_TASKS, TASKS, fit, synthetic_log, tiny_model

from polyrec import PolyRecCollator, PolyRecConfig, PolyRecForRecommendation
from polyrec.core.older_files import saved_files
from polyrec.modules.encoders.item import FIRST_ITEM

NEW_ITEMS = {22, 23}  # never in the log, see `synthetic_log`
BARE = {"rank", "item", "title", "score", "cold_item", "cold_start"}


@pytest.fixture(scope="module")
def world():
    processor, splits = fit()
    model = tiny_model(processor)
    model.heads["next_item"].bias.weight.data.normal_()
    return processor, splits, model


def items(found):
    return [row["item"] for row in found]


def test_k_distinct_items_best_first_with_all_that_is_promised(world):
    """Prevents a short list, repeated items, a wrong order, or a missing column."""
    processor, _, model = world
    found = model.recommend(processor, [3, 4, 5], k=7)
    assert [row["rank"] for row in found] == list(range(1, 8))
    assert len(set(items(found))) == 7
    assert [row["score"] for row in found] == sorted((row["score"] for row in found), reverse=True)
    for row in found:
        assert set(row) == BARE | {"like", "rating"}
        assert row["title"] == f"title {row['item']}"
        assert 0 <= row["like"] <= 1
        assert 1 <= row["rating"] <= 5
        assert type(row["score"]) is type(row["like"]) is float
        assert type(row["item"]) is int


def test_scores_and_predictions_equal_forward_on_the_same_candidates(world):
    """Prevents the recommender from asking something else than the model was trained on."""
    processor, _, model = world
    history = [{"item_id": 3, "rating": 5.0}, {"item_id": 4, "rating": 1.0}]
    user, context = {"age": 40.0}, {"surface": "search"}
    found = model.recommend(processor, history, k=5, user=user, context=context)
    rows = np.array(items(found)) + FIRST_ITEM  # the catalog's ids are 0, 1, 2, ...
    batch = PolyRecCollator()([processor.request(history, rows, user=user, context=context)])
    with torch.no_grad():
        logits = model(**{k: v for k, v in batch.items() if k not in ("labels", "candidate_rows")}).logits
    for name, column in (("next_item", "score"), ("like", "like"), ("rating", "rating")):
        expected = model.heads[name].predict(logits[name])[0]
        np.testing.assert_allclose([row[column] for row in found], expected, rtol=1e-4, atol=1e-6)
    everything = model.recommend(processor, history, k=100, user=user, context=context)
    assert items(everything)[:5] == items(found)


def test_training_mode_is_left_and_restored(world):
    """Prevents dropout in recommendations, and a training that goes on in evaluation mode."""
    processor, _, model = world
    model.train()
    try:
        first, second = (model.recommend(processor, [3], k=3) for _ in range(2))
        assert first == second
        assert model.training
        with pytest.raises(ValueError, match="unknown task"):
            model.recommend(processor, [3], task="clik")
        assert model.training
    finally:
        model.eval()


def test_threads_answer_without_dropout_while_the_model_is_trained():
    """Prevents an answer from switching the model's mode under a training, or under another thread's answer."""
    processor, splits = fit()
    model = tiny_model(processor, dropout=0.5, item_id_dropout=0.5).train()
    expected = model.recommend(processor, [3, 4], k=3)
    inputs = {k: v for k, v in PolyRecCollator()([splits.train[0]]).items() if k != "candidate_rows"}
    stop, modes, losses = threading.Event(), set(), set()

    def train():
        while not stop.is_set():
            losses.add(model(**inputs).loss.item())
            modes.update(module.training for module in model.modules())

    with ThreadPoolExecutor(4) as pool:
        training = pool.submit(train)
        answers = list(pool.map(lambda _: model.recommend(processor, [3, 4], k=3), range(24)))
        stop.set()
        training.result()
    assert all(found == expected for found in answers)
    assert modes == {True}
    assert len(losses) > 1  # dropout, as training wants it


# ------------------------------------------------------------------ seen items
@pytest.mark.parametrize("length", [1, 8, 20])
def test_nothing_seen_is_recommended_beyond_the_window_too(world, length):
    """Prevents items from coming back that lie further back than the model reads (max_history is 8)."""
    processor, _, model = world
    history = list(range(length))
    found = model.recommend(processor, history, k=100)
    assert set(items(found)) == set(range(24)) - set(history)
    again = model.recommend(processor, history, k=100, exclude_seen=False)
    assert set(items(again)) == set(range(24))


def test_more_than_there_is_and_nothing_left(world):
    """Prevents a crash, or seen items as a stopgap, where the catalog is exhausted."""
    processor, _, model = world
    assert len(model.recommend(processor, [3], k=1000)) == 23
    assert model.recommend(processor, list(range(24)), k=5) == []


@pytest.mark.parametrize("k", [0, -1, None, 1.5, True, "5", float("nan")])
def test_k_must_be_a_positive_whole_number(world, k):
    """Prevents an empty or reversed list from being returned for a typing error, and True from meaning 1."""
    processor, _, model = world
    with pytest.raises(ValueError, match=f"k is {k!r}; it must be a whole number >= 1"):
        model.recommend(processor, [3], k=k)


def test_numbers_of_numpy_and_times_of_any_kind_are_read(world):
    """Prevents k=np.int64(5) from being refused, and ISO text from meaning another time than its seconds."""
    processor, _, model = world
    expected = model.recommend(processor, [3], k=5, time=2_000_000)
    for time in (
        "1970-01-24T03:33:20",
        "1970-01-24T04:33:20+01:00",
        np.datetime64(2_000_000, "s"),
        np.int64(2_000_000),
    ):
        assert model.recommend(processor, [3], k=np.int64(5), time=time) == expected
    assert len(model.recommend(processor, [3], k=10**9)) == 23
    with pytest.raises(ValueError, match="exclude_seen is 'no'; it must be true or false or null"):
        model.recommend(processor, [3], exclude_seen="no")


def test_ratings_that_training_has_not_seen_are_told(world):
    """Prevents a rating of 99 on a scale of 1..5 from being read as an unknown one without a word."""
    processor, _, model = world
    with pytest.warns(UserWarning, match=r"rating is 99, outside of what training has seen \(1 to 5\)"):
        model.recommend(processor, [{"item_id": 3, "rating": 99.0}], k=1)


def test_a_prediction_never_stands_where_the_id_does(world):
    """Prevents a task "item" of a run of before names were reserved from overwriting what is recommended."""
    processor, _, _ = world
    renamed = copy.copy(processor)
    with saved_files(), warnings.catch_warnings(action="ignore"):
        renamed.tasks = [
            replace(t, name="item", label="rating >= 4") if t.name == "like" else t for t in processor.tasks
        ]
        config = processor.model_config().to_dict() | {"tasks": [asdict(t) for t in renamed.tasks]}
        model = PolyRecForRecommendation(PolyRecConfig.from_dict(config)).eval()
    assert set(items(model.recommend(renamed, [3], k=24))) == set(range(24)) - {3}


# ------------------------------------------------------------------ cold starts
@pytest.mark.parametrize("history", [None, [], [777], [777, 888]])
def test_somebody_new_is_answered_and_flagged(world, history):
    """Prevents an error, or a silent guess, where nothing of the history is known."""
    processor, _, model = world
    found = model.recommend(processor, history, k=4)
    assert len(found) == 4
    assert all(row["cold_start"] for row in found)
    assert all(np.isfinite([row["score"], row["like"], row["rating"]]).all() for row in found)


def test_one_known_item_is_enough(world):
    """Prevents the flag from being raised because SOME of the history is unknown."""
    processor, _, model = world
    found = model.recommend(processor, [777, 3], k=4)
    assert not any(row["cold_start"] for row in found)


def test_items_without_training_events_are_recommended_and_flagged(world):
    """Prevents new items from never being shown, or from being shown as if they were known."""
    processor, _, model = world
    found = model.recommend(processor, [3], k=100)
    assert {row["item"] for row in found if row["cold_item"]} >= NEW_ITEMS
    for row in found:
        assert row["cold_item"] is bool(processor.item_counts[row["item"] + FIRST_ITEM] == 0)


def test_attributes_of_the_person_matter_to_somebody_new(world):
    """Prevents cold starts from ignoring what is known about the person."""
    processor, _, model = world
    young, old = (model.recommend(processor, None, k=24, user={"age": age}) for age in (21.0, 59.0))
    assert [r["score"] for r in young] != [r["score"] for r in old]


def test_what_was_felt_about_the_history_matters(world):
    """Prevents feedback in the history from being dropped."""
    processor, _, model = world
    loved, hated = (
        model.recommend(processor, [{"item_id": i, "rating": rating} for i in (3, 4)], k=24) for rating in (5.0, 1.0)
    )
    assert [r["score"] for r in loved] != [r["score"] for r in hated]


# ------------------------------------------------------------------ tasks and mistakes
def test_a_stored_user_is_answered_by_id(world):
    """Prevents a user id from being ignored, by any way of asking, and one that is no id from being somebody new."""
    processor, _, model = world
    window = processor.request(None, np.array([FIRST_ITEM]), user_id=3)
    seen = set((window["history_items"] - FIRST_ITEM).tolist())
    found = model.recommend(processor, user_id=3, k=24)
    assert len(seen) > 2
    assert not seen & set(items(found))
    assert model.recommend(processor, user_id="3", k=24) == found
    assert model.recommend(processor, k=24) != found
    told = model.explain(processor, None, items(found)[:2], user_id=3)
    assert {event["item"] for row in told for event in row["events"]} <= seen
    with pytest.raises(ValueError, match="user_id is 1.5; it must be a user id: text or a whole number"):
        model.recommend(processor, user_id=1.5)


def test_any_task_may_rank(world):
    """Prevents `task` from being ignored, and the ranking task's own prediction from being reported twice."""
    processor, _, model = world
    found = model.recommend(processor, [3], k=24, task="like")
    scores = [row["score"] for row in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert "like" not in found[0]
    assert "next_item" in found[0]
    assert 3 not in items(found)
    by_next_item = {row["item"]: row["like"] for row in model.recommend(processor, [3], k=24)}
    assert {row["item"]: row["score"] for row in found} == pytest.approx(by_next_item, rel=1e-4)


@pytest.mark.parametrize("tasks", [PAIR_TASKS, PAIR_TASKS[1:]])
def test_model_without_retrieval_task_ranks_by_its_first_pair_task(world, tasks):
    """Prevents models of pair tasks alone from being unable to recommend."""
    processor, _, _ = world
    model = tiny_model(processor, tasks=tasks)
    found = model.recommend(processor, [3, 4], k=5)
    scores = [row["score"] for row in found]
    assert scores == sorted(scores, reverse=True)
    assert not {3, 4} & set(items(found))
    assert set(found[0]) == BARE | {t["name"] for t in tasks[1:]}


def test_model_of_retrieval_alone(world):
    """Prevents models without pair tasks from failing."""
    processor, _, _ = world
    found = tiny_model(processor, tasks=TASKS[:1]).recommend(processor, [3], k=5)
    assert set(found[0]) == BARE


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"task": "clik"}, r"unknown task 'clik'; did you mean 'like'. known: next_item, like, rating"),
        ({"user": {"agee": 3}}, "unknown user column 'agee'; .*did you mean 'age'"),
        ({"context": {"surfase": "home"}}, "unknown context column 'surfase'; .*did you mean 'surface'"),
    ],
)
def test_mistakes_are_explained(world, request_, message):
    """Prevents a misspelt column or task from being ignored."""
    processor, _, model = world
    with pytest.raises(ValueError, match=message):
        model.recommend(processor, [3], **request_)


def test_time_before_the_history_is_refused(world):
    """Prevents a request from seeing its own future."""
    processor, _, model = world
    with pytest.raises(ValueError, match="is not after the history's last event"):
        model.recommend(processor, [{"item_id": 3, "timestamp": 2e6}], time=1.5e6)


def test_a_catalog_without_titles_and_with_string_ids():
    """Prevents string ids from being cast to numbers, and a missing title from raising."""
    log = synthetic_log(users=20)
    log["interactions"]["item_id"] = [f"item-{i}" for i in log["interactions"]["item_id"]]
    log["items"] = {"item_id": [f"item-{i}" for i in log["items"]["item_id"]], "genre": log["items"]["genre"]}
    processor, _ = fit(log, columns={"context": {"surface": "categorical"}})
    found = tiny_model(processor).recommend(processor, ["item-3", "unheard of"], k=3)
    assert all(row["item"].startswith("item-") and "title" not in row for row in found)
    assert not found[0]["cold_start"]
