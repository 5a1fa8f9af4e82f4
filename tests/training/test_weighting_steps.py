"""Loss weightings in real training: what they are told, what the log says of them, what a resumed run knows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_fixtures import arguments, fit, tiny_model
from test_trainer import StopAt, assert_same_weights, weights

from polyrec import PolyRecTrainer
from polyrec.core.registry import WEIGHTINGS

NAMES = ["like", "next_item", "rating"]
LAMBDAS = {"like": 1.0, "next_item": 1.0, "rating": 0.5}


@pytest.fixture(scope="module")
def world():
    return fit()


def trainer_of(world, folder, kind, callbacks=None, weighting_options=None, **options):
    processor, splits = world
    return PolyRecTrainer(
        tiny_model(processor, weighting=kind, weighting_options=weighting_options, dropout=0.2),
        arguments(folder, **({"per_device_train_batch_size": 8, "logging_steps": 1} | options)),
        train_dataset=splits.train,
        eval_dataset=splits.valid,
        processing_class=processor,
        callbacks=callbacks,
    )


def lines(trainer):
    return [line for line in trainer.state.log_history if "loss" in line]


def test_observed_losses_are_the_logged_ones(world, tmp_path, monkeypatch):
    """Prevents a weighting from learning from sums, from one batch of several, or twice per step."""
    cls, seen = WEIGHTINGS.get("famo"), []
    original = cls.observe
    monkeypatch.setattr(cls, "observe", lambda self, *told: (seen.append(told[0]), original(self, *told))[1])
    trainer = trainer_of(world, tmp_path, "famo", gradient_accumulation_steps=2, num_train_epochs=2)
    trainer.train()
    logged = [{name: line[f"loss_{name}"] for name in NAMES} for line in lines(trainer)]
    assert len(seen) == trainer.state.global_step == len(logged)
    for told, line in zip(seen, logged, strict=True):
        assert told == pytest.approx(line, rel=1e-5)


def test_only_weightings_that_learn_are_told(world, tmp_path):
    """Prevents every training step from waiting for losses that nobody wants."""
    told = {kind: WEIGHTINGS.get(kind)(tiny_model(world[0]).config).observes for kind in ("fixed", "uncertainty")}
    assert told == {"fixed": False, "uncertainty": False}


def test_logged_weights_are_what_losses_were_multiplied_by(world, tmp_path):
    """Prevents the log from leaving out lambda or scale, or from showing the weight of one batch only."""
    trainer = trainer_of(world, tmp_path, "fixed", logging_steps=2)
    trainer.model.weighting.scale_of("rating").fill_(0.25)
    trainer.train()
    for line in lines(trainer):
        assert {n: line[f"weight_{n}"] for n in NAMES} == {"like": 1.0, "next_item": 1.0, "rating": 0.125}
        assert line["loss"] == pytest.approx(sum(line[f"weight_{n}"] * line[f"loss_{n}"] for n in NAMES), rel=1e-3)
        assert not any(name.startswith("cosine") for name in line)


def test_drawn_weights_add_up_to_the_logged_loss(world, tmp_path):
    """Prevents a draw per batch: with one step per line, loss = sum of weight times loss holds only for one draw."""
    trainer = trainer_of(world, tmp_path, "rlw", gradient_accumulation_steps=2, num_train_epochs=2)
    trainer.train()
    for line in lines(trainer):
        assert line["loss"] == pytest.approx(sum(line[f"weight_{n}"] * line[f"loss_{n}"] for n in NAMES), rel=1e-3)
        drawn = sum(line[f"weight_{n}"] / LAMBDAS[n] for n in NAMES)
        assert drawn == pytest.approx(3, rel=1e-4)
    assert len({line["weight_like"] for line in lines(trainer)}) == trainer.state.global_step


def test_cosines_are_logged(world, tmp_path):
    """Prevents cosines that are no cosines: they agree with the Gramian of the same batch."""
    trainer = trainer_of(world, tmp_path, "aggregation", max_steps=2, weighting_options={"method": "mgda"})
    seen = []

    def kept(module, inputs, output):
        if module.training:
            seen.append(output.gramian)

    trainer.model.register_forward_hook(kept)
    trainer.train()
    for line, gramian in zip(lines(trainer), seen, strict=True):
        norm = gramian.diagonal().sqrt()
        expected = (gramian / norm.outer(norm))[0, 2].item()
        assert line["cosine_like_rating"] == pytest.approx(expected, rel=1e-4)
        assert line["cosine_like_next_item"] == 0
        assert {n for n in line if n.startswith("cosine")} == {
            "cosine_like_next_item", "cosine_like_rating", "cosine_next_item_rating",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("uncertainty", None),
        ("dwa", {"period": 1}),
        ("gradnorm", None),
        ("famo", None),
        ("geometric", None),
        ("rlw", None),
        ("aggregation", {"method": "pcgrad"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_resumed_training_is_bit_identical(world, tmp_path, kind, options):
    """Prevents learnt weights, memories and draws from being lost on resume (sentence-transformers, LibMTL)."""
    settings = {"weighting_options": options, "num_train_epochs": 2, "gradient_accumulation_steps": 2}
    whole = trainer_of(world, tmp_path / "whole", kind, **settings)
    whole.train()
    trainer_of(world, tmp_path / "cut", kind, callbacks=[StopAt(3)], **settings).train()
    resumed = trainer_of(world, tmp_path / "cut", kind, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 6
    assert_same_weights(weights(resumed.model), weights(whole.model))
    state = whole.model.weighting.state_dict()
    start = trainer_of(world, tmp_path / "start", kind, **settings).model.weighting.state_dict()
    assert kind == "aggregation" or any(not torch.equal(state[n], start[n]) for n in state)


def test_learnt_weights_do_not_decay(world, tmp_path):
    """Prevents weight decay from pulling log variances to 0."""
    trainer = trainer_of(world, tmp_path, "uncertainty", weight_decay=0.1)
    names = {n for n, _ in trainer.model.named_parameters()}
    assert "weighting.log_variance" in names
    assert "weighting.log_variance" not in trainer.get_decay_parameter_names(trainer.model)


@pytest.mark.parametrize("kind", WEIGHTINGS.names())
def test_every_weighting_learns(world, tmp_path, kind):
    """Prevents a weighting that runs without learning anything."""
    trainer = trainer_of(world, tmp_path, kind, num_train_epochs=7, learning_rate=2e-2)
    trainer.train()
    found = lines(trainer)
    for name in NAMES:
        first, last = (np.mean([line[f"loss_{name}"] for line in part]) for part in (found[:3], found[-6:]))
        assert last < 0.97 * first, name
