"""The arithmetic of the soft order of probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
import torch
from coupling_fixtures import NAN, coupling_of, found


@pytest.mark.parametrize(("kind", "penalty"), [("monotone", 1.0), ("monotone", 0.25), ("aitm", 0.6), ("aitm", 0.0)])
def test_loss_equals_the_naive_one(kind, penalty):
    """Prevents a penalty of the wrong sign, on unknown rows, or without the rows' weights."""
    random = np.random.default_rng(0)
    own, parent = random.normal(0, 2, (2, 5, 6))
    labels, weight = random.integers(0, 2, (5, 6)).astype(float), random.random((5, 6)) + 0.5
    labels[0, :3], weight[0, 0] = NAN, NAN
    known = ~np.isnan(labels)
    p, q = 1 / (1 + np.exp(-own)), 1 / (1 + np.exp(-parent))
    expected = penalty * (weight * np.maximum(p - q, 0))[known].sum() + sklearn.metrics.log_loss(
        labels[known], p[known], sample_weight=weight[known], normalize=False
    )
    args = [torch.from_numpy(x).float() for x in (own, parent, labels, np.full((5, 6), NAN), weight)]
    coupling = coupling_of(kind, penalty=penalty)
    total, count = coupling.loss(found(coupling, *args))
    np.testing.assert_allclose(total.item(), expected, rtol=1e-5)
    np.testing.assert_allclose(count.item(), weight[known].sum(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["monotone", "aitm"])
@pytest.mark.parametrize("penalty", [-0.1, NAN, float("inf")])
def test_penalty_must_be_a_number_that_penalises(kind, penalty):
    """Prevents a reward for the wrong order, and NaN losses."""
    with pytest.raises(
        ValueError, match=f"option 'penalty' of coupling '{kind}' of task 'buy' is {penalty}; it must be a"
    ):
        coupling_of(kind, penalty=penalty)
