"""Calibration against scikit-learn, on models that are wrong in a known way."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import random_batch, random_config
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from polyrec import PolyRecForRecommendation
from polyrec.evaluation.calibration import calibrate, fit
from polyrec.evaluation.evaluator import Predictions
from polyrec.evaluation.metrics import auc, expected_calibration_error


def overconfident(rows=5000, seed=0):
    """Labels and probabilities whose log odds are 3 times as large as they should be, and shifted."""
    random = np.random.default_rng(seed)
    z = random.normal(size=rows)
    return (random.random(rows) < expit(z - 1)).astype(np.float64), expit(3 * z).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(4, 200), st.sampled_from(["platt", "temperature"]))
def test_the_fit_is_the_logistic_regression_of_platts_targets(seed, rows, method):
    """Prevents Newton's method from stopping early, and few or perfectly separated labels from running away."""
    random = np.random.default_rng(seed)
    labels = np.r_[0.0, 1.0, random.integers(0, 2, rows - 2)]
    probs = expit(3 * random.normal(size=rows) + labels)
    positives = labels.sum()
    target = np.where(labels > 0, (positives + 1) / (positives + 2), 1 / (rows - positives + 2))
    # A soft target is a positive and a negative row, weighted.
    x, weight = np.tile(logit(probs), 2)[:, None], np.r_[target, 1 - target]
    reference = LogisticRegression(C=np.inf, fit_intercept=method == "platt", tol=1e-10, max_iter=1000)
    reference.fit(x, np.r_[np.ones(rows), np.zeros(rows)], sample_weight=weight)
    expected = [reference.coef_[0, 0], reference.intercept_[0] if method == "platt" else 0.0]
    np.testing.assert_allclose(fit(labels, probs, method), expected, rtol=1e-2, atol=1e-3)


def test_perfect_and_useless_scores_give_finite_numbers():
    """Prevents an infinite slope, and a singular matrix where all scores are alike."""
    labels = np.r_[np.zeros(50), np.ones(50)]
    assert np.isfinite(fit(labels, labels)).all()
    slope, intercept = fit(np.r_[np.ones(10), np.zeros(30)], np.full(40, 0.9))
    assert expit(slope * logit(0.9) + intercept) == pytest.approx(0.25, abs=0.03)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PolyRecForRecommendation(random_config()).eval()


def test_probabilities_mean_what_they_say_and_keep_their_order(model):
    """Prevents a calibration that is fitted but not applied, or that changes the ranking."""
    labels, probs = overconfident()
    before = model.heads["like"].predict(torch.from_numpy(logit(probs)))
    assert expected_calibration_error(labels, before.numpy()) > 0.1
    found = calibrate(model, Predictions({"like": probs}), {"like": labels})["like"]
    assert (found.slope, found.intercept) == (pytest.approx(1 / 3, rel=0.1), pytest.approx(-1, rel=0.1))
    assert found.after < found.before
    after = model.heads["like"].predict(torch.from_numpy(logit(probs))).numpy()
    fresh, others = overconfident(seed=1)
    calibrated = model.heads["like"].predict(torch.from_numpy(logit(others))).numpy()
    assert expected_calibration_error(labels, after) < 0.03
    assert expected_calibration_error(fresh, calibrated) < 0.03
    assert auc(labels, after) == pytest.approx(auc(labels, probs), abs=1e-4)


def test_a_second_calibration_finds_nothing_left(model):
    """Prevents a repeated run from being applied twice to the raw logits."""
    labels, probs = overconfident()
    calibrate(model, Predictions({"like": probs}), {"like": labels})
    once = model.heads["like"].calibration.clone()
    again = model.heads["like"].predict(torch.from_numpy(logit(probs))).numpy()
    found = calibrate(model, Predictions({"like": again}), {"like": labels})["like"]
    assert (found.slope, found.intercept) == (pytest.approx(1, abs=0.01), pytest.approx(0, abs=0.01))
    torch.testing.assert_close(model.heads["like"].calibration, once, rtol=0.02, atol=0.01)


def test_it_is_saved_with_the_model_and_touches_predictions_alone(model, tmp_path):
    """Prevents a calibrated model from being uncalibrated once it is loaded, and losses from changing."""
    labels, probs = overconfident()
    batch = random_batch(["next_item", "like", "rating"])
    before = model(**batch)
    calibrate(model, Predictions({"like": probs}), {"like": labels}, method="temperature")
    model.save_pretrained(tmp_path)
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path)
    after = loaded(**batch)
    assert torch.equal(after.losses["like"], before.losses["like"])
    assert torch.equal(after.logits["like"], before.logits["like"])
    slope, intercept = loaded.heads["like"].calibration.tolist()
    assert (slope, intercept) == (pytest.approx(1 / 3, rel=0.3), 0)
    expected = torch.sigmoid(slope * after.logits["like"])
    torch.testing.assert_close(loaded.heads["like"].predict(after.logits["like"]), expected)


def test_what_cannot_be_calibrated_is_left_alone(model, caplog):
    """Prevents one kind of label, or scores in the wrong order, from turning the answers upside down."""
    labels, probs = overconfident()
    with caplog.at_level(logging.WARNING, logger="polyrec"):
        assert calibrate(model, Predictions({"like": probs}), {"like": np.zeros_like(labels)}) == {}
        assert calibrate(model, Predictions({"like": probs}), {"like": np.full(len(labels), np.nan)}) == {}
        assert calibrate(model, Predictions({"like": probs}), {"like": 1 - labels}) == {}
    assert "labels of one kind only" in caplog.text
    assert "do not order its labels" in caplog.text
    assert model.heads["like"].calibration.tolist() == [1, 0]
    with pytest.raises(ValueError, match="unknown task 'lik'.*did you mean 'like'"):
        calibrate(model, Predictions({}), {"lik": labels})
    with pytest.raises(ValueError, match="'rating' has head 'regression': only binary tasks"):
        calibrate(model, Predictions({"rating": probs}), {"rating": labels})
    with pytest.raises(ValueError, match="unknown method 'plat'.*did you mean 'platt'"):
        calibrate(model, Predictions({"like": probs}), {"like": labels}, method="plat")
