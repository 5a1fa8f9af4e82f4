"""Metrics of feedback against scikit-learn, torchmetrics and loops that can be read at a glance."""

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.classification as tm
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrec.evaluation import metrics

# Few distinct scores, so that ties are the rule and not the exception.
ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3), st.integers(0, 4)), min_size=1, max_size=60)
PROBABILITIES = st.lists(st.tuples(st.integers(0, 1), st.floats(0.001, 0.999)), min_size=1, max_size=50)


def pairwise_auc(labels, scores):
    """The definition: share of (positive, negative) pairs in the right order, ties count one half."""
    positive, negative = scores[labels == 1][:, None], scores[labels == 0][None, :]
    if not positive.size or not negative.size:
        return float("nan")
    return ((positive > negative) + 0.5 * (positive == negative)).mean()


@settings(deadline=None)
@given(ROWS)
def test_auc_is_the_share_of_ordered_pairs(rows):
    """Prevents ties decided by row order: a constant score would measure 0 or 1 instead of one half."""
    labels, scores, _ = np.array(rows).T
    np.testing.assert_allclose(metrics.auc(labels, scores), pairwise_auc(labels, scores), equal_nan=True)


def test_auc_equals_sklearn():
    """Prevents a definition of our own on realistic sizes and float32 scores with ties."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 5000)
    scores = (rng.normal(size=5000) + 0.5 * labels).round(2).astype(np.float32)
    assert metrics.auc(labels, scores) == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int64, np.float16, np.float32])
def test_label_dtype_changes_nothing(dtype):
    """Prevents sums in the label's own dtype: int8 overflows at 127 positives, which gave AUCs above 1 elsewhere."""
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 3000), rng.random(3000)
    users = rng.integers(0, 3, 3000)
    typed = labels.astype(dtype)
    assert metrics.auc(typed, scores) == metrics.auc(labels, scores) == pytest.approx(pairwise_auc(labels, scores))
    assert metrics.grouped_auc(typed, scores, users) == metrics.grouped_auc(labels, scores, users)
    for metric in (
        metrics.log_loss,
        metrics.expected_calibration_error,
        metrics.rmse,
        metrics.mae,
    ):
        assert metric(typed, scores) == metric(labels, scores)


@settings(deadline=None)
@given(ROWS)
def test_auc_of_reversed_scores_is_the_complement(rows):
    """Prevents an offset in the ranks, which breaks the symmetry AUC(s) + AUC(-s) = 1."""
    labels, scores, _ = np.array(rows).T
    both = metrics.auc(labels, scores) + metrics.auc(labels, -scores)
    assert np.isnan(both) or both == pytest.approx(1)


@settings(deadline=None)
@given(ROWS)
def test_grouped_auc_equals_a_loop_over_people(rows):
    """Prevents ranks or ties that leak across people, wrong weights, and people with one label counting."""
    labels, scores, users = np.array(rows).T
    values, weights = [], []
    for user in np.unique(users):
        mine = users == user
        if len(np.unique(labels[mine])) == 2:
            values.append(sklearn.metrics.roc_auc_score(labels[mine], scores[mine]))
            weights.append(mine.sum())
    value, groups = metrics.grouped_auc(labels, scores, users)
    assert groups == len(values)
    np.testing.assert_allclose(value, np.average(values, weights=weights) if values else np.nan)


@pytest.mark.parametrize("kind", [str, object, np.uint64])
def test_groups_of_any_kind(kind):
    """Prevents string ids from being refused or compared wrongly."""
    rng = np.random.default_rng(1)
    labels, scores, users = rng.integers(0, 2, 200), rng.random(200), rng.integers(0, 20, 200)
    names = np.array([f"person {p}" for p in users], dtype=object) if kind is object else users.astype(kind)
    expected = metrics.grouped_auc(labels, scores, users)
    assert metrics.grouped_auc(labels, scores, names) == (pytest.approx(expected.value), expected.groups)


def test_gauc_trap_is_real():
    """Prevents the docstring's warning from being doubted: on random labels, a person's own past rate is not at 0.5."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (2000, 6))
    earlier_rate = (labels.cumsum(1) - labels + 0.5) / (np.arange(6) + 1)
    users = np.repeat(np.arange(2000), 6)
    assert metrics.grouped_auc(labels.ravel(), earlier_rate.ravel(), users).value < 0.4
    assert metrics.auc(labels.ravel(), earlier_rate.ravel()) == pytest.approx(0.5, abs=0.02)


@settings(deadline=None)
@given(PROBABILITIES)
def test_probability_metrics_equal_sklearn(rows):
    """Prevents a base-2 logarithm, a missing factor, or clipping that bites in the ordinary range."""
    labels, probs = np.array(rows).T
    assert metrics.log_loss(labels, probs) == pytest.approx(sklearn.metrics.log_loss(labels, probs, labels=[0, 1]))


def test_log_loss_survives_saturation():
    """Prevents inf (and a lost run) from one float32 sigmoid that rounded to 1."""
    worst = metrics.log_loss([0], np.array([1.0], dtype=np.float32))
    assert np.isfinite(worst)
    assert worst > 16
    assert metrics.log_loss([1], [1.0]) < 1e-6


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_error_equals_torchmetrics(bins):
    """Prevents calibrating the predicted class instead of label 1, and bins weighted alike whatever their size."""
    rng = np.random.default_rng(0)
    probs = rng.random(4000)
    labels = (rng.random(4000) < probs**2).astype(np.int64)
    reference = tm.binary_calibration_error(torch.tensor(probs), torch.tensor(labels), n_bins=bins, norm="l1")
    ours = metrics.expected_calibration_error(labels, probs, bins=bins)
    assert ours == pytest.approx(reference.item(), abs=1e-6)


def test_calibration_error_counts_probability_one():
    """Prevents a bin of its own, or none, for p = 1."""
    # One bin of mean label 0.5 and mean probability 0.975; apart they would give 0.525.
    assert metrics.expected_calibration_error([0, 1], [1.0, 0.95], bins=10) == pytest.approx(0.475)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1))
def test_errors_of_numbers_equal_sklearn(rows):
    """Prevents an MSE reported as RMSE."""
    labels, predictions = np.array(rows).T
    rmse = sklearn.metrics.root_mean_squared_error(labels, predictions)
    assert metrics.rmse(labels, predictions) == pytest.approx(rmse)
    assert metrics.mae(labels, predictions) == pytest.approx(sklearn.metrics.mean_absolute_error(labels, predictions))


ALL = [
    metrics.auc,
    metrics.log_loss,
    metrics.expected_calibration_error,
    metrics.rmse,
    metrics.mae,
    lambda labels, scores: metrics.grouped_auc(labels, scores, np.arange(len(labels)) % 2).value,
]


@pytest.mark.parametrize("metric", ALL)
def test_unknown_labels_are_dropped_with_their_scores(metric):
    """Prevents a missing label from counting as 0, and a missing score of an unlabelled row from stopping a run."""
    labels, scores = np.array([1.0, 0, 0, 1, 1, 0]), np.array([0.9, 0.6, 0.2, 0.4, 0.7, 0.3])
    with_unknown = np.append(labels, [np.nan, np.nan]), np.append(scores, [0.99, np.nan])
    assert metric(*with_unknown) == pytest.approx(metric(labels, scores))


@pytest.mark.parametrize("metric", ALL)
def test_no_known_label_gives_nan(metric):
    """Prevents a crash, or a perfect 0 loss, where a task has no label in the evaluated rows."""
    assert np.isnan(metric([np.nan, np.nan], [0.5, 0.5]))
    assert np.isnan(metric(np.empty(0), np.empty(0)))


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(metric, bad):
    """Prevents a diverged model from measuring as an ordinary one: sorting puts NaN last without a word."""
    with pytest.raises(ValueError, match=r"scores must be finite, row 2 .* diverged"):
        metric([np.nan, 1, 0, 1], [0.1, 0.2, bad, 0.3])


def test_messages_name_the_fix():
    """Prevents logits in a log loss, stars in an AUC and misaligned columns from giving plausible numbers."""
    with pytest.raises(ValueError, match="sigmoid"):
        metrics.log_loss([1, 0], [2.5, -1.0])
    with pytest.raises(ValueError, match="one is 5: binarise"):
        metrics.auc([1, 5], [0.1, 0.2])
    with pytest.raises(ValueError, match="flatten"):
        metrics.auc(np.zeros((2, 1)), np.zeros(2))
    with pytest.raises(ValueError, match="each of 2 rows"):
        metrics.grouped_auc([1, 0], [0.1, 0.2], [1])
    with pytest.raises(ValueError, match="groups holds NaN"):
        metrics.grouped_auc([1, 0], [0.1, 0.2], [1.0, np.nan])
    with pytest.raises(ValueError, match="bins"):
        metrics.expected_calibration_error([1], [0.5], bins=0)


def test_one_label_only_is_nan():
    """Prevents a task whose slice has one label from stopping the evaluation of all others."""
    assert np.isnan(metrics.auc([1, 1], [0.2, 0.3]))
    value, groups = metrics.grouped_auc([1, 1, 0], [0.2, 0.3, 0.1], ["a", "a", "b"])
    assert np.isnan(value)
    assert groups == 0


# ------------------------------------------------------------------ classes, counts, intervals
CLASSES = st.lists(st.tuples(st.integers(0, 4), st.floats(-1, 5)), min_size=2, max_size=40)


@settings(deadline=None)
@given(CLASSES)
def test_accuracy_and_kappa_equal_sklearn(rows):
    """Prevents kappa from counting disagreement by chance per class of the labels only."""
    labels, predictions = (np.array(column) for column in zip(*rows, strict=True))
    whole = predictions.round().astype(int)
    assert metrics.accuracy(labels, predictions) == pytest.approx(sklearn.metrics.accuracy_score(labels, whole))
    if len(np.unique(np.r_[labels, whole])) > 1:
        expected = sklearn.metrics.cohen_kappa_score(labels, whole, weights="quadratic", labels=range(-1, 6))
        assert metrics.quadratic_kappa(labels, predictions) == pytest.approx(expected, abs=1e-9)
    else:
        assert np.isnan(metrics.quadratic_kappa(labels, predictions))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30))
def test_xauc_is_the_share_of_ordered_pairs(rows):
    """Prevents tied predictions from counting as right or wrong, and tied labels from counting at all."""
    y, f = np.array(rows, dtype=np.float64).T
    first, second = np.triu_indices(len(y), 1)
    different = y[first] != y[second]
    right = np.sign(y[first] - y[second]) * np.sign(f[first] - f[second])
    expected = (0.5 + 0.5 * right[different]).mean() if different.any() else float("nan")
    np.testing.assert_allclose(metrics.xauc(y, f), expected, atol=1e-12, equal_nan=True)


def test_xauc_of_two_labels_is_the_auc_and_large_numbers_do_not_overflow():
    """Prevents the number of pairs from overflowing, and a definition other than the AUC's."""
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 100_000), rng.normal(size=100_000).round(2)
    assert metrics.xauc(labels, scores) == pytest.approx(metrics.auc(labels, scores), abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0.01, 20)), min_size=1, max_size=30))
def test_poisson_deviance_equals_sklearn(rows):
    """Prevents a factor of 2, and 0 log 0 from becoming NaN."""
    labels, predictions = (np.array(column) for column in zip(*rows, strict=True))
    expected = sklearn.metrics.mean_poisson_deviance(labels, predictions)
    assert metrics.poisson_deviance(labels, predictions) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_class_log_loss_equals_sklearn_and_unheard_of_classes_cost_dearly():
    """Prevents an error, or a free answer, for a class that occurs after training only."""
    rng = np.random.default_rng(0)
    labels, probs = rng.integers(0, 4, 200), rng.dirichlet(np.ones(4), 200)
    expected = sklearn.metrics.log_loss(labels, probs, labels=range(4))
    assert metrics.class_log_loss(np.append(labels, np.nan), np.append(probs, np.full((1, 4), np.nan), 0)) == (
        pytest.approx(expected)
    )
    assert metrics.class_log_loss([4], probs[:1]) == pytest.approx(-np.log(1e-7))
    assert metrics.class_log_loss([1, 0], [[0.0, 1.0], [0.5, 0.5]]) == pytest.approx(np.log(2) / 2)  # a sure answer
    with pytest.raises(ValueError, match="sum to 1 in every row"):
        metrics.class_log_loss(labels, 2 * probs)
    with pytest.raises(ValueError, match="class numbers"):
        metrics.class_log_loss(labels + 0.5, probs)
    with pytest.raises(ValueError, match=r"\[R, K\]"):
        metrics.class_log_loss(labels, probs[:, 0])


def test_interval_coverage_counts_both_ends():
    """Prevents a point on the edge of the interval from counting as a miss."""
    quantiles = np.tile([1.0, 2.0, 3.0], (5, 1))
    assert metrics.interval_coverage([1, 3, 2.5, 0.9, np.nan], quantiles) == 0.75
