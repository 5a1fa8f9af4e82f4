"""The arithmetic of ESCM2, and the two promises it makes: unbiasedness and double robustness."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from coupling_fixtures import NAN, chain, chain_batch, coupling_of, found, model_of

OUTCOMES = list(itertools.product([0.0, 1.0], repeat=2))  # clicked, would buy if clicked


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def delta(logit, label):
    """Logistic loss, by its definition."""
    return -(label * np.log(sigmoid(logit)) + (1 - label) * np.log(sigmoid(-logit)))


def imputing(logits_BC, **options):
    """A coupling, and a hidden vector of which its tower imputes these log odds."""
    coupling = coupling_of("escm2", method="dr", **options)
    with torch.no_grad():
        coupling.imputation.weight.copy_(torch.eye(1, 8))
        coupling.imputation.bias.zero_()
    return coupling, torch.nn.functional.pad(logits_BC.unsqueeze(-1), (0, 7))


# ------------------------------------------------------------------ arithmetic
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("propensity", ["predicted", "logged"])
@pytest.mark.parametrize("method", ["ips", "dr"])
def test_loss_equals_a_naive_loop(method, propensity, members):
    """Prevents a mean over clicked rows in the place of all rows, an unclipped propensity, and swapped terms."""
    random, shape = np.random.default_rng(0), (4, 6)
    own, parent, imputed = random.normal(0, 2, (3, *shape, members))
    clicked = random.integers(0, 2, shape).astype(float)
    labels = clicked * random.integers(0, 2, shape)
    weight = random.random(shape) * 30 + 0.5
    clicked[1, :2] = labels[2, :2] = weight[2, 0] = NAN
    expected = 0.0
    for b, c in np.argwhere(~np.isnan(labels)):
        logged, label = propensity == "logged", labels[b, c]
        w = 1.0 if logged else weight[b, c]
        o_hat = max(1 / weight[b, c] if logged else sigmoid(parent[b, c].mean()), 0.2)
        for m in range(members):
            p = sigmoid(own[b, c, m]) * sigmoid(parent[b, c, m])
            loss = -(label * np.log(p) + (1 - label) * np.log(1 - p))
            if clicked[b, c] in (0, 1):
                o, mine = clicked[b, c], delta(own[b, c, m], label)
                if method == "ips":
                    loss += 0.5 * o * mine / o_hat
                else:
                    guess = delta(own[b, c, m], sigmoid(imputed[b, c, m]))
                    loss += 0.5 * (guess + o * (mine - guess) / o_hat + o * (mine - guess) ** 2 / o_hat)
            expected += w * loss / members
    options = {"counterfactual_weight": 0.5, "clip": 0.2, "propensity": propensity}
    own, parent, imputed, labels, clicked, weight = (
        torch.from_numpy(x).float().squeeze(-1) if x.ndim == 3 and members == 1 else torch.from_numpy(x).float()
        for x in (own, parent, imputed, labels, clicked, weight)
    )
    coupling, hidden = imputing(imputed, **options) if method == "dr" else (coupling_of("escm2", **options), None)
    total, count = coupling.loss(found(coupling, own, parent, labels, clicked, weight, hidden))
    np.testing.assert_allclose(total.item(), expected, rtol=1e-5)
    np.testing.assert_allclose(count.item(), weight[~torch.isnan(labels)].sum(), rtol=1e-5)


def test_extreme_answers_stay_finite():
    """Prevents an infinite weight where the parent's probability underflows to 0, or log(0)."""
    grid = torch.cartesian_prod(*[torch.tensor([-200.0, -30.0, 0.0, 30.0, 200.0])] * 3).unsqueeze(0)
    for method, (clicked, bought) in itertools.product(["ips", "dr"], OUTCOMES):
        own, parent, imputed = grid.clone().requires_grad_().unbind(-1)
        coupling, hidden = imputing(imputed) if method == "dr" else (coupling_of("escm2"), None)
        labels = torch.ones_like(own)
        total, _ = coupling.loss(
            found(coupling, own, parent, clicked * bought * labels, clicked * labels, None, hidden)
        )
        assert torch.isfinite(total)
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(total, [own, parent]))


# ------------------------------------------------------------------ promises
def counterfactual(coupling, own, parent, clicked, bought, hidden=None):
    """L_CVR and its gradient at the conditional: what the coupling adds to the loss of the joint event."""
    own = own.clone().requires_grad_()
    case = found(coupling, own, parent, clicked * bought, clicked, None, hidden)
    loss = coupling.loss(case)[0] - case.head.loss(case.logits, case.labels)[0]
    return loss.item(), torch.autograd.grad(loss, own)[0]


def expectation(coupling, own, parent, click_rate, buy_rate, hidden=None):
    """Exact expectation over clicks and purchases, row by row."""
    loss, gradient = 0.0, torch.zeros_like(own)
    for row in range(own.shape[1]):
        at = (slice(0, 1), slice(row, row + 1))
        for clicked, bought in OUTCOMES:
            p, q = click_rate[at].item(), buy_rate[at].item()
            chance = (p if clicked else 1 - p) * (q if bought else 1 - q)
            labels = torch.ones(1, 1)
            args = (own[at], parent[at], clicked * labels, bought * labels, None if hidden is None else hidden[at])
            value, slope = counterfactual(coupling, *args)
            loss, gradient[at] = loss + chance * value, gradient[at] + chance * slope
    return loss, gradient


def world(seed=0, rows=6):
    """Conditionals, and the rates of clicks and purchases, of which none is what another one predicts."""
    torch.manual_seed(seed)
    own, click_logit, buy_logit = torch.randn(3, 1, rows)
    full = delta(own.double().numpy(), torch.sigmoid(buy_logit).double().numpy()).sum()
    return own, click_logit, buy_logit, full, torch.sigmoid(own) - torch.sigmoid(buy_logit)


def test_ips_is_unbiased_for_the_loss_of_everybody_clicking():
    """Prevents the selection bias that the method exists to remove; a naive mean over clicked rows fails this."""
    own, click_logit, buy_logit, full, slope = world()
    rates = torch.sigmoid(click_logit), torch.sigmoid(buy_logit)
    loss, gradient = expectation(coupling_of("escm2"), own, click_logit, *rates)
    np.testing.assert_allclose(loss, full, rtol=1e-4)
    torch.testing.assert_close(gradient, slope, rtol=1e-3, atol=1e-4)
    wrong, _ = expectation(coupling_of("escm2"), own, click_logit + 1, *rates)
    assert abs(wrong - full) > 0.1 * full


def test_ips_with_logged_propensities_is_unbiased_over_many_draws():
    """Prevents the weights of a log from being applied to the wrong rows, or twice."""
    own, click_logit, buy_logit, full, _ = world(rows=50)
    clicked, bought = (torch.bernoulli(torch.sigmoid(x).expand(2000, -1)) for x in (click_logit, buy_logit))
    coupling = coupling_of("escm2", propensity="logged", clip=1e-3)
    draws, ones = [], torch.zeros(1, 50)
    weight = (1 / torch.sigmoid(click_logit)).expand(2000, -1)
    for o, r, w in zip(clicked.split(1), bought.split(1), weight.split(1), strict=True):
        case = found(coupling, own, ones, o * r, o, torch.where(o == 1, w, 1.0))
        draws.append((coupling.loss(case)[0] - case.head.loss(case.logits, case.labels)[0]).item())
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws) - full) < 4 * error
    assert error < 0.02 * full


@pytest.mark.parametrize("right", ["propensity", "imputation", "neither"])
def test_dr_is_doubly_robust(right):
    """Prevents an estimator (or only its gradient) that needs both of propensity and imputation to be right."""
    own, click_logit, buy_logit, full, slope = world(seed=1)
    rates = torch.sigmoid(click_logit), torch.sigmoid(buy_logit)
    parent = click_logit if right == "propensity" else click_logit.flip(1) + 1
    guess = buy_logit if right == "imputation" else buy_logit.flip(1) - 1
    coupling, hidden = imputing(guess, clip=1e-3)
    loss, gradient = expectation(coupling, own, parent, *rates, hidden)
    # What the imputation term adds, o (delta - delta_hat)^2 / o_hat with delta - delta_hat = -logit (r - r_tilde).
    p, q, o_hat, r_hat = (x.double() for x in (*rates, torch.sigmoid(parent), torch.sigmoid(guess)))
    squares = q * (1 - r_hat) ** 2 + (1 - q) * r_hat**2
    loss -= (p / o_hat * own.double() ** 2 * squares).sum().item()
    if right == "neither":
        assert abs(loss - full) > 0.05 * full
        assert (gradient - slope).abs().max() > 0.05
    else:
        np.testing.assert_allclose(loss, full, rtol=1e-4)
        torch.testing.assert_close(gradient, slope, rtol=1e-3, atol=1e-4)


def test_the_tower_learns_the_conversion_rate_of_clicked_rows():
    """Prevents a tower that the error term, or the rows nobody clicked, mislead."""
    own, parent = torch.full((1, 100), 2.0), torch.zeros(1, 100)
    clicked = torch.arange(100).lt(50).float().unsqueeze(0)
    bought = torch.arange(100).lt(15).float().unsqueeze(0)  # 15 of 50
    coupling, hidden = imputing(torch.zeros(1, 100))
    optimizer = torch.optim.Adam([coupling.imputation.bias], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        coupling.loss(found(coupling, own, parent, bought, clicked, None, hidden))[0].backward()
        optimizer.step()
    assert torch.sigmoid(coupling.imputation.bias).item() == pytest.approx(0.3, abs=1e-3)


def test_propensity_is_a_constant_in_the_gradient():
    """Prevents the parent from learning large probabilities only to make the child's loss small."""
    own, labels = torch.randn(1, 5), torch.ones(1, 5)
    for method in ("ips", "dr"):
        coupling = coupling_of("escm2", method=method, detach_parent=True)
        parent = torch.randn(1, 5, requires_grad=True)
        total, _ = coupling.loss(found(coupling, own.clone().requires_grad_(), parent, labels, labels))
        assert torch.autograd.grad(total, parent, allow_unused=True) == (None,)


def test_answers_are_those_of_esmm_and_the_imputation_starts_at_the_conditional_rate():
    """Prevents the two methods from drifting apart, and a tower that starts at the marginal rate."""
    coupling, plain = (coupling_of(kind, priors=(0.2, 0.05)) for kind in ("escm2", "esmm"))
    a, b = torch.randn(2, 3, 4)
    assert torch.equal(coupling.logits(a, b), plain.logits(a, b))
    tower = coupling_of("escm2", priors=(0.2, 0.05), method="dr").imputation
    assert torch.sigmoid(tower.bias).item() == pytest.approx(0.25)


# ------------------------------------------------------------------ errors
@pytest.mark.parametrize(("value", "shown"), [(NAN, "nan"), (float("inf"), "inf"), (0.0, "0.0"), (-2.0, "-2.0")])
def test_logged_propensities_that_are_zero_or_missing_are_refused(value, shown):
    """Prevents one row of an impossible propensity from ruling, or poisoning, the loss; unknown rows may be NaN."""
    names = ["click", "buy"]
    model, batch = model_of(chain("escm2", names, propensity="logged")), chain_batch(names)
    labels, weight = batch["labels"]["buy"], batch["sample_weight"]["buy"]
    weight[torch.isnan(labels)] = value
    assert torch.isfinite(model(**batch).loss)
    weight[~torch.isnan(labels)] = value
    with pytest.raises(ValueError, match=f"sample_weight\\['buy'\\] is {shown} in .*must be positive and finite"):
        model(**batch)
    del batch["sample_weight"]
    with pytest.raises(ValueError, match="the batch has no sample_weight\\['buy'\\]: give 1 / propensity, or"):
        model(**batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dm"}, "unknown method 'dm' of coupling 'escm2' of task 'buy'; known: dr, ips"),
        ({"propensity": "loged"}, "unknown propensity 'loged' .*did you mean 'logged'"),
        ({"clip": 0}, "option 'clip' .* is 0.0; it must lie in \\(0, 1\\]"),
        ({"clip": 1.5}, "must lie in"),
        ({"clip": NAN}, "option 'clip' .* is nan; it must be a number"),
        ({"counterfactual_weight": -1}, "option 'counterfactual_weight' .* is -1.0; it must be a finite number >= 0"),
        ({"counterfactual_weight": NAN}, "is nan; it must be a number"),
    ],
    ids=str,
)
def test_options_are_checked_at_construction(options, message):
    """Prevents a method or bound that does nothing from being found out after a day of training."""
    with pytest.raises(ValueError, match=message):
        coupling_of("escm2", **options)


def test_the_counterfactual_loss_may_be_left_out():
    """Prevents an ablation, the plain ESMM, from being refused."""
    assert coupling_of("escm2", counterfactual_weight=0).options["counterfactual_weight"] == 0
