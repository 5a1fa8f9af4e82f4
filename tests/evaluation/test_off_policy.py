"""Off-policy estimates against their plain definitions, against enumeration of all logs, and against `obp`'s figures."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from off_policy_fixtures import OBP_FIGURES, as_logged_rows, small_log

from polyrec.evaluation.off_policy import (
    ESTIMATORS,
    LoggedRows,
    epsilon_greedy_policy,
    policy_value,
    softmax_policy,
)

CHANCE = st.floats(0.05, 1.0)
ROWS = st.lists(st.tuples(st.integers(0, 1), CHANCE, CHANCE, st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12)


def plain(estimator, rows, clip):
    """The formulas row by row, as Saito et al., 2021, "Open Bandit Dataset and Pipeline", write them."""
    n = len(rows)
    weights = [min(e / p, clip) for _, p, e, _, _ in rows]
    pairs = list(zip(weights, rows, strict=True))
    if estimator == "ips":
        return sum(w * r for w, (r, *_) in pairs) / n
    if estimator == "snips":
        return sum(w * r for w, (r, *_) in pairs) / sum(weights)
    direct = sum(v for *_, v in rows) / n
    if estimator == "dm":
        return direct
    residual = sum(w * (r - q) for w, (r, _, _, q, _) in pairs)
    return direct + residual / (n if estimator == "dr" else sum(weights))


def logged(rows):
    return LoggedRows(*np.array(rows, dtype=float).T)


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
@settings(max_examples=30, deadline=None)
@given(rows=ROWS, clip=st.sampled_from([np.inf, 2.0]))
def test_definition(estimator, rows, clip):
    """A weight taken upside down, or a mean over weights instead of rows, would go unseen: values look plausible."""
    assert policy_value(logged(rows), estimator, clip, n=1).value == pytest.approx(plain(estimator, rows, clip))


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_figures_of_obp(estimator):
    """A reading of the formulas of our own, in code and test alike, would pass all other tests."""
    assert policy_value(as_logged_rows(small_log()), estimator, n=1).value == pytest.approx(
        OBP_FIGURES[estimator], abs=1e-9
    )


@pytest.mark.parametrize("estimator", ["ips", "dr"])
def test_unbiased_over_all_logs(estimator):
    """The mean over every log that could have been written is the value: no factor is missing, whatever the model."""
    rng = np.random.default_rng(0)
    logging, judged = rng.dirichlet(np.ones(3), 2), rng.dirichlet(np.ones(3), 2)  # [contexts, actions]
    truth, model = rng.uniform(size=(2, 3)), rng.uniform(size=(2, 3))
    expected = (judged * model).sum(1)
    mean = 0.0
    for actions in itertools.product(range(3), repeat=2):
        for rewards in itertools.product((0, 1), repeat=2):
            at = np.arange(2), np.array(actions)
            reward = np.array(rewards)
            chance = np.prod(logging[at]) * np.prod(np.where(reward, truth[at], 1 - truth[at]))
            rows = LoggedRows(reward, logging[at], judged[at], model[at], expected)
            mean += chance * policy_value(rows, estimator, n=1).value
    assert mean == pytest.approx((judged * truth).sum(1).mean())


@settings(max_examples=20, deadline=None)
@given(rows=ROWS, clip=st.sampled_from([np.inf, 1.5]))
@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_bootstrap_draws_whole_groups(estimator, rows, clip):
    """Counting draws gives what copying rows gives; a shortcut that draws rows apart makes intervals too narrow."""
    groups = np.arange(len(rows)) // 2
    found = policy_value(logged(rows), estimator, clip, groups=groups, n=5, seed=3)
    rng = np.random.default_rng(3)
    for sample in found.samples:
        drawn = rng.integers(groups.max() + 1, size=groups.max() + 1)
        copied = [row for g in drawn for row, own in zip(rows, groups, strict=True) if own == g]
        assert sample == pytest.approx(plain(estimator, copied, clip))


def test_interval_covers_the_truth():
    """An interval that is named 95% and covers far less would sell noise as a better policy."""
    rng = np.random.default_rng(1)
    truth, judged = np.array([0.1, 0.3, 0.6]), np.array([0.2, 0.2, 0.6])
    covered = 0
    for _ in range(100):
        action = rng.integers(3, size=300)
        reward = (rng.uniform(size=300) < truth[action]).astype(float)
        rows = LoggedRows(reward, np.full(300, 1 / 3), judged[action])
        interval = policy_value(rows, "ips", n=200)
        covered += interval.low <= truth @ judged <= interval.high
    assert 86 <= covered <= 100


def test_policies_are_distributions_over_what_is_allowed():
    """A chance for an item that cannot be shown, or chances that do not sum to 1, bias every estimate."""
    score = np.array([[0.1, 0.7, 0.7, 0.2], [3.0, 1.0, 2.0, 900.0]])
    allowed = np.array([[True] * 4, [True, True, True, False]])
    for chance in (softmax_policy(score, 0.5, allowed), epsilon_greedy_policy(score, 0.2, allowed)):
        np.testing.assert_allclose(chance.sum(1), 1)
        assert chance[1, 3] == 0
        assert (chance >= 0).all()
    np.testing.assert_allclose(epsilon_greedy_policy(score, 0.2, allowed)[0], [0.05, 0.45, 0.45, 0.05])
    odds = softmax_policy(score, 0.5, allowed)
    assert odds[1, 0] / odds[1, 1] == pytest.approx(np.exp(2 / 0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"propensity": [0.5, 0.0]}, "propensity is 0 in row 1"),
        ({"chance": [0.5, 1.5]}, "chance is 1.5 in row 1"),
        ({"reward": [1.0, np.nan]}, "reward is nan in row 1"),
        ({"predicted": [0.5]}, "predicted must hold one number"),
    ],
)
def test_refusals(change, message):
    """A missing propensity read as 0 gives infinite weights; it is to be refused, with the row."""
    with pytest.raises(ValueError, match=message):
        LoggedRows(**{"reward": [1, 0], "propensity": [0.5, 0.5], "chance": [0.5, 0.5], **change})


def test_nothing_known_is_nan_and_models_are_asked_for():
    """A policy that never shows what was logged has no self-normalised value, and no model is not a model of 0."""
    rows = LoggedRows([1, 0], [0.5, 0.5], [0.0, 0.0])
    assert np.isnan(policy_value(rows, "snips", n=5).value)
    with pytest.raises(ValueError, match="needs a model of the reward"):
        policy_value(rows, "dr")
    with pytest.raises(ValueError, match="unknown estimator"):
        policy_value(rows, "dr2")
