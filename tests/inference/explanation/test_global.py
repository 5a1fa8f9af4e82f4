"""What a model knows overall: importance of inputs, and which items are alike."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from model_fixtures import fit, model_inputs, tiny_model

from polyrec import PolyRecCollator
from polyrec.cli.main import main
from polyrec.inference.explanation.importance import _inputs, permutation_importance
from polyrec.inference.explanation.neighbours import item_map, neighbours, plot_items


@pytest.fixture(scope="module")
def world():
    processor, splits = fit()
    model = tiny_model(processor)
    for name in ("like", "rating"):
        model.skip.linear[name].weight.data.normal_()
    return processor, splits, model


def test_importance_is_a_rise_of_the_loss_of_each_task(world):
    """Prevents shuffles that change nothing, or that leak into the next feature's figure."""
    _, splits, model = world
    found = permutation_importance(model, splits.train, batch_size=16)
    assert list(found) == list(model.heads)
    names = {"context.surface", "context.statistics", "event.rating", "event.time_gap", "event.residuals", "user.age"}
    for task, own in found.items():
        assert set(own) == names | {"item.id", "item.genre", "item.tags", "item.price"}
        assert all(np.isfinite(list(own.values())))
        assert list(own.values()) == sorted(own.values(), reverse=True)
        assert own["context.statistics"] == 0 if task == "next_item" else own["context.statistics"] != 0
        assert own["item.id"] != 0
    assert permutation_importance(model, splits.train, batch_size=16) == found


def test_a_context_is_shuffled_before_and_after_and_a_user_alone():
    """Prevents a context's figure from including the user feature of the same name, or only half of its places."""
    batch = {
        "candidate_features": {"age": 0, "surface": 0, "hour": 0},
        "event_features": {"surface": 0, "rating": 0},
        "user_features": {"age": 0},
    }
    both = ("event_features", "candidate_features")
    assert _inputs(batch) == {
        "context.age": (("candidate_features",), "age"),
        "context.surface": (both, "surface"),
        "context.hour": (("candidate_features",), "hour"),
        "event.rating": (("event_features",), "rating"),
        "user.age": (("user_features",), "age"),
    }


def test_what_is_not_read_has_no_importance(world):
    """Prevents a figure for an input of no effect, and a rise where only the sampling of a loss differs."""
    processor, splits, model = world
    silent = tiny_model(processor)
    silent.load_state_dict(model.state_dict())
    encoder = silent.model.history_encoder.events.tables["rating"]
    encoder.weight.data[:] = 0.5
    found = permutation_importance(silent, splits.valid)
    for own in found.values():
        assert own["event.rating"] == pytest.approx(0, abs=1e-6)


def test_the_base_is_the_loss_of_the_plain_model(world, monkeypatch):
    """Prevents a base line that was itself shuffled: with the identity as the shuffle, nothing rises."""
    _, splits, model = world
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))
    for own in permutation_importance(model, splits.valid).values():
        assert max(abs(v) for v in own.values()) < 1e-5
    batch = model_inputs(PolyRecCollator()([splits.valid[0]]))
    assert model(**batch).losses is not None


def test_neighbours_are_nearest_by_cosine(world):
    """Prevents an item as its own neighbour, padding among them, and a wrong order."""
    processor, _, model = world
    found = neighbours(model, processor, 5, k=23)
    vectors = torch.nn.functional.normalize(model.item_encoder.table().vectors_MD, dim=-1).detach().numpy()
    expected = vectors @ vectors[7]
    assert {row["item"] for row in found} == set(range(24)) - {5}
    np.testing.assert_allclose(
        [row["similarity"] for row in found], sorted(np.delete(expected, [0, 1, 7]))[::-1], atol=1e-5
    )
    assert found[0]["title"] == f"title {found[0]['item']}"
    assert neighbours(model, processor, 5, k=1000) == found  # all there are
    with pytest.raises(ValueError, match="99 is not in the catalog"):
        neighbours(model, processor, 99)


def test_a_plane_keeps_most_of_the_variance_and_is_drawn(world, tmp_path):
    """Prevents a map of padding rows, of the rarest items, or an empty picture."""
    from sklearn.decomposition import PCA

    processor, _, model = world
    rows, places, share = item_map(model, processor, most=15)
    assert set(rows) == set(np.argsort(-processor.item_counts, kind="stable")[:15])
    vectors = torch.nn.functional.normalize(model.item_encoder.table().vectors_MD[rows], dim=-1).detach().numpy()
    reference = PCA(2).fit(vectors.astype(np.float64))
    assert share == pytest.approx(reference.explained_variance_ratio_.sum(), rel=1e-5)
    np.testing.assert_allclose(np.abs(places), np.abs(reference.transform(vectors)), atol=1e-5)
    picture = plot_items(model, processor, tmp_path / "items.png", near=[5])
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert picture.stat().st_size > 5000


def test_command_line(world, tmp_path, capsys):
    """Prevents a command that names other neighbours than the library, or draws nothing."""
    processor, _, model = world
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    picture = tmp_path / "items.svg"
    assert main(["explain", str(tmp_path), "--neighbours", "5", "--plot", str(picture), "-k", "3", "--json"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["item"] for row in printed] == [row["item"] for row in neighbours(model, processor, 5, k=3)]
    assert "<svg" in picture.read_text()
