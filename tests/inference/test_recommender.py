"""Many users at once, candidates and exclusions, and a table that is never stale."""

import threading

import numpy as np
import pytest
import torch
from model_fixtures import TASKS, fit, synthetic_log, tiny_model

from polyrec import Recommender
from polyrec.inference import recommender as module

PAIRS = [task for task in TASKS if task["head"] != "retrieval"]
USERS = [
    {"history": [3, 4, 5]},
    {"history": None, "user": {"age": 33.0}},
    {"history": list(range(12)), "context": {"surface": "search"}},
    {"history": [777]},
    {"history": [{"item_id": 3, "rating": 1.0}], "time": 2_000_000},
]


@pytest.fixture(scope="module", params=["retrieval", "pairs"])
def world(request):
    processor, _ = fit() if request.param == "retrieval" else fit(tasks=PAIRS)
    model = tiny_model(processor)
    if request.param == "retrieval":
        model.heads["next_item"].bias.weight.data.normal_()
    return processor, model


def ids(rows):
    return [row["item"] for row in rows]


@pytest.mark.parametrize("size", [1, 2, 64])
def test_many_users_get_what_each_would_get_alone(world, size):
    """Prevents padding, batches or another user's history from changing an answer, or the order of the answers."""
    processor, model = world
    found = Recommender(model, processor, batch_size=size).recommend_many(USERS, k=6)
    assert len(found) == len(USERS)
    for request, rows in zip(USERS, found, strict=True):
        alone = model.recommend(processor, k=6, **request)
        assert ids(rows) == ids(alone)
        for row, other in zip(rows, alone, strict=True):
            assert row.keys() == other.keys()
            numbers = [name for name in row if isinstance(row[name], float)]
            np.testing.assert_allclose([row[n] for n in numbers], [other[n] for n in numbers], rtol=1e-4, atol=1e-5)
            assert {n: v for n, v in row.items() if n not in numbers} == {
                n: v for n, v in other.items() if n not in numbers
            }


def test_candidates_and_exclusions_are_kept_and_filled(world):
    """Prevents a list that is filtered after it was cut, and so holds fewer items than there are."""
    processor, model = world
    recommender = Recommender(model, processor)
    everything = ids(recommender.recommend([3, 4], k=100))
    rest = [item for item in everything if item not in everything[:3]]
    assert ids(recommender.recommend([3, 4], k=5, exclude=everything[:3])) == rest[:5]
    some = [rest[7], rest[2], 3, rest[4]]
    assert ids(recommender.recommend([3, 4], k=5, candidates=some)) == [rest[2], rest[4], rest[7]]
    assert ids(recommender.recommend([3, 4], k=5, candidates=some, exclude=[rest[2]])) == [rest[4], rest[7]]
    assert recommender.recommend([3, 4], candidates=[]) == []
    own = [{"history": [3, 4], "candidates": some}, {"history": [3, 4], "exclude": everything[:3]}]
    assert [ids(rows) for rows in recommender.recommend_many(own, k=2)] == [[rest[2], rest[4]], rest[:2]]


def test_errors_name_the_request_and_the_fix(world):
    """Prevents a mistyped key, or an id of another type, from being ignored."""
    processor, model = world
    recommender = Recommender(model, processor)
    with pytest.raises(ValueError, match=r"candidates: 1 are not in the catalog, e.g. \[999\]"):
        recommender.recommend([3], candidates=[1, 999])
    with pytest.raises(ValueError, match="exclude"):
        recommender.recommend([3], exclude="5")
    with pytest.raises(ValueError, match=r"histroy.*history"):
        recommender.recommend_many([{"histroy": [3]}])
    with pytest.raises(ValueError, match="batch_size is 0"):
        Recommender(model, processor, batch_size=0)
    small, _ = fit(synthetic_log(items=20))
    with pytest.raises(ValueError, match="saved with the model"):
        Recommender(model, small)


def test_the_table_is_encoded_once_and_anew_after_a_change(monkeypatch):
    """Prevents the catalog from being encoded for each user, and answers from weights that are gone."""
    processor, _ = fit()
    model = tiny_model(processor)
    recommender, encoded = Recommender(model, processor), []
    table = type(model.item_encoder).table
    monkeypatch.setattr(type(model.item_encoder), "table", lambda self: encoded.append(1) or table(self))
    first = recommender.recommend([3], k=3)
    recommender.recommend_many(USERS, k=3)
    assert len(encoded) == 1
    with torch.no_grad():
        for parameter in model.item_encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    second = recommender.recommend([3], k=3)
    assert len(encoded) == 2
    assert [row["score"] for row in first] != [row["score"] for row in second]
    assert second == model.recommend(processor, [3], k=3)


def test_a_batch_of_users_is_read_at_a_time(monkeypatch):
    """Prevents a million requests from being held in memory at once."""
    processor, _ = fit()
    recommender = Recommender(tiny_model(processor), processor, batch_size=2)
    taken = []
    requests = (taken.append(n) or {"history": [n]} for n in range(7))
    found = recommender.iterate(requests, k=1)
    next(found)
    assert taken == [0, 1]
    assert len(list(found)) == 6


def test_threads_share_a_recommender():
    """Prevents two threads from mixing their answers."""
    processor, _ = fit()
    recommender = Recommender(tiny_model(processor), processor)
    expected, found = [recommender.recommend_many([user], k=4) for user in USERS], {}

    def ask(n):
        found[n] = recommender.recommend_many([USERS[n % len(USERS)]], k=4)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(20)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(found[n] == expected[n % len(USERS)] for n in range(20))


def test_scores_that_are_not_finite_are_refused():
    """Prevents a diverged model from recommending whatever NaN sorts to."""
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="diverged"):
            module.best_items(np.array([0.0, bad]), 1)
