"""Quantiles, watch times and counts against scikit-learn, numpy and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from head_fixtures import NAN, head_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from polyrec.core.schema import TaskConfig
from polyrec.data.label_summary import summarise
from polyrec.data.scaling import GROUPS, grouped_quantiles, quantile_knots, rank_gaussian

SEEDS = st.integers(0, 2**32 - 1)


# ------------------------------------------------------------------ quantile
@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=5, unique=True), st.floats(0.1, 10), SEEDS)
def test_quantile_loss_equals_sklearn(levels, std, seed):
    """Prevents the pinball loss from leaning to the wrong side, and the label's scale from entering twice."""
    random = np.random.default_rng(seed)
    head = head_of("quantile", quantiles=sorted(levels), mean=2.0, std=std)
    logits = head.finish(torch.from_numpy(random.normal(size=(8, len(levels)))).float(), {})
    labels, weight = random.normal(2, std, 8), random.random(8) + 0.1
    labels[3] = np.nan
    known = ~np.isnan(labels)
    total, count = head.loss(logits, torch.from_numpy(labels).float(), torch.from_numpy(weight).float())
    answers = head.details(logits).numpy()
    losses = [
        sklearn.metrics.mean_pinball_loss(labels[known], answers[known, k], sample_weight=weight[known], alpha=q)
        for k, q in enumerate(sorted(levels))
    ]
    assert total.item() / count.item() * std == pytest.approx(2 * np.mean(losses), rel=1e-3, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(0, 100))
def test_quantiles_never_cross(seed, scale):
    """Prevents a 90% quantile below the median, whatever the network says."""
    torch.manual_seed(seed % 2**31)
    head = head_of("quantile", quantiles=[0.05, 0.25, 0.5, 0.9])
    assert (head.details(head.finish(scale * torch.randn(50, 4), {})).diff() >= 0).all()


def test_quantiles_start_at_the_normal_distribution_and_predict_the_nearest_to_the_median():
    """Prevents the spread from having to be found from nothing, and the prediction from being an edge."""
    head = head_of("quantile", quantiles=[0.1, 0.45, 0.9], mean=3.0, std=2.0)
    logits = head.finish(head.output.bias.detach(), {})
    torch.testing.assert_close(logits, torch.special.ndtri(torch.tensor([0.1, 0.45, 0.9])))
    assert head.predict(logits).item() == pytest.approx(3 + 2 * logits[1].item())
    clipped = head_of("quantile", mean=3.0, std=2.0, minimum=2.9, maximum=3.5)
    assert clipped.details(logits).tolist() == pytest.approx([2.9, 2.9, 3.5])


@pytest.mark.parametrize("levels", [[], [0.5, 0.5], [0.9, 0.1], [0.0, 0.5], [0.5, 1.0]])
def test_impossible_quantiles_are_refused(levels):
    """Prevents an infinite start value and quantiles in the wrong order."""
    with pytest.raises(ValueError, match="option 'quantiles' of task 'task' is"):
        head_of("quantile", quantiles=levels)


# ------------------------------------------------------------------ watch time
def watch_world(rows: int = 4000):
    """Seconds that depend on the duration; many are 0, some durations are unknown."""
    random = np.random.default_rng(0)
    duration = random.lognormal(3, 1, rows)
    seconds = duration * random.beta(0.7, 0.7, rows) * (random.random(rows) < 0.8)
    scaled = rank_gaussian(duration, quantile_knots(duration))
    scaled[::50] = np.nan
    return seconds, scaled


def watch_head():
    seconds, scaled = watch_world()
    return head_of("watch_time", group_quantiles=grouped_quantiles(seconds, scaled).tolist()), seconds, scaled


def test_watch_time_ranks_are_those_of_rank_gaussian():
    """Prevents labels from being ranked in another group, or the many zeros from being ranked below themselves."""
    head, seconds, scaled = watch_head()
    logits = head.finish(torch.zeros(len(seconds)), {"length": torch.from_numpy(scaled)})
    found = head._ranks(torch.from_numpy(seconds).float(), head.rows(logits)).numpy()
    group = np.minimum(np.floor(torch.special.ndtr(torch.from_numpy(scaled)).numpy() * GROUPS), GROUPS - 1)
    for g in range(GROUPS):
        rows = group == g
        knots = quantile_knots(seconds[rows])
        grid = np.linspace(0, 1, len(knots))
        y = seconds[rows]
        expected = 0.5 * (np.interp(y, knots, grid) + 1 - np.interp(-y, -knots[::-1], grid))
        np.testing.assert_allclose(found[rows], expected, atol=1e-3)
        assert found[rows].mean() == pytest.approx(0.5, abs=0.02)
    zero = seconds == 0
    assert 0.05 < found[zero].mean() < 0.15  # the middle of the lowest 20%


@settings(max_examples=20, deadline=None)
@given(st.floats(0.02, 0.98))
def test_watch_time_goes_back_to_its_unit(q):
    """Prevents the prediction from being a quantile, or seconds of items of another length."""
    head, seconds, scaled = watch_head()
    at = torch.tensor([-2.0, 0.0, 2.0, NAN])
    logits = head.finish(torch.full((4,), math.log(q / (1 - q))), {"length": at})
    group = [0, GROUPS // 2, GROUPS - 1, None]
    of = np.minimum(np.floor(torch.special.ndtr(torch.from_numpy(scaled)).numpy() * GROUPS), GROUPS - 1)
    for g, predicted in zip(group, head.predict(logits).tolist(), strict=True):
        values = seconds if g is None else seconds[of == g]
        grid = np.linspace(0, 1, 100)
        assert predicted == pytest.approx(np.interp(q, grid, np.quantile(values, grid)), rel=1e-3, abs=1e-3)


def test_watch_time_loss_is_the_squared_error_of_the_rank():
    """Prevents the loss from depending on how long the items are: twice the seconds, the same loss."""
    head, seconds, scaled = watch_head()
    twice = head_of("watch_time", group_quantiles=(2 * head.quantiles).tolist())
    z = torch.randn(len(seconds))
    logits = head.finish(z, {"length": torch.from_numpy(scaled)})
    labels = torch.from_numpy(seconds).float()
    rank = head._ranks(labels, head.rows(logits))
    total, count = head.loss(logits, labels)
    torch.testing.assert_close(total, 12 * F.mse_loss(torch.sigmoid(z), rank, reduction="sum"))
    torch.testing.assert_close(twice.loss(logits, 2 * labels)[0], total, rtol=1e-4, atol=0)
    constant = head.loss(head.finish(0 * z, {"length": torch.from_numpy(scaled)}), labels)[0] / count
    assert constant.item() == pytest.approx(1, abs=0.1)


def test_watch_time_is_not_fooled_by_duration():
    """Prevents long items from winning by their length alone: equal taste must get equal logits.

    One logit per group of durations is fitted; people finish the same share of everything, so all are alike.
    """
    random = np.random.default_rng(1)
    duration = random.lognormal(3, 1, 20_000)
    seconds, scaled = duration * random.random(20_000), rank_gaussian(duration, quantile_knots(duration))
    head = head_of("watch_time", group_quantiles=grouped_quantiles(seconds, scaled).tolist())
    group = torch.from_numpy(np.minimum(np.floor(duration.argsort().argsort() / 2000), 9)).long()
    z = torch.zeros(10, requires_grad=True)
    optimizer = torch.optim.LBFGS([z], max_iter=50)

    def closure():
        optimizer.zero_grad()
        logits = head.finish(z[group], {"length": torch.from_numpy(scaled)})
        loss = head.loss(logits, torch.from_numpy(seconds).float())[0] / len(seconds)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert z.detach().abs().max() < 0.1


def test_groups_without_labels_borrow_from_all():
    """Prevents an empty group from predicting 0 seconds."""
    found = grouped_quantiles(np.array([1.0, 2.0, 3.0]), np.array([-3.0, -3.0, np.nan]))
    assert found.shape == (GROUPS + 1, 100)
    assert found[0].max() == 2
    assert found[5].max() == found[-1].max() == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"duration": None}, "must name a numeric context column; known: length"),
        ({"duration": "lenght"}, "must name a numeric context column; known: length"),
        ({"group_quantiles": None}, "build the configuration by processor.model_config"),
        ({"group_quantiles": [[0.0, 1.0], [0.0]]}, "rows of equal length"),
        ({"group_quantiles": [[0.0, 1.0], [1.0, 0.0]]}, "rows of equal length, each ascending"),
    ],
)
def test_watch_time_options_are_checked(options, message):
    """Prevents a head that knows no durations from predicting seconds."""
    with pytest.raises(ValueError, match=message):
        head_of("watch_time", **options)
    task = TaskConfig("watch", "watch_time", options={"duration": "surface"})
    with pytest.raises(ValueError, match=r"columns=Columns\(context=\{'surface': 'numeric'\}\)"):
        summarise(task, np.array([1.0, 2.0]), {"surface": np.array([1, 2])})


# ------------------------------------------------------------------ count
@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_count_loss_is_half_the_deviance_with_the_gradient_of_the_likelihood(seed):
    """Prevents log and identity link from being mixed up, and a constant from hiding a wrong gradient."""
    random = np.random.default_rng(seed)
    z = torch.from_numpy(random.normal(0, 2, 10)).float().requires_grad_()
    labels, weight = random.poisson(3, 10).astype(np.float64), random.random(10) + 0.1
    total, count = head_of("count").loss(z, torch.from_numpy(labels).float(), torch.from_numpy(weight).float())
    deviance = sklearn.metrics.mean_poisson_deviance(labels, z.detach().double().exp(), sample_weight=weight)
    assert 2 * total.item() / count.item() == pytest.approx(deviance, rel=1e-3, abs=1e-4)
    likelihood = F.poisson_nll_loss(z, torch.from_numpy(labels).float(), reduction="none")
    expected = (likelihood * torch.from_numpy(weight).float()).sum()
    torch.testing.assert_close(torch.autograd.grad(total, z)[0], torch.autograd.grad(expected, z)[0])


def test_count_continues_as_a_straight_line():
    """Prevents a diverging logit from giving infinity, and a jump or a flat spot where the line begins."""
    head, z = head_of("count"), torch.tensor([19.999, 20.001, 30.0], dtype=torch.float32, requires_grad=True)
    losses = torch.stack([head.loss(x, torch.tensor(0.0))[0] for x in z])
    (slope,) = torch.autograd.grad(losses.sum(), z)
    torch.testing.assert_close(slope, torch.full((3,), math.exp(20)), rtol=2e-3, atol=0)
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=5e-3)


def test_count_starts_at_the_mean():
    """Prevents the first hundred steps from being spent on the mean count."""
    head = head_of("count", mean=7.5)
    assert head.predict(head.output.bias).item() == pytest.approx(7.5)
    with pytest.raises(ValueError, match="option 'mean' of task 'task' is 0.0"):
        head_of("count", mean=0.0)
    with pytest.raises(ValueError, match="label of count task 'task' is -2"):
        head.loss(torch.zeros(1), torch.tensor([-2.0]))
