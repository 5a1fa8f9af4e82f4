"""The arithmetic of ESMM: a product of probabilities, as a logit."""

from __future__ import annotations

import math

import pytest
import torch
from coupling_fixtures import chain, chain_batch, coupling_of, model_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from polyrec.modules.coupling.esmm import product_logit

FINITE = st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=1, max_size=20)
EXTREME = [-100.0, -30.0, 0.0, 30.0, 100.0]


@settings(max_examples=100, deadline=None)
@given(FINITE, st.integers(0, 1))
def test_value_and_gradient_equal_autograd_of_the_plain_formula(pairs, label):
    """Prevents a closed form that is not the product, or whose gradient at one of the two answers is wrong."""
    a, b = torch.tensor(pairs, dtype=torch.float64).T.requires_grad_().unbind()
    p = torch.sigmoid(a) * torch.sigmoid(b)
    rest = torch.sigmoid(-a) + torch.sigmoid(a) * torch.sigmoid(-b)  # 1 - p without cancellation
    plain = -(label * torch.log(p) + (1 - label) * torch.log(rest)).sum()
    logit = product_logit(a, b)
    stable = F.binary_cross_entropy_with_logits(logit, torch.full_like(logit, label), reduction="sum")
    torch.testing.assert_close(torch.sigmoid(logit), p)
    torch.testing.assert_close(stable, plain)
    for one, other in zip(torch.autograd.grad(stable, [a, b]), torch.autograd.grad(plain, [a, b]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_extreme_logits_stay_finite_and_teach(dtype, label):
    """Prevents log(0) = -inf, or a vanished gradient, where a product of probabilities underflows."""
    grid = torch.cartesian_prod(torch.tensor(EXTREME), torch.tensor(EXTREME)).to(dtype)
    a, b = grid.T.clone().requires_grad_().unbind()
    logit = product_logit(a, b)
    loss = F.binary_cross_entropy_with_logits(logit, torch.full_like(logit, label), reduction="none")
    gradients = torch.autograd.grad(loss.sum(), [a, b])
    assert logit.dtype == torch.float32
    assert torch.isfinite(logit).all()
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(g).all() for g in gradients)
    sunk = (a == -100) & (b == -100)
    assert logit[sunk].item() == pytest.approx(-200)
    if label == 1:  # both answers are as wrong as can be: both are pushed with full force
        assert all(g[sunk].item() == pytest.approx(-1) for g in gradients)


def test_half_precision_does_not_round_away_the_smaller_probability():
    """Prevents the product from being taken in bf16, in which 8 + 0.01 is 8."""
    a, b = torch.tensor([8.0, 8.0]).bfloat16(), torch.tensor([4.0, -3.0]).bfloat16()
    torch.testing.assert_close(product_logit(a, b), product_logit(a.double(), b.double()).float())


def test_a_chain_is_the_product_of_all_its_conditionals():
    """Prevents a grandchild from being multiplied by its parent's conditional instead of its parent's answer."""
    names = ["click", "cart", "buy"]
    model, batch = model_of(chain("esmm", names)), chain_batch(names)
    own = {}
    for name in names:
        model.heads[name].register_forward_hook(lambda module, args, out, name=name: own.update({name: out}))
    logits, product = model(**batch).logits, 1.0
    for name in names:
        product = product * torch.sigmoid(own[name])
        torch.testing.assert_close(torch.sigmoid(logits[name]).flatten(), product.flatten())  # no padding here
    assert (logits["buy"] < logits["cart"]).all()
    assert (logits["cart"] < logits["click"]).all()


def test_first_answers_are_at_the_marginal_rates():
    """Prevents a start at P(parent) P(child), which the first epochs would have to climb out of."""
    priors = {"click": 0.3, "cart": 0.06, "buy": 0.003}
    tasks = chain("esmm", list(priors))
    for task in tasks:
        task["options"] = {"prior": priors[task["name"]]}
    model, batch = model_of(tasks), chain_batch(list(priors))
    for name in priors:  # the first answers, without what chance put into the weights
        model.heads[name].output.weight.data.zero_()
    for name, logits in model(**batch).logits.items():
        torch.testing.assert_close(torch.sigmoid(logits), torch.full_like(logits, priors[name]))


def test_where_every_parent_has_its_child_the_conditional_starts_high_and_finite():
    """Prevents infinite log odds where the two rates are equal."""
    coupling = coupling_of("esmm", priors=(0.2, 0.2))
    p = torch.sigmoid(coupling.logits(torch.tensor(0.2).logit(), torch.tensor(0.2).logit()))
    assert p.item() == pytest.approx(0.2, rel=0.01)
    assert math.isfinite(coupling.shift)


def test_without_a_rate_of_the_child_its_head_starts_the_conditional():
    """Prevents the default of an option from being taken for a measured rate."""
    assert coupling_of("esmm").shift == 0
    assert coupling_of("esmm", priors=(0.2,)).shift == 0


def test_labels_that_are_known_only_after_a_click_are_refused_by_their_rates():
    """Prevents the commonest mistake: a conditional label, of which the product learns P(child | parent) as P(child)."""
    with pytest.raises(
        ValueError, match="prior 0.4 is above the prior 0.1 of its parent 'click'.*0 where 'click' is 0"
    ):
        coupling_of("esmm", priors=(0.1, 0.4))


@pytest.mark.parametrize("detach", [False, True])
def test_detached_parent_is_not_trained_by_the_child(detach):
    """Prevents the option from being accepted and ignored."""
    a, b = torch.randn(2, 2, 3).requires_grad_().unbind()
    one, other = torch.autograd.grad(
        coupling_of("esmm", detach_parent=detach).logits(b, a).sum(), [a, b], allow_unused=True
    )
    assert (one is None) == detach
    assert (other != 0).all()
