"""Ranking a large catalog tile by tile equals ranking all of its scores."""

import numpy as np
import pytest
import torch
from model_fixtures import fit, synthetic_log, tiny_model

from polyrec.evaluation import evaluator
from polyrec.modules.heads import _catalog_scan as catalog_scan

TERMS = {"neighbours": 4, "trending": [[86400.0, 5.0]], "trending_start": 0.5, "repeats": True}


TASK = {"name": "next_item", "head": "retrieval"}


@pytest.fixture(scope="module")
def data():
    return fit(synthetic_log(users=60, items=40, events=12))


@pytest.fixture(scope="module", params=[{}, TERMS], ids=["bare", "terms"])
def pair(request):
    processor, splits = fit(synthetic_log(users=60, items=40, events=12), tasks=[TASK | {"options": request.param}])
    return tiny_model(processor), splits


def lists(model, dataset, monkeypatch, scans, **options):
    monkeypatch.setattr(evaluator, "LARGE", 0 if scans else 1 << 40)
    return evaluator.predict(model, dataset, k=5, **options).rankings["next_item"]


def lists_equal(scanned, whole):
    for name, values in vars(whole).items():
        np.testing.assert_array_equal(getattr(scanned, name), values, err_msg=name)


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("tile", [8, 16, 4096])
def test_a_scan_ranks_as_all_scores_do(pair, tile, exclude_seen, monkeypatch):
    """Prevents ranks that miss what terms add, items at the edge of tiles, or what lists leave out."""
    model, splits = pair
    with torch.no_grad():
        model.heads["next_item"].bias.weight.normal_(generator=torch.Generator().manual_seed(0))
    assert catalog_scan.can_scan(model.heads["next_item"])
    monkeypatch.setattr(catalog_scan, "TILE", tile)
    whole, scanned = (
        lists(model, splits.test, monkeypatch, scans, exclude_seen=exclude_seen) for scans in (False, True)
    )
    assert len(whole.rows) > 40
    lists_equal(scanned, whole)


def test_ties_are_counted_and_broken_alike(data, monkeypatch):
    """Prevents a model that scores everything alike from measuring as perfect where the catalog is large."""
    processor, splits = data
    model = tiny_model(processor, tasks=[TASK])
    with torch.no_grad():
        model.heads["next_item"].project.weight.zero_()
        model.heads["next_item"].bias.weight.copy_(torch.arange(processor.num_items).view(-1, 1) % 3)
    monkeypatch.setattr(catalog_scan, "TILE", 16)
    whole, scanned = (lists(model, splits.test, monkeypatch, scans) for scans in (False, True))
    assert (whole.ties > 0).any()
    lists_equal(scanned, whole)


def test_a_model_that_has_diverged_is_named(data, monkeypatch):
    """Prevents NaN from ranking below every item, as if the model only knew little."""
    processor, splits = data
    model = tiny_model(processor, tasks=[TASK])
    with torch.no_grad():
        model.heads["next_item"].bias.weight[7] = float("nan")
    with pytest.raises(ValueError, match="has diverged"):
        lists(model, splits.test, monkeypatch, True)


def test_terms_of_every_item_are_ranked_by_all_scores(data):
    """Prevents a term that says something of each item from being left out."""
    processor, _ = data
    options = {"item_age": "first_event"}
    model = tiny_model(processor, tasks=[TASK | {"options": options}])
    assert not catalog_scan.can_scan(model.heads["next_item"])
