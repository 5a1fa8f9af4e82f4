"""Lists by an index are those of all scores: what filters allow, what terms add, and what has changed since it was built."""

import logging

import numpy as np
import pytest
from model_fixtures import fit, synthetic_log, tiny_model

from polyrec import Recommender
from polyrec.inference.catalog_index import CatalogIndex

ITEMS, K = 20_000, 20
TERMS = {"repeats": True, "neighbours": 5, "transitions": 5}


@pytest.fixture(scope="module")
def both():
    """A recommender with an index and one that scores all items, with random weights."""
    log = synthetic_log(items=ITEMS, users=30)
    processor, _ = fit(log, tasks=[{"name": "next_item", "head": "retrieval", "options": TERMS}])
    processor.resume(log["interactions"])
    model = tiny_model(processor, hidden_size=16)
    head = model.heads["next_item"]
    head.bias.weight.data.normal_(std=0.3)
    head.every_term["repeats"].prior.weight.data.normal_(std=2)
    head.every_term["neighbours"].prior.weight.data.normal_(std=2)
    head.every_term["transitions"].weigh(1.0, 0.8)
    model.item_encoder.id_embedding.weight.data.normal_()
    model.item_encoder.known.fill_(True)
    return Recommender(model, processor, 16, index="faiss"), Recommender(model, processor, 16)


def test_terms_are_read_by_the_index(both):
    """Prevents the test below from comparing models whose terms say nothing."""
    assert set(both[0].model.heads["next_item"].named_terms) >= {"repeats", "neighbours", "transitions"}


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.01, 0.001])
def test_lists_are_those_of_all_scores(both, share):
    """Prevents filters after the search, terms that are left out or counted twice, and scores that are not the model's."""
    random = np.random.default_rng(int(share * 1000))
    prices = np.asarray(both[0].processor.items.table["price"])
    limit = float(np.quantile(prices, share))
    requests = [{"user_id": user, "exclude": random.integers(0, ITEMS, 50).tolist()} for user in range(20)]
    requests += [{"history": random.integers(0, ITEMS, 6).tolist()} for _ in range(20)]
    rules = {"where": f"price <= {limit!r}"} if share < 1 else {}
    for seen in (True, False):
        found, known = (list(own.rank(requests, K, rules={**rules, "seen": seen})) for own in both)
        hits = 0
        for one, other, request in zip(found, known, requests, strict=True):
            assert len(one.rows) == len(other.rows)
            assert (prices[one.rows - 2] <= limit).all() or share == 1
            assert not {*(one.rows - 2).tolist()} & {*request.get("exclude", [])}
            common, at, there = np.intersect1d(one.rows, other.rows, return_indices=True)
            np.testing.assert_allclose(one.scores[at], other.scores[there], rtol=1e-4, atol=1e-4)
            assert (np.diff(one.scores) <= 1e-6).all()
            hits += len(common)
        assert hits >= (0.98 if share > 0.2 else 1.0) * sum(len(other.rows) for other in known)


def test_items_that_change_are_found_by_what_they_are(both):
    """Prevents an index from finding items by what they were, and a new one from being built for each change."""
    indexed, exact = both
    indexed.recommend([3], K)
    file = indexed.index._built["next_item"]._file
    weight = both[0].model.item_encoder.id_embedding.weight
    request = {"history": [3, 4, 5], "where": None}
    for row in (5_000, 11_111, 19_000):  # into the direction of the best item, and further
        best = exact.rows([exact.recommend([3, 4, 5], 1)[0]["item"]])[0]
        weight.data[row] = 1.5 * weight.data[best]
        indexed.model.item_encoder.known[row] = True  # a change that tensors show
        found, known = (own.recommend_many([request], K)[0] for own in both)
        assert [one["item"] for one in found] == [one["item"] for one in known]
    assert indexed.index._built["next_item"]._file is file


def test_the_log_says_which_way_is_taken(both, caplog):
    """Prevents a model whose terms speak of all items from being searched by an index that does not know of them, and
    lists of small catalogs from being approximate in silence."""
    caplog.set_level(logging.INFO, "polyrec.inference")
    model = both[0].model
    assert CatalogIndex("auto", large=10_000).serves(model, "next_item")
    assert not CatalogIndex("auto").serves(model, "next_item")
    assert not CatalogIndex("exact").serves(model, "next_item")
    assert "by an index of faiss" in caplog.messages[0]
    assert "worth it from 300,000 items on" in caplog.messages[1]
    log = synthetic_log()
    dated, _ = fit(log, tasks=[{"name": "next_item", "head": "retrieval", "options": {"item_age": "first_event"}}])
    aged = tiny_model(dated)
    index = CatalogIndex("faiss")
    assert not index.serves(aged, "next_item")
    assert not index.serves(aged, "next_item")
    assert [text for text in caplog.messages if "item_age" in text] == [
        "lists of next_item: all items are scored (its term item_age says something of every item)"
    ]
    with pytest.raises(ValueError, match="index is 'fais'; did you mean 'faiss'"):
        Recommender(aged, dated, index="fais")
