"""Pairs wider (or narrower) than events, and states without layers."""

from __future__ import annotations

import pytest
import torch
from coupling_fixtures import chain, chain_batch
from head_fixtures import FEATURES, OPTIONS, inputs_of, with_queries
from model_fixtures import arguments, fit, random_batch, random_config, tiny_model

from polyrec import PolyRecForRecommendation, PolyRecTrainer
from polyrec.core.registry import COUPLINGS, EXPERTS, HEADS

NAMES = ["like", "click", "next_item"]
TASKS = [{"name": n, "head": "retrieval" if n == "next_item" else "binary"} for n in NAMES]
SIZES = [4, 24]  # the width of events is 8
sizes = pytest.mark.parametrize("size", SIZES)


def model_of(size, **overrides):
    torch.manual_seed(0)
    model = PolyRecForRecommendation(random_config(pair_size=size, **({"tasks": TASKS} | overrides))).eval()
    # Every item was met: otherwise all are the unknown one, and a ranking of equals teaches nothing.
    model.load_catalog({}, torch.ones(model.config.num_items))
    return model


def train_one_step(model, batch):
    """One step of an optimizer: the loss falls, and every parameter of pairs and tasks has moved."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = model(**batch).loss
    first.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert model(**batch).loss < first
    parts = ("pair_encoder.mix", "experts", "heads", "couplings")
    assert {name for name in before if name.startswith(parts)} <= moved
    return model


def reloaded_equal(model, batch, folder):
    model.save_pretrained(folder)
    loaded = PolyRecForRecommendation.from_pretrained(folder)
    assert loaded.config.pair_size == model.config.pair_size
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)


# ------------------------------------------------------------------ every part at another width
@sizes
@pytest.mark.parametrize("kind", EXPERTS.names())
def test_every_expert_layer(kind, size, tmp_path):
    """Prevents an expert layer that reads the width of events where that of pairs is meant."""
    model, batch = model_of(size, experts=kind), random_batch(NAMES)
    hidden = model.experts(torch.randn(2, 3, size)).hidden
    assert {name: h.shape[-1] for name, h in hidden.items()} == {"like": size, "click": size}
    reloaded_equal(train_one_step(model, batch), batch, tmp_path)


@sizes
@pytest.mark.parametrize("kind", HEADS.names())
def test_every_head(kind, size, tmp_path):
    """Prevents a head of pairs that has the width of events, or one of states that has the width of pairs."""
    tasks = [{"name": "task", "head": kind, "options": OPTIONS.get(kind, {})}, TASKS[0]]
    model = model_of(size, tasks=tasks, features=FEATURES, **inputs_of(kind))
    batch = random_batch(["task", "like"])
    if kind == "search":
        batch = with_queries(batch) | {"query_items": torch.zeros_like(batch["candidate_ids"])}
    for read, ids in (("event_features", "item_ids"), ("candidate_features", "candidate_ids")):
        batch[read] = {"length": torch.linspace(-2, 2, batch[ids].numel()).view_as(batch[ids])}
    optimised = train_one_step(model, batch)
    reloaded_equal(optimised, batch, tmp_path)


@sizes
@pytest.mark.parametrize("kind", COUPLINGS.names())
def test_every_coupling(kind, size, tmp_path):
    """Prevents a coupling that passes on what a parent knows at the width of events."""
    names = ["click", "cart", "buy"]
    model, batch = model_of(size, tasks=chain(kind, names)), chain_batch(names)
    reloaded_equal(train_one_step(model, batch), batch, tmp_path)


@sizes
def test_item_vectors_of_tasks_have_the_width_of_pairs(size, tmp_path):
    """Prevents item vectors of a task's own, which are added to its pairs, from having the width of events."""
    model, batch = model_of(size, task_item_embeddings=True), random_batch(NAMES)
    reloaded_equal(train_one_step(model, batch), batch, tmp_path)


def test_the_default_is_the_width_of_events():
    """Prevents a model that was saved before pairs had a width from changing."""
    plain, same = model_of(None), model_of(8)
    assert plain.config.pair_width == 8
    assert {n: p.shape for n, p in plain.named_parameters()} == {n: p.shape for n, p in same.named_parameters()}
    same.load_state_dict(plain.state_dict())
    batch = random_batch(NAMES)
    assert torch.equal(plain(**batch).loss, same(**batch).loss)


@pytest.mark.parametrize(("name", "value"), [("pair_size", 0), ("pair_size", -4), ("num_hidden_layers", -1)])
def test_impossible_sizes_are_refused(name, value):
    """Prevents a width of nothing from failing in a matrix product."""
    with pytest.raises(ValueError, match=rf"{name} is {value}; it must be a whole number in \["):
        random_config(**{name: value})


# ------------------------------------------------------------------ states without layers
def test_a_state_is_the_mean_of_what_was_seen():
    """Prevents a state that is divided by another count, misses its start, or knows the next event."""
    model, batch = model_of(None, num_hidden_layers=0), random_batch(NAMES)
    found = model.model(batch["item_ids"])
    assert found.last_hidden_state.shape == found.inputs.shape == (5, 7, 8)
    for p in range(7):
        torch.testing.assert_close(found.last_hidden_state[:, p], found.inputs[:, : p + 1].mean(dim=1))


def test_padding_does_not_change_a_mean():
    """Prevents padded events from being averaged into the state of somebody with a short history."""
    model, batch = model_of(None, num_hidden_layers=0), random_batch(NAMES)
    short = model.model(batch["item_ids"][:, :4]).last_hidden_state
    padded = torch.cat([batch["item_ids"][:, :4], torch.zeros(5, 3, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(model.model(padded).last_hidden_state[:, :5], short)


def test_the_order_of_events_does_not_matter_to_a_mean():
    """Prevents a backbone that was not asked for from being built."""
    model, batch = model_of(None, num_hidden_layers=0), random_batch(NAMES)
    assert not [name for name, _ in model.named_parameters() if "backbone" in name]
    one = model.model(batch["item_ids"]).last_hidden_state[:, -1]
    torch.testing.assert_close(model.model(batch["item_ids"].flip(1)).last_hidden_state[:, -1], one)


@pytest.mark.parametrize("heads", [0, 2])
def test_a_model_without_layers_trains_and_reloads(heads, tmp_path):
    """Prevents a model of means from failing on disk, where a backbone's configuration is read."""
    options = {"num_hidden_layers": 0, "candidate_attention_heads": heads}
    model, batch = model_of(12, **options), random_batch(NAMES)
    reloaded_equal(train_one_step(model, batch), batch, tmp_path)


def test_a_trainer_takes_wide_pairs_on_means(tmp_path):
    """Prevents the two, which impression logs want together, from failing in a real training step."""
    processor, splits = fit()
    model = tiny_model(processor, num_hidden_layers=0, pair_size=20)
    trainer = PolyRecTrainer(
        model, arguments(tmp_path, max_steps=2), splits.train, splits.valid, processing_class=processor
    )
    assert trainer.train().training_loss > 0
    assert trainer.evaluate()["eval_like_auc"] >= 0
