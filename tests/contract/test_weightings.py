"""What every registered loss weighting must do."""

from __future__ import annotations

import pytest
import torch
from model_fixtures import random_batch, random_config
from torch import nn

from polyrec import PolyRecForRecommendation
from polyrec.core.registry import WEIGHTINGS
from polyrec.modules.weighting.base import LossWeighting, StepContext

KINDS = WEIGHTINGS.names()
NAMES = ["like", "click", "next_item"]
TASKS = [
    {"name": "like", "head": "binary", "weight": 2.0},
    {"name": "click", "head": "binary", "weight": 0.5},
    {"name": "next_item", "head": "retrieval"},
]
kinds = pytest.mark.parametrize("kind", KINDS)
JACOBIAN = torch.tensor([[3.0, 0.0, 1.0], [-1.0, 0.5, 0.0], [0.0, -0.2, 0.1]])  # by name: click, like, next_item
GRAMIAN = JACOBIAN @ JACOBIAN.T
STEPS = [{"click": 1.0, "like": 2.0, "next_item": 3.0}, {"click": 0.9, "like": 0.4}, {"click": 0.5, "next_item": 2.9}]


def model_of(kind, tasks=TASKS, **options):
    torch.manual_seed(0)
    config = random_config(tasks=tasks, weighting=kind, weighting_options=options)
    return PolyRecForRecommendation(config)


def losses_of(values):
    return {name: torch.tensor(value, requires_grad=True) for name, value in zip(NAMES, values, strict=True)}


@kinds
def test_it_documents_itself(kind):
    """Prevents a weighting without formula or example."""
    cls = WEIGHTINGS.get(kind)
    assert issubclass(cls, LossWeighting)
    assert ">>> " in cls.__doc__
    assert "L = " in cls.__doc__
    assert "Shapes:" in cls.__doc__


@kinds
def test_unknown_option_is_refused(kind):
    """Prevents a misspelt option of a weighting from being ignored."""
    with pytest.raises(ValueError, match=f"unknown option 'temprature' of loss weighting '{kind}'"):
        model_of(kind, temprature=1.0)


@kinds
def test_total_is_a_scalar_that_reaches_every_loss(kind):
    """Prevents a task from being cut off from the objective, and weights that are named by position."""
    losses = losses_of([1.0, 2.0, 3.0])
    total, weights = model_of(kind).weighting(losses)
    assert total.shape == ()
    assert set(weights) == set(NAMES)
    total.backward()
    for name, loss in losses.items():
        assert loss.grad is not None, name
        assert loss.grad > 0, name


@kinds
def test_order_of_tasks_does_not_matter(kind):
    """Prevents weights from following the position of a task, in the configuration or in the dict of losses."""
    one, other = model_of(kind).weighting, model_of(kind, TASKS[::-1]).weighting
    other.load_state_dict(one.state_dict())
    losses = losses_of([1.0, 2.0, 3.0])
    expected, weights = one(losses)
    total, found = other(dict(reversed(losses.items())))
    torch.testing.assert_close(total, expected)
    assert {n: float(w) for n, w in found.items()} == pytest.approx({n: float(w) for n, w in weights.items()})


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [1e4, 1e-4, 1.0]])
@kinds
def test_stays_finite(kind, values):
    """Prevents a task without labels (loss 0), or a very large loss, from giving NaN."""
    losses = losses_of(values)
    total, _ = model_of(kind).weighting(losses)
    assert torch.isfinite(total)
    total.backward()
    assert all(torch.isfinite(loss.grad) for loss in losses.values())


@kinds
def test_one_task_only(kind):
    """Prevents a weighting that divides by a spread over tasks."""
    model = model_of(kind, TASKS[:1])
    output = model(**random_batch(["like"]))
    assert torch.isfinite(output.loss)
    output.loss.backward()


@kinds
def test_it_is_part_of_the_model_and_reloads(kind, tmp_path):
    """Prevents learnt weights from being lost when a model is saved (a bug of sentence-transformers' losses)."""
    model = model_of(kind)
    assert isinstance(model.weighting, nn.Module)
    with torch.no_grad():
        for p in model.weighting.parameters():
            p.add_(0.5)
    for losses in STEPS:
        model.weighting.observe(losses, GRAMIAN)
    model.save_pretrained(tmp_path)
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path)
    batch = random_batch(NAMES)
    assert torch.equal(loaded(**batch).loss, model.eval()(**batch).loss)
    torch.testing.assert_close(loaded.weighting.state_dict(), model.weighting.state_dict(), rtol=0, atol=0)


@kinds
def test_a_new_model_starts_at_the_start(kind, tmp_path):
    """Prevents state that is neither in a file nor set by `initialise` from being whatever lay in memory."""
    expected = model_of(kind).weighting
    bare = model_of("fixed")
    bare.save_pretrained(tmp_path)
    config = random_config(tasks=TASKS, weighting=kind)
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path, config=config).weighting
    torch.testing.assert_close(loaded.state_dict(), expected.state_dict(), rtol=0, atol=0)


@kinds
def test_weights_are_the_gradients_of_the_total(kind):
    """Prevents a report of other weights than those that act, and a total that is not the weighted sum."""
    weighting = model_of(kind).weighting
    for losses in STEPS:
        weighting.observe(losses, GRAMIAN)
    losses = losses_of([1.0, 2.0, 3.0])
    context = StepContext(0.5, {name: torch.tensor(True) for name in NAMES}, GRAMIAN)
    total, weights = weighting(losses, context)
    total.backward()
    for name, loss in losses.items():
        assert not weights[name].requires_grad
        assert weights[name] >= 0
        assert loss.grad.item() == pytest.approx(weights[name].item(), rel=1e-5), name


@kinds
def test_weights_are_those_of_the_step(kind):
    """Prevents batches of one optimizer step, or ranks, from weighing a task differently: they read the values of
    losses only through `observe`, and `share` adds up."""
    weighting = model_of(kind).weighting
    for losses in STEPS:
        weighting.observe(losses, GRAMIAN)
    whole, weights = weighting(losses_of([2.0, 4.0, 8.0]), StepContext(gramian=GRAMIAN))
    parts = [
        weighting(losses_of(values), StepContext(0.5, gramian=GRAMIAN)) for values in ([0.5, 4.0, 7.0], [1.5, 0.0, 1.0])
    ]
    torch.testing.assert_close(sum(total for total, _ in parts), whole)
    for _, found in parts:
        assert {n: w.item() for n, w in found.items()} == pytest.approx({n: w.item() for n, w in weights.items()})


@kinds
def test_a_frozen_task_stays_frozen(kind):
    """Prevents a weighting from bringing a task back that training has stopped (scale 0), or from failing over it."""
    model = model_of(kind)
    model.weighting.scale_of("like").zero_()
    for losses in STEPS:
        model.weighting.observe(losses, GRAMIAN)
    output = model(**random_batch(NAMES))
    output.loss.backward()
    own = [p.grad for p in model.heads["like"].parameters()]
    assert all(g is None or g.abs().max() == 0 for g in own)
    assert any(p.grad.abs().max() > 0 for p in model.heads["click"].parameters())


def test_fixed_is_the_weighted_sum():
    """Prevents the weights of tasks from being normalised, squared or ignored."""
    weighting = model_of("fixed").weighting
    total, _ = weighting(weighting.scaled(losses_of([1.0, 2.0, 3.0])))
    assert total.item() == 2.0 * 1 + 0.5 * 2 + 1.0 * 3
