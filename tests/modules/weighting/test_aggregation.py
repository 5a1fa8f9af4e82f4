"""Aggregation of gradients: TorchJD, naive loops and optimality conditions as references."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import random_config
from torchjd import aggregation

from polyrec.modules.weighting._solvers import bargain, conflict_averse, min_norm, square_root
from polyrec.modules.weighting.aggregation import METHODS, AggregationWeighting
from polyrec.modules.weighting.base import StepContext

needs_cvxpy = pytest.mark.skipif(
    any(importlib.util.find_spec(m) is None for m in ("cvxpy", "clarabel", "ecos")), reason="needs cvxpy and solvers"
)
TORCHJD = {
    "aligned_mtl": aggregation.AlignedMTLWeighting,
    "dualproj": aggregation.DualProjWeighting,
    "imtl_g": aggregation.IMTLGWeighting,
    "upgrad": aggregation.UPGradWeighting,
}
NAMES = ["a", "b", "c", "d"]


def weighting_of(method, tasks=4, **options):
    config = random_config(
        tasks=[{"name": name, "head": "binary"} for name in NAMES[:tasks][::-1]],
        weighting="aggregation",
        weighting_options={"method": method, **options},
    )
    return AggregationWeighting(config)


def weights_of(method, jacobian, **options):
    """Our weights for the rows of a Jacobian [T, X]."""
    weighting = weighting_of(method, len(jacobian), **options)
    return weighting.weights(StepContext(gramian=(jacobian @ jacobian.T).float())).double()


@st.composite
def jacobians(draw, conflict=True):
    """Rows of 2 to 4 tasks, often in conflict, of very different and often very small length."""
    tasks = draw(st.integers(2, 4))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    rows = random.normal(size=(tasks, 6))
    if conflict:
        rows[0] -= 0.9 * rows[1]
    return torch.from_numpy(rows * random.uniform(0.5, 2, (tasks, 1)) * 10.0 ** draw(st.integers(-5, 1)))


# ------------------------------------------------------------------ against TorchJD
@pytest.mark.parametrize("method", TORCHJD)
@settings(max_examples=15, deadline=None)
@given(jacobian=jacobians())
def test_equals_torchjd(method, jacobian):
    """Prevents small gradients (means over thousands of labels) from being taken for 0, which makes TorchJD's
    projections return the mean: TorchJD gets gradients of length 1, we get them as they are."""
    unit = jacobian / jacobian.norm()
    expected = TORCHJD[method]()(unit @ unit.T).clamp(min=0)
    if method == "imtl_g":
        expected = expected / expected.sum()
    torch.testing.assert_close(weights_of(method, jacobian), expected, rtol=1e-3, atol=1e-4)


def test_equals_torchjd_closely():
    """Prevents a loose comparison from hiding another formula: a well conditioned case, to 1e-5."""
    jacobian = torch.tensor([[1.0, 0.0, 0.5], [-0.8, 1.0, 0.2], [0.3, -0.6, 1.0]], dtype=torch.float64)
    unit = jacobian / jacobian.norm()
    for method, cls in TORCHJD.items():
        torch.testing.assert_close(weights_of(method, jacobian), cls()(unit @ unit.T), rtol=1e-5, atol=1e-5)


@needs_cvxpy
@settings(max_examples=15, deadline=None)
@given(jacobian=jacobians(), c=st.floats(0.05, 0.95))
def test_cagrad_equals_torchjd(jacobian, c):
    """Prevents our solver from stopping early: TorchJD solves the same problem as a cone program."""
    unit = jacobian / jacobian.norm()
    expected = aggregation.CAGradWeighting(c=c)(unit @ unit.T)
    torch.testing.assert_close(weights_of("cagrad", jacobian, c=c), expected, rtol=1e-3, atol=1e-3)


@needs_cvxpy
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@settings(max_examples=8, deadline=None)
@given(jacobian=jacobians(conflict=False))
def test_nash_equals_torchjd_where_that_converges(jacobian):
    """Prevents another bargaining solution: TorchJD's sequence of convex problems ends near ours, or at no solution."""
    unit = jacobian / jacobian.norm()
    root = torch.from_numpy(square_root((unit @ unit.T).numpy()))
    expected = aggregation.NashMTL(len(unit), optim_niter=100).weighting(root)
    product = expected * (unit @ (unit.T @ expected))
    if (product - product.mean()).abs().max() < 0.01 * product.mean():
        torch.testing.assert_close(weights_of("nash", jacobian), expected, rtol=0.03, atol=0.03)


@settings(max_examples=20, deadline=None)
@given(jacobian=jacobians())
def test_pcgrad_projects_on_the_others_in_the_drawn_order(jacobian):
    """Prevents a gradient from being projected on itself (LibMTL): naive loops over vectors, the same order."""
    weighting = weighting_of("pcgrad", len(jacobian), seed=3)
    weighting.steps += 7
    found = weighting.weights(StepContext(gramian=(jacobian @ jacobian.T).float())).double()
    draw = weighting.generator()
    total = torch.zeros(jacobian.shape[1], dtype=torch.float64)
    for i, own in enumerate(jacobian):
        own = own.clone()
        for j in torch.randperm(len(jacobian), generator=draw).tolist():
            if j != i and own @ jacobian[j] < 0:
                own -= (own @ jacobian[j]) / jacobian[j].norm() ** 2 * jacobian[j]
        total += own
    torch.testing.assert_close(found @ jacobian, total, rtol=1e-3, atol=1e-4 * float(jacobian.norm()))


# ------------------------------------------------------------------ optimality
@settings(max_examples=40, deadline=None)
@given(jacobian=jacobians())
def test_mgda_is_the_shortest_convex_combination(jacobian):
    """Prevents an unfinished Frank-Wolfe: g_i . g_w >= |g_w|^2 for all i holds for the shortest vector alone."""
    unit = (jacobian / jacobian.norm()).numpy()
    w = min_norm(unit @ unit.T)
    assert w.min() >= 0
    assert w.sum() == pytest.approx(1)
    shortest = w @ unit
    assert (unit @ shortest).min() >= shortest @ shortest - 1e-9


@settings(max_examples=40, deadline=None)
@given(jacobian=jacobians())
def test_nash_solves_the_bargaining_equation(jacobian):
    """Prevents Newton's method from leaving w > 0 or stopping early: w_i (G w)_i is the same for all tasks."""
    unit = (jacobian / jacobian.norm()).numpy()
    w = bargain(unit @ unit.T)
    assert w.min() > 0
    product = w * (unit @ unit.T @ w + 1e-4 * w)
    assert product == pytest.approx(np.full(len(w), 1 / len(w)), rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(jacobian=jacobians(), c=st.floats(0.05, 0.95))
def test_cagrad_helps_the_task_worst_off_more_than_any_other_direction_in_reach(jacobian, c):
    """Prevents a wrong dual: the minimum of g_i . d over tasks is the largest among d with |d - g_0| <= c |g_0|."""
    unit = (jacobian / jacobian.norm()).numpy()
    w = conflict_averse(unit @ unit.T, c)
    if not w.any():
        return
    direction, mean = w @ unit, unit.mean(0)
    radius = c * np.linalg.norm(mean)
    assert np.linalg.norm(direction - mean) <= radius * (1 + 1e-4)
    worst = (unit @ direction).min()
    random = np.random.default_rng(0).normal(size=(300, unit.shape[1]))
    others = mean + radius * random / np.linalg.norm(random, axis=1, keepdims=True)
    assert worst >= (others @ unit.T).min(1).max() - 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_no_task_is_harmed_by_the_methods_that_promise_it(method):
    """Prevents a method from being wired to another's name: two tasks in conflict, one gradient ten times longer."""
    jacobian = torch.tensor([[10.0, 0.0], [-0.6, 0.8]], dtype=torch.float64)
    gains = jacobian @ (weights_of(method, jacobian) @ jacobian)
    plain = jacobian @ jacobian.sum(0)
    assert plain.min() < 0  # the plain sum harms the second task
    if method == "cagrad":  # within its radius only
        assert gains[1] / gains[0] > plain[1] / plain[0]
    else:
        assert gains.min() > -2e-3 * gains.max()  # TorchJD's projections add a little to the diagonal


# ------------------------------------------------------------------ a problem with a known Pareto front
@pytest.mark.parametrize("method", ["mgda", "upgrad", "dualproj", "cagrad", "nash", "pcgrad"])
def test_ends_on_the_pareto_front(method):
    """Prevents weights that stop short of the front or run away: two quadratics, whose front is the curve between their
    minima where the gradients are opposite."""
    curvature = torch.tensor([[1.0, 5.0], [4.0, 1.0]], dtype=torch.float64)
    minimum = torch.tensor([[0.0, 0.0], [3.0, 1.0]], dtype=torch.float64)
    weighting = weighting_of(method, 2)
    x = torch.tensor([-2.0, 4.0], dtype=torch.float64)
    for i in range(800):
        jacobian = curvature * (x - minimum)
        weight = weighting.weights(StepContext(gramian=(jacobian @ jacobian.T).float())).double()
        step = 0.05 * min(1, 50 / (i + 1)) * weight @ jacobian  # nash never shortens its steps by itself
        x = x - step / max(1.0, step.norm().item())
        weighting.observe({})
    jacobian = curvature * (x - minimum)
    unit = jacobian / jacobian.norm(dim=1, keepdim=True).clamp(min=1e-9)
    at_an_end = jacobian.norm(dim=1).min() < 1e-2
    assert at_an_end or unit[0] @ unit[1] < -0.99
    assert (x > -0.05).all()
    assert (x < minimum[1] + 0.05).all()


# ------------------------------------------------------------------ what surrounds the formula
@pytest.mark.parametrize("method", METHODS)
def test_a_task_without_gradient_is_left_out(method):
    """Prevents a task without labels from getting all the weight (MGDA) or none being left (CAGrad): nothing would
    learn."""
    full = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.0, 0.0]], dtype=torch.float64)
    found = weights_of(method, full)
    torch.testing.assert_close(found[:2], weights_of(method, full[:2]))
    assert found[2] == 1
    assert weights_of(method, full * torch.tensor([[1.0], [0.0], [0.0]])).tolist() == [1, 1, 1]


@pytest.mark.parametrize("method", METHODS)
def test_weights_belong_to_names(method):
    """Prevents weights by position: the Gramian's rows are sorted by name, whatever the order of tasks and losses."""
    jacobian = torch.tensor([[5.0, 0.0], [-0.2, 0.4]])
    losses = {"b": torch.tensor(1.0), "a": torch.tensor(10.0)}
    weighting = weighting_of(method, 2)
    total, weights = weighting(losses, StepContext(gramian=jacobian @ jacobian.T))
    row = weights_of(method, jacobian.double())
    assert [weights["a"].item(), weights["b"].item()] == pytest.approx(row.tolist())
    assert total.item() == pytest.approx(10 * row[0].item() + row[1].item(), rel=1e-5)


@pytest.mark.parametrize("method", ["imtl_g", "aligned_mtl"])
def test_a_negative_weight_is_cut(method):
    """Prevents a task's tower from climbing its own loss where the formula turns the shared gradient round."""
    rows = {  # for IMTL-G one gradient between two others, for Aligned-MTL one much longer along the other
        "imtl_g": [[1.0, 0.0, 0.3], [0.8, 0.6, 0.0], [0.8, -0.6, 0.0]],
        "aligned_mtl": [[1.0, 0.0], [4.0, 0.1]],
    }
    jacobian = torch.tensor(rows[method], dtype=torch.float64)
    unit = jacobian / jacobian.norm()
    assert TORCHJD[method]()(unit @ unit.T).min() < 0
    found = weights_of(method, jacobian)
    assert found.min() >= 0
    assert found.max() > 0


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_named(broken):
    """Prevents NaN weights from spreading into all parameters without a word."""
    gramian = torch.eye(4)
    gramian[1, 1] = broken
    with pytest.raises(FloatingPointError, match="the gradient of 'b' is not finite .*look for NaN"):
        weighting_of("mgda").weights(StepContext(gramian=gramian))


def test_opposite_and_equal_gradients_give_finite_weights():
    """Prevents infinite weights where gradients cancel out (a Pareto point) or are parallel (a singular Gramian)."""
    for rows in ([[1.0, 0.0], [-1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [-1e-3, 0.0]]):
        for method in METHODS:
            found = weights_of(method, torch.tensor(rows, dtype=torch.float64))
            assert found.isfinite().all(), method
            assert found.max() < 2e3, method


def test_pcgrad_takes_nothing_from_the_training_and_repeats_itself():
    """Prevents ranks, whose random states differ, from taking different orders, and a resumed run from taking others."""
    jacobian = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    jacobian -= jacobian.mean(0)
    weighting = weighting_of("pcgrad")
    context = StepContext(gramian=(jacobian @ jacobian.T).float())
    drawn = []
    for seed in range(12):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        drawn.append(weighting.weights(context))
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(seed + 100)
        assert torch.equal(weighting.weights(context), drawn[-1])
        weighting.observe({})
    assert len({tuple(w.tolist()) for w in drawn}) > 1
    resumed = weighting_of("pcgrad")
    resumed.load_state_dict(weighting.state_dict() | {"steps": torch.tensor(5)})
    assert torch.equal(resumed.weights(context), drawn[5])


def test_unknown_method_and_missing_package(monkeypatch):
    """Prevents a misspelt method from becoming another one, and an import error that does not say what to install."""
    with pytest.raises(ValueError, match=r"unknown method 'pcgard' of 'aggregation'; did you mean 'pcgrad'. known: "):
        weighting_of("pcgard")
    weighting = weighting_of("upgrad")  # a model that recommends needs no solver
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs torchjd, qpsolvers, quadprog: pip install 'polyrec\[aggregation\]'"):
        weighting.weights(StepContext(gramian=torch.eye(4)))
