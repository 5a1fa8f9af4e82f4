"""Lists of a large catalog, found tile by tile, are those of all scores."""

import numpy as np
import pytest
import torch
from model_fixtures import fit, synthetic_log, tiny_model

from polyrec import Recommender
from polyrec.inference import scanned
from polyrec.modules.heads import _catalog_scan as catalog_scan


@pytest.fixture(scope="module")
def recommender():
    processor, _ = fit(synthetic_log(users=30, items=40), tasks=[{"name": "next_item", "head": "retrieval"}])
    return Recommender(tiny_model(processor), processor, batch_size=7)


def both(recommender, monkeypatch, requests, **options):
    monkeypatch.setattr(catalog_scan, "TILE", 16)
    found = []
    for large in (1 << 40, 0):
        monkeypatch.setattr(scanned, "LARGE", large)
        found.append(recommender.recommend_many(requests, **options))
    return found


@pytest.mark.parametrize("options", [{}, {"k": 3, "exclude_seen": False}, {"k": 60}])
def test_lists_equal_those_of_all_scores(recommender, options, monkeypatch):
    """Prevents items of the history or of `exclude` from being listed, and short lists from being filled up."""
    requests = [{"user_id": user, "exclude": [user % 5]} for user in range(20)] + [
        {},
        {"history": [3], "where": "price > 0"},
    ]
    whole, found = both(recommender, monkeypatch, requests, **options)
    for own, their in zip(whole, found, strict=True):
        assert [row["item"] for row in own] == [row["item"] for row in their]
        np.testing.assert_allclose([r["score"] for r in own], [r["score"] for r in their], rtol=1e-5, atol=1e-6)


def test_items_of_equal_scores_stay_in_the_order_of_the_catalog(recommender, monkeypatch):
    """Prevents lists that differ by whether the catalog is large."""
    head = recommender.model.heads["next_item"]
    held = head.project.weight.detach().clone(), head.bias.weight.detach().clone()
    with torch.no_grad():
        head.project.weight.zero_()
        head.bias.weight.copy_(torch.arange(len(head.bias.weight)).view(-1, 1) % 3)
        whole, found = both(recommender, monkeypatch, [{}, {"user_id": 3}], k=6)
        head.project.weight.copy_(held[0])
        head.bias.weight.copy_(held[1])
    assert [[row["item"] for row in own] for own in whole] == [[row["item"] for row in own] for own in found]
