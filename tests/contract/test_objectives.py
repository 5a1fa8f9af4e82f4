"""What every registered objective must do."""

from __future__ import annotations

import pytest
import torch
from objective_fixtures import OPTIONS, READS_TEXTS, objective_batch, objective_model
from text_fixtures import text_processor
from torch import nn

from polyrec import PolyRecConfig, PolyRecForRecommendation
from polyrec.core.registry import OBJECTIVES
from polyrec.models.training_pass import LossStep
from polyrec.modules.objectives.base import Objective

KINDS = OBJECTIVES.names()
kinds = pytest.mark.parametrize("kind", KINDS)


def model_of(kind, **options):
    return objective_model(kind, **options)


@kinds
def test_it_documents_itself(kind):
    """Prevents an objective without formula, paper, shapes, example, or the word on what it brought."""
    cls = OBJECTIVES.get(kind)
    assert issubclass(cls, Objective)
    for part in ("L = ", "Shapes:", "Options:", ">>> ", "al., ", "easured"):
        assert part in cls.__doc__, part
    assert "weight" in cls.default_options
    for option in cls.default_options:
        assert f"`{option}`" in cls.__doc__, option


@kinds
def test_unknown_and_impossible_options_are_refused(kind):
    """Prevents a misspelt option, or a weight of 0 that costs as much as another, from being ignored."""
    with pytest.raises(ValueError, match=f"unknown option 'wieght' of objective '{kind}'.*did you mean 'weight'"):
        model_of(kind, wieght=1.0)
    for weight in (0, -1.0, float("nan"), float("inf"), "much"):
        with pytest.raises(ValueError, match=f"option 'weight' of objective '{kind}' is .*it must be a number( > 0)?"):
            model_of(kind, weight=weight)


@kinds
def test_training_adds_it_and_evaluation_does_not_know_it(kind):
    """Prevents an objective from changing answers or evaluation losses, and from being computed where nobody learns."""
    model, plain, batch = model_of(kind, weight=0.5), objective_model(None, like=kind), objective_batch()
    shared = {n: v for n, v in model.state_dict().items() if not n.startswith("objectives.")}
    plain.load_state_dict(shared)
    trained = model(**batch)
    assert list(trained.objectives) == [kind]
    assert trained.objectives[kind].shape == ()
    assert torch.isfinite(trained.objectives[kind])
    scale = {"rating": 0.5}
    without = sum(
        scale.get(t, 1.0) * trained.weights[t] * trained.losses[t] / trained.counts[t] for t in trained.losses
    )
    torch.testing.assert_close(trained.loss, without + 0.5 * trained.objectives[kind])
    one, other = model.eval()(**batch), plain.eval()(**batch)
    assert one.objectives is None
    assert torch.equal(one.loss, other.loss)
    for task, logits in other.logits.items():
        assert torch.equal(one.logits[task], logits), task


@kinds
def test_every_parameter_gets_a_gradient_from_every_batch(kind):
    """Prevents DDP from waiting for a gradient that never comes: also of histories without a single known item."""
    model = model_of(kind)
    batch = objective_batch()
    empty = batch | {"item_ids": torch.zeros_like(batch["item_ids"])}
    unknown = batch | {"item_ids": torch.where(batch["item_ids"] > 0, 1, 0)}
    one = {k: v[:1] if isinstance(v, torch.Tensor) else {t: x[:1] for t, x in v.items()} for k, v in batch.items()}
    for found in (batch, empty, unknown, one):
        model.zero_grad()
        output = model(**found)
        assert torch.isfinite(output.loss)
        output.loss.backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@kinds
def test_it_learns(kind):
    """Prevents a loss that no step makes smaller (a detached input, a wrong sign)."""
    model, batch = model_of(kind, weight=1.0), objective_batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    first = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(**batch).objectives[kind]
        loss.backward()
        optimizer.step()
        first.append(loss.item())
    assert sum(first[-10:]) < 0.8 * sum(first[:10])


@kinds
def test_the_count_is_that_of_the_parts(kind):
    """Prevents the trainer, which adds the counts of batches, from dividing by something else than the model does."""
    model, batch = model_of(kind), objective_batch()
    objective, ids = model.objectives[kind], batch["item_ids"]
    count = objective.count(model.item_encoder, ids)
    assert (count.shape, count.dtype) == ((), torch.float32)
    assert count > 0
    assert objective.count(model.item_encoder, torch.zeros_like(ids)) == 0
    doubled = torch.cat([ids, torch.zeros_like(ids)], dim=1)  # padding does not count
    assert objective.count(model.item_encoder, doubled) == count


@kinds
def test_a_denominator_divides_the_sum(kind):
    """Prevents a mean of means where batches are accumulated."""
    model, batch = model_of(kind, **OPTIONS[kind]), objective_batch()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.manual_seed(0)
    own = model(**batch)
    count = model.objectives[kind].count(model.item_encoder, batch["item_ids"])
    given = {**own.counts, kind: 4 * count}
    torch.manual_seed(0)
    found = model(**batch, step=LossStep(given))
    torch.testing.assert_close(4 * found.objectives[kind], own.objectives[kind])


@kinds
def test_it_is_saved_with_the_model(kind, tmp_path):
    """Prevents what an objective has learnt from being lost where training goes on from a checkpoint."""
    model = model_of(kind)
    with torch.no_grad():
        for p in model.objectives.parameters():
            p.add_(0.5)
    model.save_pretrained(tmp_path)
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path)
    assert loaded.config.objectives == model.config.objectives
    torch.testing.assert_close(loaded.objectives.state_dict(), model.objectives.state_dict(), rtol=0, atol=0)


@kinds
def test_a_model_without_it_can_take_it_on(kind, tmp_path):
    """Prevents parameters that are in no file from being whatever lay in memory."""
    objective_model(None, like=kind).save_pretrained(tmp_path)
    config = model_of(kind).config
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path, config=config).train()
    if kind in READS_TEXTS:
        loaded.load_texts(text_processor(config.num_items))
    for name, p in loaded.objectives.named_parameters():
        assert torch.isfinite(p).all(), name
        assert p.abs().max() < 10, name
    assert torch.isfinite(loaded(**objective_batch()).loss)


def test_names_are_checked():
    """Prevents a misspelt objective from being left out, and one from hiding the loss of a task in the log."""
    with pytest.raises(ValueError, match="unknown objective 'contrastiv'.*did you mean 'contrastive'"):
        PolyRecConfig(objectives={"contrastiv": {}})
    with pytest.raises(ValueError, match="'contrastive' is the name of an objective and of a task: rename the task"):
        PolyRecConfig(tasks=[{"name": "contrastive", "head": "binary"}], objectives={"contrastive": {}})
