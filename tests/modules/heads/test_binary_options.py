"""Weights, sampling, focal loss and smoothing of binary tasks: what the probability means afterwards."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from head_fixtures import NAN, head_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

OPTIONS = st.fixed_dictionaries(
    {
        "positive_weight": st.floats(0.2, 20),
        "sampling_rate": st.floats(0.01, 1),
        "focal_gamma": st.sampled_from([0.0, 0.5, 2.0]),
        "label_smoothing": st.floats(0, 0.4),
    }
)


@settings(max_examples=50, deadline=None)
@given(OPTIONS, st.integers(0, 2**32 - 1))
def test_the_loss_is_its_formula(options, seed):
    """Prevents an option from acting on the wrong class, or two options from undoing each other."""
    random = np.random.default_rng(seed)
    z, y = torch.from_numpy(random.normal(size=12)), torch.from_numpy(random.integers(0, 2, 12)).double()
    total, count = head_of("binary", **options).loss(z.float(), y.float())
    w, g, e = options["positive_weight"], options["focal_gamma"], options["label_smoothing"]
    q = torch.sigmoid(z + math.log(w / options["sampling_rate"]))
    t = y * (1 - e) + e / 2
    expected = -(w * t * (1 - q) ** g * q.log() + (1 - t) * q**g * (1 - q).log()).sum()
    assert count == 12
    torch.testing.assert_close(total.double(), expected, rtol=1e-4, atol=1e-5)


def test_plain_options_are_torchs_own_loss():
    """Prevents the general formula from changing the plain logistic loss, or positive_weight from torch's."""
    z, y = torch.linspace(-6, 6, 9), torch.tensor([0.0, 1.0] * 4 + [1.0])
    torch.testing.assert_close(
        head_of("binary").loss(z, y)[0], F.binary_cross_entropy_with_logits(z, y, reduction="sum")
    )
    weighted = F.binary_cross_entropy_with_logits(z, y, reduction="sum", pos_weight=torch.tensor(3.0))
    shifted = z - math.log(3.0)  # the correction, undone
    torch.testing.assert_close(head_of("binary", positive_weight=3.0).loss(shifted, y)[0], weighted)


def fitted(labels: torch.Tensor, **options) -> float:
    """The probability that the head predicts when it may choose one logit for all rows: where the slope is 0."""
    head, low, high = head_of("binary", **options), -15.0, 15.0
    for _ in range(40):
        z = torch.tensor((low + high) / 2, requires_grad=True)
        (slope,) = torch.autograd.grad(head.loss(z.expand(len(labels)), labels)[0], z)
        low, high = (low, z.item()) if slope > 0 else (z.item(), high)
    return head.predict(z.detach()).item()


@pytest.mark.parametrize("positive_weight", [0.25, 1.0, 7.0])
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_probabilities_are_those_of_the_population(positive_weight, rate):
    """Prevents a weight of the positives, or the sampling of negatives, from biasing the predicted base rate."""
    population = torch.tensor([1.0] * 40 + [0.0] * 960)
    kept = torch.cat([population[:40], population[40 : 40 + int(960 * rate)]])
    assert fitted(kept, positive_weight=positive_weight, sampling_rate=rate) == pytest.approx(0.04, rel=1e-3)


def test_the_head_starts_at_the_population_rate_whatever_the_options():
    """Prevents the correction from being counted twice, in the bias and in the loss."""
    head = head_of("binary", prior=0.1, positive_weight=5.0, sampling_rate=0.2)
    assert head.predict(head.output.bias).item() == pytest.approx(0.1)


def test_calibration_is_used_by_predict_alone_and_adds_up():
    """Prevents a calibrated head from training differently, and a second calibration from forgetting the first."""
    head, z = head_of("binary"), torch.linspace(-3, 3, 7)
    before = head.loss(z, torch.ones(7))[0]
    head.calibrate(0.5, -1.0)
    torch.testing.assert_close(head.predict(z), torch.sigmoid(0.5 * z - 1))
    head.calibrate(2.0, 0.3)
    torch.testing.assert_close(head.predict(z), torch.sigmoid(2 * (0.5 * z - 1) + 0.3))
    assert head.loss(z, torch.ones(7))[0] == before


def test_unknown_labels_count_nothing_under_any_option():
    """Prevents smoothing from turning an unknown label into a soft negative."""
    head = head_of("binary", label_smoothing=0.2, focal_gamma=1.0, positive_weight=2.0)
    one = head.loss(torch.tensor([1.0]), torch.tensor([1.0]))
    two = head.loss(torch.tensor([1.0, 4.0]), torch.tensor([1.0, NAN]))
    assert one == two


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("positive_weight", 0.0),
        ("positive_weight", math.inf),
        ("sampling_rate", 0.0),
        ("sampling_rate", 1.5),
        ("focal_gamma", -1.0),
        ("label_smoothing", 1.0),
        ("label_smoothing", NAN),
    ],
)
def test_impossible_options_are_refused(option, value):
    """Prevents a loss of NaN, or one that asks for nothing, from being found in training."""
    with pytest.raises(ValueError, match=f"option '{option}' of task 'task'.* is"):
        head_of("binary", **{option: value})
