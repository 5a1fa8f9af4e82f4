"""Intervals against scipy, against theory, and against each other."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrec.evaluation import metrics
from polyrec.evaluation.bootstrap import bootstrap_interval, bootstrap_mean

LOG = st.lists(st.tuples(st.integers(0, 5), st.floats(-10, 10)), min_size=1, max_size=40)


@settings(deadline=None, max_examples=40)
@given(LOG, st.integers(0, 100))
def test_fast_mean_equals_the_general_path(rows, seed):
    """Prevents the fast path from answering another question: same people drawn, same means, unknown rows included."""
    users, values = np.array(rows).T
    values[values > 8] = np.nan
    fast = bootstrap_mean(values, users, n=20, seed=seed)

    def mean(x):
        return np.nanmean(x) if not np.isnan(x).all() else np.nan

    slow = bootstrap_interval(mean, users, values, n=20, seed=seed)
    np.testing.assert_allclose(fast.samples, slow.samples, atol=1e-12)
    np.testing.assert_allclose([fast.value, fast.low, fast.high], [slow.value, slow.low, slow.high], atol=1e-12)
    assert fast.users == len(set(users.tolist()))


def test_one_row_per_person_equals_scipy():
    """Prevents a wrong quantile: without clusters this is the ordinary percentile bootstrap."""
    values = np.random.default_rng(0).exponential(size=300)
    ours = bootstrap_mean(values, np.arange(300), n=4000, level=0.9)
    reference = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=4000, confidence_level=0.9, method="percentile", rng=np.random.default_rng(1)
    )
    low, high = reference.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.01)


def test_people_are_resampled_not_rows():
    """Prevents intervals that are far too narrow: 50 copies of each row add no knowledge about people."""
    values = np.random.default_rng(0).normal(size=100)
    once = bootstrap_mean(values, np.arange(100), seed=3)
    copied = bootstrap_mean(np.repeat(values, 50), np.repeat(np.arange(100), 50), seed=3)
    np.testing.assert_allclose(copied.samples, once.samples)
    rows = bootstrap_mean(np.repeat(values, 50), np.arange(5000))
    assert rows.high - rows.low < 0.3 * (copied.high - copied.low)


def test_interval_covers_the_truth():
    """Prevents intervals that miss their level: 200 experiments with unequal people, true mean 0."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        users = np.repeat(np.arange(60), rng.integers(1, 8, 60))
        values = rng.normal(size=60)[users] + rng.normal(size=len(users))
        interval = bootstrap_mean(values, users, n=200, seed=trial)
        covered += interval.low <= 0 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


@given(LOG)
@settings(deadline=None, max_examples=20)
def test_order_and_names_of_people_do_not_matter(rows):
    """Prevents rows from being joined with the wrong person where the log is not sorted by person."""
    users, values = np.array(rows).T
    order = np.random.default_rng(0).permutation(len(users))
    names = np.array([f"p{int(p)}" for p in users])
    expected = bootstrap_interval(np.max, users, values, n=10)
    shuffled = bootstrap_interval(np.max, names[order], values[order], n=10)
    assert shuffled == expected
    np.testing.assert_array_equal(shuffled.samples, expected.samples)


def test_a_person_keeps_all_rows_and_columns_stay_aligned():
    """Prevents columns from being resampled apart, or a person's rows from being cut."""
    users = np.array([2, 0, 2, 1, 0, 2])

    def check(user, copy, matrix):
        assert (user == copy).all()
        assert (matrix[:, 0] == user).all()
        rows = np.bincount(user, minlength=3)
        assert (rows % np.array([2, 1, 3]) == 0).all()
        return len(user)

    bootstrap_interval(check, users, users, users, np.stack([users, users], axis=1), n=50)


def test_gauc_of_a_person_drawn_twice():
    """Prevents copies of a person from changing that person's AUC: they add weight and nothing else."""
    rng = np.random.default_rng(0)
    users, labels, scores = rng.integers(0, 30, 300), rng.integers(0, 2, 300), rng.random(300).round(1)

    def gauc(labels, scores, users):
        return metrics.grouped_auc(labels, scores, users).value

    interval = bootstrap_interval(gauc, users, labels, scores, users, n=30, seed=5)
    per_user = [metrics.auc(labels[users == p], scores[users == p]) for p in range(30)]
    size = np.bincount(users)
    draws = np.random.default_rng(5)
    for sample in interval.samples:
        weight = np.bincount(draws.integers(30, size=30), minlength=30) * size
        assert sample == pytest.approx(np.average(per_user, weights=weight))


def test_resamples_without_a_value_are_left_out():
    """Prevents one resample with a single label from turning the whole interval into NaN."""
    interval = bootstrap_interval(metrics.auc, ["a", "b", "c"], [1, 0, 1], [0.3, 0.2, 0.1], n=200)
    assert np.isnan(interval.samples).any()
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    nothing = bootstrap_interval(metrics.auc, ["a", "b"], [1, 1], [0.3, 0.2], n=20)
    assert np.isnan([nothing.value, nothing.low, nothing.high, nothing.p_value]).all()


def test_no_difference_has_no_significance():
    """Prevents p-values that call equal systems different, and p = 0, which no finite number of resamples can show."""
    users = np.arange(50)
    assert bootstrap_mean(np.zeros(50), users, n=100).p_value == 1
    assert bootstrap_mean(np.ones(50), users, n=99).p_value == pytest.approx(2 / 100)
    noise = np.random.default_rng(1).normal(size=50)
    assert bootstrap_mean(noise - noise.mean(), users).p_value > 0.5


def test_messages_name_the_fix():
    """Prevents misaligned columns and impossible settings from giving an interval of something else."""
    with pytest.raises(ValueError, match="column 1 has shape"):
        bootstrap_interval(metrics.rmse, [1, 2], [1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="values must hold"):
        bootstrap_mean([1.0], [1, 2])
    with pytest.raises(ValueError, match="user of each row"):
        bootstrap_mean([], [])
    with pytest.raises(ValueError, match="n must be"):
        bootstrap_mean([1.0], [1], n=0)
    with pytest.raises(ValueError, match="level"):
        bootstrap_mean([1.0], [1], level=95)
