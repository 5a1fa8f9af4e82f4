"""The Gramian at the shared representation, against full autograd."""

from __future__ import annotations

import pytest
import torch
from model_fixtures import TASKS, random_batch, random_config

from polyrec import PolyRecForRecommendation
from polyrec.models import multitask_loss

NAMES = sorted(t["name"] for t in TASKS)


def model_of(experts="shared_bottom", tasks=TASKS, **options):
    torch.manual_seed(0)
    return PolyRecForRecommendation(
        random_config(
            tasks=tasks, experts=experts, weighting="aggregation", weighting_options={"method": "mgda"}, **options
        )
    )


@pytest.fixture
def asked(monkeypatch):
    """The tensors at which, and the losses of which, a Gramian was wanted."""
    found = []
    original = multitask_loss.gramian

    def gramian(losses, at):
        found.append((at, dict(losses)))
        return original(losses, at)

    monkeypatch.setattr(multitask_loss, "gramian", gramian)
    return found


@pytest.mark.parametrize("experts", ["shared_bottom", "mmoe"])
def test_gramian_is_jacobian_times_its_transpose(asked, experts):
    """Prevents cross terms from being lost, rows from being in another order than names, lambdas from being ignored."""
    model = model_of(experts)
    output = model(**random_batch(NAMES))
    ((at, losses),) = asked
    assert len(at) == 3  # states, pairs, evidence
    rows = []
    for name in NAMES:
        gradients = torch.autograd.grad(losses[name], at, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(x) if g is None else g for x, g in zip(at, gradients, strict=True)]
        rows.append(torch.cat([p.flatten() for p in parts]).double())
    jacobian = torch.stack(rows)
    torch.testing.assert_close(output.gramian.double(), jacobian @ jacobian.T, rtol=1e-5, atol=1e-9)
    like, next_item, rating = range(3)
    assert (output.gramian.diagonal() > 0).all()
    assert output.gramian[like, rating] != 0
    assert output.gramian[like, next_item] == 0  # they meet below
    heavier = [t | {"weight": 3.0} if t["name"] == "like" else t for t in TASKS]
    other = model_of(experts, heavier)(**random_batch(NAMES))
    assert other.gramian[like, like].item() == pytest.approx(9 * output.gramian[like, like].item(), rel=1e-4)


def test_pair_tasks_gradients_are_those_of_the_pair_vectors(asked):
    """Prevents norms from being taken elsewhere (torch-rechub: at the first embedding table, where rare items rule)."""
    model = model_of(candidate_attention_heads=0)
    seen = []
    model.pair_encoder.register_forward_hook(lambda module, inputs, result: seen.append(result[0]))
    output = model(**random_batch(NAMES))
    for row, name in enumerate(NAMES):
        if name in model.pair_tasks:
            (gradient,) = torch.autograd.grad(asked[0][1][name], seen[0], retain_graph=True)
            assert output.gramian[row, row].item() == pytest.approx(gradient.square().sum().item(), rel=1e-5)


def test_one_backward_gives_the_weighted_sum_of_gradients():
    """Prevents the extra passes from leaving gradients behind, or weights from being differentiated through."""
    model = model_of()
    output = model(**random_batch(NAMES))
    assert all(p.grad is None for p in model.parameters())
    output.loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    again = model(**random_batch(NAMES))
    lambdas = {t["name"]: t.get("weight", 1.0) for t in TASKS}
    plain = sum(output.weights[n].item() * lambdas[n] * again.losses[n] / again.counts[n] for n in NAMES)
    plain.backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, dict(model.named_parameters())[name].grad, rtol=1e-4, atol=1e-6)


def test_order_of_tasks_does_not_matter():
    """Prevents a Gramian by position: another order of tasks in the configuration, the same Gramian and loss."""
    one, other = model_of(), model_of(tasks=TASKS[::-1])
    other.load_state_dict(one.state_dict())
    expected, found = one(**random_batch(NAMES)), other(**random_batch(NAMES))
    torch.testing.assert_close(found.gramian, expected.gramian)
    torch.testing.assert_close(found.loss, expected.loss)


def test_products_are_full_precision_under_autocast(asked):
    """Prevents autocast from rounding inner products to 8 bits, so that orthogonal gradients seem to conflict."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model_of()(**random_batch(NAMES))
    ((at, losses),) = asked
    assert output.gramian.dtype == torch.float32
    gradients = torch.autograd.grad(losses["like"], at, retain_graph=True, allow_unused=True)
    exact = sum(g.double().square().sum().item() for g in gradients if g is not None)
    assert output.gramian[NAMES.index("like"), NAMES.index("like")].item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("missing", NAMES)
def test_a_task_without_labels_has_no_gradient(missing):
    """Prevents a batch without labels of a task from failing or from counting in the balance."""
    batch = random_batch(NAMES)
    del batch["labels"][missing]
    output = model_of()(**batch)
    row = NAMES.index(missing)
    assert output.gramian[row].abs().max() == 0
    assert output.weights[missing] == 1
    output.loss.backward()


def test_loss_without_gradients():
    """Prevents the loss of validation data from needing gradients."""
    with torch.no_grad():
        output = model_of()(**random_batch(NAMES))
    assert output.gramian is None
    assert torch.isfinite(output.loss)
    assert {w.item() for w in output.weights.values()} == {1.0}
