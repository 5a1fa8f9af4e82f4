"""Classes with and without order against torch, scikit-learn and loops."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
import torch
from head_fixtures import NAN, head_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from polyrec.core.registry import HEADS
from polyrec.core.schema import TaskConfig
from polyrec.data.label_summary import summarise


# ------------------------------------------------------------------ multiclass
@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_multiclass_loss_equals_sklearn(classes, seed):
    """Prevents a softmax over the wrong axis, and unknown labels from counting as class 0."""
    random = np.random.default_rng(seed)
    logits, weight = torch.from_numpy(random.normal(size=(3, 4, classes))).float(), random.random((3, 4)) + 0.1
    labels = random.integers(0, classes, (3, 4)).astype(np.float32)
    labels[0, 1] = np.nan
    head, known = head_of("multiclass", num_classes=classes), ~np.isnan(labels)
    total, count = head.loss(logits, torch.from_numpy(labels), torch.from_numpy(weight).float())
    p = head.details(logits).numpy()[known].astype(np.float64)
    expected = sklearn.metrics.log_loss(
        labels[known], p / p.sum(1, keepdims=True), sample_weight=weight[known], labels=range(classes)
    )
    assert total.item() / count.item() == pytest.approx(expected, rel=1e-4)
    assert count.item() == pytest.approx(weight[known].sum(), rel=1e-5)
    assert np.array_equal(head.predict(logits).numpy(), logits.numpy().argmax(-1))


@pytest.mark.parametrize("kind", ["multiclass", "ordinal"])
def test_members_are_trained_on_their_own_loss(kind):
    """Prevents the axis of members from being taken for the classes, which goes unseen where both are 3."""
    head, labels = head_of(kind), torch.tensor([[0.0, 2.0, NAN, 1.0]])
    logits = torch.randn(1, 4, 3, head.logit_width)
    total, count = head.loss(logits, labels)
    each = [head.loss(logits[:, :, m], labels) for m in range(3)]
    torch.testing.assert_close(total, torch.stack([t for t, _ in each]).mean())
    assert count == each[0][1] == 3
    torch.testing.assert_close(head.mean_over_members(logits), logits.mean(2))
    assert head.mean_over_members(logits[:, :, 0]).shape == (1, 4, head.logit_width)


def test_multiclass_starts_at_the_shares():
    """Prevents the first hundred steps from being spent on the shares of the classes."""
    task = TaskConfig("task", "multiclass")
    summary = summarise(task, np.array([1.0] * 7 + [2.0] * 2 + [np.nan]), {})
    options = HEADS.get("multiclass").options_from_labels(task, summary)
    head = head_of("multiclass", **options)
    # one imagined label per class: class 0 was not seen
    np.testing.assert_allclose(head.details(head.output.bias.detach()), [1 / 12, 8 / 12, 3 / 12], rtol=1e-5)
    more = HEADS.get("multiclass").options_from_labels(
        TaskConfig("t", "multiclass", options={"num_classes": 5}), summary
    )
    assert len(more["prior"]) == 5


@pytest.mark.parametrize("label", [3.0, -1.0, 0.5])
@pytest.mark.parametrize("kind", ["multiclass", "ordinal"])
def test_labels_out_of_range_are_refused_by_the_loss(kind, label):
    """Prevents a label beyond the classes from being read from memory that is not ours, or from being rounded."""
    head = head_of(kind)
    with pytest.raises(ValueError, match=f"label of {kind} task 'task' is {label:g}"):
        head.loss(torch.zeros(1, head.logit_width), torch.tensor([label]))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("multiclass", {"num_classes": None}),
        ("multiclass", {"num_classes": 1}),
        ("multiclass", {"num_classes": 3, "prior": [0.5, 0.5]}),
        ("multiclass", {"num_classes": 2, "prior": [1.0, 0.0]}),
        ("ordinal", {"minimum": None}),
        ("ordinal", {"minimum": 0.5}),
        ("ordinal", {"minimum": 2, "maximum": 2}),
        ("ordinal", {"minimum": 1, "maximum": 2, "prior": [1.0]}),
    ],
)
def test_impossible_classes_are_refused(kind, options):
    """Prevents a head without classes, or with infinite start values, from being found in training."""
    with pytest.raises(ValueError, match="of task 'task' is"):
        head_of(kind, **options)


# ------------------------------------------------------------------ ordinal
def corn_loss(logits: torch.Tensor, y: torch.Tensor, classes: int) -> torch.Tensor:
    """The sum in the authors' code: question k is asked of the rows whose label is at least k."""
    total = torch.zeros(())
    for k in range(classes - 1):
        asked = y > k - 1
        above = (y[asked] > k).float()
        total = total + F.binary_cross_entropy_with_logits(logits[asked, k], above, reduction="sum")
    return total


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(-2, 3), st.integers(0, 2**32 - 1))
def test_ordinal_loss_is_corns_and_the_likelihood(classes, minimum, seed):
    """Prevents a question from being asked of rows that never got so far, and an offset of the lowest class."""
    random = np.random.default_rng(seed)
    head = head_of("ordinal", minimum=minimum, maximum=minimum + classes - 1)
    logits = torch.from_numpy(random.normal(size=(9, classes - 1))).float()
    y = torch.from_numpy(random.integers(0, classes, 9))
    labels = torch.cat([(y + minimum).float(), torch.tensor([NAN])])
    total, count = head.loss(torch.cat([logits, torch.zeros(1, classes - 1)]), labels)
    assert count == 9
    torch.testing.assert_close(total, corn_loss(logits, y, classes))
    f = torch.sigmoid(logits.double())
    above = torch.cat([torch.ones(9, 1), f.cumprod(-1), torch.zeros(9, 1)], dim=-1)
    p = above[:, :-1] - above[:, 1:]
    torch.testing.assert_close(total.double(), -p[torch.arange(9), y].log().sum(), rtol=1e-4, atol=1e-5)
    expected = (minimum + (p * torch.arange(classes)).sum(-1)).float()  # near 0 nothing but single precision is left
    torch.testing.assert_close(head.predict(logits), expected)


def test_ordinal_starts_at_the_shares():
    """Prevents conditional questions from starting at the unconditional rate of the higher classes."""
    task = TaskConfig("task", "ordinal")
    labels = np.array([1.0] * 9 + [3.0] * 4 + [4.0])
    options = HEADS.get("ordinal").options_from_labels(task, summarise(task, labels, {}))
    assert (options["minimum"], options["maximum"]) == (1, 4)
    head = head_of("ordinal", **options)
    shares = np.array([10, 1, 5, 2]) / 18
    assert head.predict(head.output.bias.detach()).item() == pytest.approx(shares @ [1, 2, 3, 4], rel=1e-5)
