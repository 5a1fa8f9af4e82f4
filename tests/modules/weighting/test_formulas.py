"""Each weighting against its published formula, written out here without our code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from model_fixtures import random_config
from torch.nn import functional as F

from polyrec.core.registry import WEIGHTINGS
from polyrec.modules.weighting.base import StepContext

NAMES = ["click", "like", "rating"]
TASKS = [
    {"name": "rating", "head": "regression"},  # not in the order of names, on purpose
    {"name": "click", "head": "binary"},
    {"name": "like", "head": "binary"},
]


def weighting_of(kind, **options):
    return WEIGHTINGS.get(kind)(random_config(tasks=TASKS, weighting=kind, weighting_options=options))


def named(values):
    return dict(zip(NAMES, values, strict=True))


def losses_of(values):
    return {name: torch.tensor(float(value), requires_grad=True) for name, value in named(values).items()}


def observed(weighting, history, gramians=None):
    for i, values in enumerate(history):
        weighting.observe(named(values), None if gramians is None else torch.tensor(gramians[i]))
    return weighting


def answer(weighting, values, context=None):
    total, weights = weighting(losses_of(values), context)
    return total.item(), [weights[name].item() for name in NAMES]


HISTORY = np.exp(np.random.default_rng(0).normal(-1, 0.7, (7, 3))).tolist()


# ------------------------------------------------------------------ uncertainty
def plain_uncertainty(losses, log_variance, share=1.0, active=(1, 1, 1)):
    """Kendall et al., 2018, equations 7 and 10, s = log sigma^2: L / (2 sigma^2) + log sigma, and L / sigma^2 + ..."""
    total = 0
    for i, name in enumerate(NAMES):
        sigma = torch.exp(log_variance[i] / 2)
        factor = 2 if name == "rating" else 1
        total = total + losses[name] / (factor * sigma**2) + share * active[i] * torch.log(sigma)
    return total


@pytest.mark.parametrize(("share", "active"), [(1.0, (1, 1, 1)), (0.25, (1, 0, 1))])
def test_uncertainty_is_kendalls_formula(share, active):
    """Prevents a wrong factor or sign: total and every gradient against autograd of the plain formula."""
    weighting = weighting_of("uncertainty")
    s = torch.tensor([-1.5, 0.3, 2.0], requires_grad=True)
    with torch.no_grad():
        weighting.log_variance.copy_(s)
    values = [0.7 * a for a in active]
    ours, plain = losses_of(values), losses_of(values)
    context = StepContext(share, {n: torch.tensor(bool(a)) for n, a in zip(NAMES, active, strict=True)})
    total, weights = weighting(ours, context)
    expected = plain_uncertainty(plain, s, share, active)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    total.backward()
    expected.backward()
    torch.testing.assert_close(weighting.log_variance.grad, s.grad)
    for name in NAMES:
        assert ours[name].grad.item() == pytest.approx(plain[name].grad.item())
        assert weights[name].item() == pytest.approx(plain[name].grad.item())
    if active[1] == 0:  # without labels in the step a task must not move its variance
        assert weighting.log_variance.grad[1] == 0


def test_uncertainty_can_raise_a_weight_above_the_start():
    """Prevents the log variance from being cut at 0 (torch-rechub): a small loss deserves the weight 1 / (2 L)."""
    weighting = weighting_of("uncertainty")
    values = [0.01, 5.0, 0.05]
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        weighting(losses_of(values))[0].backward()
        optimizer.step()
    _, weights = answer(weighting, values)
    assert weights == pytest.approx([1 / (2 * v) for v in values], rel=0.02)


def test_uncertainty_does_not_undo_the_scale():
    """Prevents the variance of a task that training has lowered from shrinking until the task is back."""
    weighting = weighting_of("uncertainty")
    weighting.scale.copy_(torch.tensor([1.0, 0.0, 0.5]))
    total, _ = weighting(weighting.scaled(losses_of([0.5, 0.5, 1.0])))
    total.backward()
    gradient = weighting.log_variance.grad
    assert gradient[1] == 0
    assert gradient[2] == pytest.approx(0.5 * (0.5 - 0.5 * 1.0))  # half of what it is at full weight


# ------------------------------------------------------------------ dwa
@pytest.mark.parametrize("period", [1, 2])
def test_dwa_is_the_published_formula(period):
    """Prevents ratios the wrong way round, and weights that are always 1 after dividing by their mean (TorchEasyRec)."""
    weighting = weighting_of("dwa", period=period, temperature=2.0)
    history = HISTORY[: 3 * period] + HISTORY[-1:] * (period - 1)  # an unfinished period changes nothing
    observed(weighting, history)
    means = np.array(HISTORY[: 3 * period]).reshape(3, period, 3).mean(1)
    # LibMTL's DWA: w_i = L_i(t - 1) / L_i(t - 2); batch_weight = task_num * softmax(w / T)
    ratio = means[2] / means[1]
    expected = 3 * np.exp(ratio / 2) / np.exp(ratio / 2).sum()
    total, weights = answer(weighting, [1.0, 2.0, 3.0])
    assert weights == pytest.approx(expected, rel=1e-5)
    assert total == pytest.approx(expected @ [1, 2, 3], rel=1e-5)
    assert np.std(weights) > 0.01


def test_dwa_starts_equal_and_waits_for_labels():
    """Prevents a task without labels for a while from getting the weight of a task that got infinitely worse."""
    weighting = weighting_of("dwa", period=1)
    assert answer(weighting, [1, 1, 1])[1] == pytest.approx([1, 1, 1])
    weighting.observe({"click": 1.0, "like": 1.0})
    weighting.observe({"click": 1.0, "like": 1.0, "rating": 9.0})
    assert answer(weighting, [1, 1, 1])[1] == pytest.approx([1, 1, 1])


# ------------------------------------------------------------------ gradnorm
def test_gradnorm_steps_along_the_gradient_of_the_published_loss():
    """Prevents a wrong sign, or a target that is differentiated through: three steps against autograd."""
    random = np.random.default_rng(1)
    jacobians = [torch.tensor(random.normal(size=(3, 6)) * [[1.0], [3.0], [0.2]]).float() for _ in range(3)]
    weighting = weighting_of("gradnorm", alpha=0.7, lr=0.03)
    w, first = torch.ones(3), torch.tensor(HISTORY[0])
    for values, jacobian in zip(HISTORY[:3], jacobians, strict=True):
        norms = jacobian.norm(dim=1)
        norms = norms / norms.mean()  # ours: see the docstring
        w.requires_grad_()
        rates = torch.tensor(values) / first
        lengths = w * norms
        target = (lengths.mean() * (rates / rates.mean()) ** 0.7).detach()
        (gradient,) = torch.autograd.grad((lengths - target).abs().sum(), w)
        w = (w - 0.03 * gradient).detach()
        w = w * 3 / w.sum()
        weighting.observe(named(values), jacobian @ jacobian.T)
    total, weights = answer(weighting, [1.0, 2.0, 3.0])
    assert weights == pytest.approx(w.tolist(), rel=1e-5)
    assert total == pytest.approx(float(w @ torch.tensor([1.0, 2.0, 3.0])), rel=1e-5)


def test_gradnorm_makes_gradients_equally_long():
    """Prevents weights that drift, change their sum, or become negative: at the end w_i |g_i| is the same for all."""
    weighting = weighting_of("gradnorm", lr=0.005)
    gramian = torch.diag(torch.tensor([1.0, 4.0, 16.0]))
    for _ in range(3000):
        weighting.observe(named([1.0, 1.0, 1.0]), gramian)
    weights = np.array(answer(weighting, [1, 1, 1])[1])
    assert weights.sum() == pytest.approx(3)
    assert weights * [1, 2, 4] == pytest.approx(np.full(3, 12 / 7), rel=0.05)
    extreme = weighting_of("gradnorm", lr=5.0)
    observed(extreme, [[1.0, 1.0, 1.0]] * 5, [gramian.tolist()] * 5)
    assert min(answer(extreme, [1, 1, 1])[1]) > 0


def test_gradnorm_leaves_a_task_without_labels_alone():
    """Prevents a gradient of 0 from pulling the target down for all tasks, or from raising the task's weight for ever."""
    with_all, without = weighting_of("gradnorm"), weighting_of("gradnorm")
    without.observe({"click": 1.0, "like": 1.0}, torch.diag(torch.tensor([1.0, 4.0, 0.0])))
    click, like, rating = answer(without, [1, 1, 1])[1]
    assert click > rating > like
    with_all.observe({"click": 1.0}, torch.diag(torch.tensor([1.0, 0.0, 0.0])))
    assert answer(with_all, [1, 1, 1])[1] == pytest.approx([1, 1, 1])
    with pytest.raises(ValueError, match="needs the Gramian of the step"):
        with_all.observe(named([1.0, 1.0, 1.0]))


# ------------------------------------------------------------------ famo
def test_famo_is_the_published_code():
    """Prevents a wrong sign or decay: weights after several steps against the authors' code with torch's Adam."""
    weighting = weighting_of("famo")
    w = torch.zeros(3, requires_grad=True)
    adam = torch.optim.Adam([w], lr=0.025, weight_decay=0.01)
    previous = None
    for values in HISTORY:
        weighting.observe(named(values))
        current = torch.tensor(values)
        if previous is not None:  # the authors' `update`
            delta = (previous + 1e-8).log() - (current + 1e-8).log()
            w.grad = torch.autograd.grad(F.softmax(w, -1), w, grad_outputs=delta)[0]
            adam.step()
        previous = current
        # the authors' `get_weighted_loss`
        losses = torch.tensor(values, requires_grad=True)
        z = F.softmax(w, -1).detach()
        distance = losses + 1e-8
        c = (z / distance).sum().detach()
        (distance.log() * z / c).sum().backward()
        total, weights = answer(weighting, values)
        assert weights == pytest.approx(losses.grad.tolist(), rel=1e-4)
        assert total == pytest.approx(float(losses.grad @ current), rel=1e-4)
    assert np.std(F.softmax(w, -1).detach().numpy()) > 1e-3


def test_famo_ignores_tasks_without_labels():
    """Prevents a missing loss, which arrives as nothing, from counting as a task that became perfect."""
    weighting = weighting_of("famo", decay=0.0)
    observed(weighting, [[1.0, 1.0, 1.0]])
    weighting.observe({"click": 1.0, "like": 1.0})
    assert weighting.logits.tolist() == [0, 0, 0]
    assert answer(weighting, [1, 1, 1])[1] == pytest.approx([1 / 3] * 3)


# ------------------------------------------------------------------ geometric
def test_geometric_is_the_geometric_mean_and_its_gradient():
    """Prevents weights that do not belong to the formula: total and weights against autograd of the product."""
    weighting = observed(weighting_of("geometric"), HISTORY[:1])
    losses = torch.tensor(HISTORY[0], requires_grad=True)
    expected = losses.prod() ** (1 / 3)
    expected.backward()
    total, weights = answer(weighting, HISTORY[0])
    assert total == pytest.approx(expected.item(), rel=1e-5)
    assert weights == pytest.approx(losses.grad.tolist(), rel=1e-5)


def test_geometric_with_tasks_not_seen_yet():
    """Prevents a task without labels so far from entering the mean as 0, which would be the mean."""
    weighting = weighting_of("geometric")
    weighting.observe({"click": 0.5, "like": 2.0})
    assert answer(weighting, [1, 1, 1])[1] == pytest.approx([2 / 3, 0.5 / 3, 1 / 3])


# ------------------------------------------------------------------ rlw
def test_rlw_draws_once_per_step_and_repeats_itself():
    """Prevents ranks or accumulated batches from drawing different weights, and a resumed run from drawing others."""
    one, two = weighting_of("rlw", seed=5), weighting_of("rlw", seed=5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    drawn = []
    for _ in range(300):
        drawn.append(answer(one, [1, 1, 1])[1])
        assert drawn[-1] == answer(one, [1, 1, 1])[1]
        one.observe(named([1.0, 1.0, 1.0]))
    assert torch.equal(state, torch.get_rng_state())  # the training's random numbers are its own
    torch.manual_seed(2)
    two.load_state_dict(one.state_dict() | {"steps": torch.tensor(250)})
    assert answer(two, [1, 1, 1])[1] == drawn[250]
    assert len({tuple(d) for d in drawn}) == 300
    assert np.array(drawn).sum(1) == pytest.approx(np.full(300, 3.0), rel=1e-5)
    # log w_i - log w_j = z_i - z_j, which has variance 2 for independent standard normals
    logs = np.log(drawn)
    assert np.std(logs[:, 0] - logs[:, 1]) == pytest.approx(math.sqrt(2), rel=0.15)
    assert np.mean(drawn, axis=0) == pytest.approx([1, 1, 1], abs=0.15)
    assert weighting_of("rlw", seed=6).weights(StepContext()).tolist() != drawn[0]


# ------------------------------------------------------------------ mistakes
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("dwa", {"temperature": 0.0}),
        ("dwa", {"temperature": math.nan}),
        ("dwa", {"period": 0}),
        ("gradnorm", {"alpha": -1.0}),
        ("gradnorm", {"lr": math.nan}),
        ("famo", {"lr": -0.1}),
        ("famo", {"decay": math.nan}),
        ("rlw", {"seed": -1}),
        ("rlw", {"seed": 0.5}),
        ("aggregation", {"c": 1.0}),
        ("aggregation", {"c": math.nan}),
    ],
)
def test_impossible_options_are_refused(kind, options):
    """Prevents a run that turns to NaN, or never moves, because of an option."""
    (name,) = options
    with pytest.raises(ValueError, match=f"option '{name}' of loss weighting '{kind}' is .*; it must be"):
        weighting_of(kind, **options)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_impossible_weights_of_tasks_are_refused(weight):
    """Prevents a task from climbing its loss."""
    with pytest.raises(ValueError, match="it must be a number >= 0"):
        random_config(tasks=[{"name": "like", "head": "binary", "weight": weight}])
