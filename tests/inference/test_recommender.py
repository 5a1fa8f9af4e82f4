"""Many users at once, candidates and exclusions, and a table that is never stale."""

import threading
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from model_fixtures import TASKS, fit, synthetic_log, tiny_model

from polyrec import Recommender
from polyrec.inference import recommender as module
from polyrec.inference.unknown_ids import UnknownIdWarning

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


# ------------------------------------------------------------------ what is not known
@pytest.fixture(scope="module")
def stored():
    """A recommender with stored events of users 0, 1, ..."""
    processor, _ = fit()
    return Recommender(tiny_model(processor), processor, batch_size=2)


def told(recommender, call):
    """Messages about unknown ids; each names the line that asks."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call(recommender)
    assert {w.filename for w in found} <= {__file__}
    return [str(w.message) for w in found if issubclass(w.category, UnknownIdWarning)]


def test_unknown_ids_are_told_once_a_call(stored):
    """Prevents misspelt ids from giving a new user's list without a word, and 10,000 of them from 10,000 warnings."""
    assert told(stored, lambda r: r.recommend([3, 9999], k=2)) == [
        "1 of 2 items of the history are not in the catalog: 9999"
    ]
    assert told(stored, lambda r: r.recommend([3, 4], k=2, user_id=1)) == []
    assert told(stored, lambda r: r.recommend(k=2, user_id="nobody")) == [
        "user 'nobody' has no stored events: treated as a new user"
    ]
    many = [{"history": [3]}, {"history": [{"item_id": 777}, {"item_id": 3}]}, {"user_id": 987}, {"user_id": 1}]
    assert told(stored, lambda r: r.recommend_many([*many, {"history": [9999, 777]}], k=2)) == [
        "3 of 4 items of the histories of 2 of 5 requests are not in the catalog: 777, 9999",
        "1 of 2 users have no stored events: treated as new users: 987",
    ]


@pytest.mark.parametrize("items", [None, [4]], ids=["recommended", "given"])
def test_explanations_tell_unknown_ids_once(stored, items):
    """Prevents reasons for a user whose id is misspelt from reading like those of a new one, and a warning twice."""

    def explained(**request):
        return told(stored, lambda r: r.model.explain(r.processor, items=items, k=1, **request))

    assert explained(history=[3, 9999]) == ["1 of 2 items of the history are not in the catalog: 9999"]
    assert explained(user_id="nobody") == ["user 'nobody' has no stored events: treated as a new user"]
    assert explained(history=[3], user_id=1) == []


@pytest.mark.parametrize(
    "requests", [["u1"], {"user_id": ["u1"]}, pd.DataFrame({"user_id": ["u1"]})], ids=["ids", "dict", "table"]
)
def test_a_request_is_a_dict(stored, requests):
    """Prevents the letters of a key from being asked about."""
    with pytest.raises(ValueError, match=r"requests\[0\] is '.*'; each request is a dict, e.g. {'user_id': 'u1'}"):
        stored.recommend_many(requests)


def test_mistakes_name_the_request(stored):
    """Prevents a search for the one bad request among thousands, and a text from passing for a file."""
    with pytest.raises(ValueError, match=r"^requests\[3\].candidates: 1 are not in the catalog, e.g. \[999\]"):
        stored.recommend_many([{"history": [3]}] * 3 + [{"history": [3], "candidates": [4, 999]}])
    with pytest.raises(ValueError, match=r"^candidates: 1 are not"):
        stored.recommend([3], candidates=[999])
    with pytest.raises(ValueError, match="history is 'i001'; pass a list of item ids"):
        stored.recommend("i001")
    with pytest.raises(ValueError, match="no such file"):
        stored.recommend("none.csv")
