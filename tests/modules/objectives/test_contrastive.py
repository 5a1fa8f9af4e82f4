"""Contrastive views: which states are compared, and what the views show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_fixtures import objective_batch, objective_model

from polyrec.data.augmentation import Crop, Mask, Reorder
from polyrec.modules.objectives._views import history_views
from polyrec.modules.objectives.base import symmetric_info_nce


def naive_info_nce(one, two, temperature, group):
    """Both directions, term by term, in float64."""
    total = 0.0
    for a, b in ((one, two), (two, one)):
        for i in range(len(a)):
            score = [
                float(np.dot(a[i], b[j]) / np.linalg.norm(a[i]) / np.linalg.norm(b[j]) / temperature)
                for j in range(len(b))
            ]
            others = [np.exp(score[j]) for j in range(len(b)) if j == i or group[j] != group[i]]
            total -= 0.5 * (score[i] - np.log(sum(others)))
    return total


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.floats(0.05, 2.0), st.integers(0, 1000))
def test_info_nce_is_the_naive_sum(rows, users, temperature, seed):
    """Prevents other prefixes of one's own history from being pushed away, and one direction from counting twice."""
    random = np.random.default_rng(seed)
    one, two = random.normal(size=(2, rows, 5))
    group = random.integers(0, users, rows)
    found = symmetric_info_nce(*(torch.tensor(x) for x in (one, two)), temperature, torch.tensor(group))
    assert found.item() == pytest.approx(naive_info_nce(one, two, temperature, group), rel=1e-4, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([Crop(0.5), Mask(0.5), Reorder(0.5)]))
def test_views_are_the_transform_of_each_history(seed, transform):
    """Prevents features from staying where their event has gone, and padding from coming to life."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 6, 4)
    ids = torch.from_numpy(np.where(np.arange(6) < lengths[:, None], random.integers(2, 50, (4, 6)), 0))
    features = {"one": ids * 10.0, "wide": torch.stack([ids, -ids], dim=-1)}
    seen = history_views(transform, ids, features, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    for row, length in enumerate(lengths):
        window = {
            "item_ids": ids[row, :length].numpy(),
            "event_features": {name: values[row, :length].numpy() for name, values in features.items()},
            "candidate_positions": np.arange(length + 1),
        }
        expected = transform(window, rng)
        kept = len(expected["item_ids"])
        assert seen.item_ids[row].tolist() == [*expected["item_ids"], *[0] * (6 - kept)]
        for name, values in expected["event_features"].items():
            assert (seen.event_features[name][row, :kept].numpy() == values).all()
        assert seen.position_BL[row, : length + 1].tolist() == expected["candidate_positions"].tolist()


def test_dropout_gives_different_views_and_none_gives_an_error():
    """Prevents two equal views, whose comparison only pushes people apart."""
    with pytest.raises(ValueError, match="option 'views'.*with dropout=0 both views are the same"):
        from model_fixtures import random_config

        from polyrec import PolyRecForRecommendation

        PolyRecForRecommendation(random_config(objectives={"contrastive": {}}))
    with pytest.raises(ValueError, match="option 'views'.*did you mean 'dropout'"):
        objective_model("contrastive", views="droput")


@pytest.mark.parametrize("small_table", [True, False])
def test_masked_items_are_encoded(monkeypatch, small_table):
    """Prevents the unknown item, which no history of a batch may hold, from being read as the item next to it."""
    if not small_table:
        monkeypatch.setattr("polyrec.modules.encoders.item.WHOLE_TABLE", 4)
    model = objective_model("contrastive", views="augmented", crop=0.0, mask=1.0, reorder=0.0).train()
    objective = model.objectives["contrastive"]
    assert objective.draw(model.item_encoder).tolist() == [1]
    batch = objective_batch()
    batch["item_ids"] = batch["item_ids"].clamp(max=11)
    batch["item_ids"][batch["item_ids"] == 1] = 2
    assert torch.isfinite(model(**batch).loss)


def test_prefixes_are_of_the_history_and_different():
    """Prevents padding from being compared, and one prefix from being its own negative."""
    model = objective_model("contrastive", prefixes=3)
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 0, 0, 0], [0, 0, 0, 0, 0]])
    seen = set()
    for _ in range(50):
        user, prefix = model.objectives["contrastive"]._prefixes(ids)
        assert user.tolist() == [0, 0, 0, 1, 1]
        assert len(set(prefix[:3].tolist())) == 3
        assert sorted(prefix[3:].tolist()) == [1, 2]
        seen |= set(prefix[:3].tolist())
    assert seen == {1, 2, 3, 4, 5}
    assert model.objectives["contrastive"].count(model.item_encoder, ids) == 5
