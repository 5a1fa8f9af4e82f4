"""Labels and lists in one pass over the catalog."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrec.core.distillation_config import TaskDistillation
from polyrec.core.losses import linear_cross_entropy
from polyrec.distillation.catalog import catalog_loss, taught_cross_entropy
from polyrec.distillation.choices import chosen
from polyrec.distillation.ranking_losses import LIST_LOSSES

NONE = float("-inf")


def questions(seed: int, rows: int, catalog: int, listed: int, scale: float):
    """Random queries, items, biases, labels with weights, and a teacher's lists, some short and some not there."""
    torch.manual_seed(seed)
    query, items = torch.randn(rows, 4).double(), scale * torch.randn(catalog, 4).double()
    bias = torch.randn(catalog).double()
    bias[:2] = NONE
    targets, weight = torch.randint(2, catalog, (rows,)), torch.rand(rows).double()
    weight[torch.rand(rows) < 0.3] = 0
    lists = torch.stack([2 + torch.randperm(catalog - 2)[:listed] for _ in range(rows)])
    teacher = torch.randn(rows, listed + 1).double()
    if listed == catalog - 2:
        teacher[:, -1] = NONE
    lists[0, -1], teacher[0, -2] = 0, NONE  # a list that is shorter
    teacher[torch.rand(rows) < 0.3] = float("nan")
    leaves = [x.requires_grad_() for x in (query, items, bias)]
    return leaves, targets, weight, lists, teacher


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10_000),
    st.integers(1, 7),
    st.integers(4, 9),
    st.sampled_from([n for n in LIST_LOSSES if n != "rank_distil"]),  # it draws
    st.sampled_from([0.1, 1.0, 100.0]),
    st.booleans(),
)
def test_one_pass_is_the_two_losses(seed, rows, catalog, loss, scale, excluding):
    """Prevents the shared pass from changing a value or a gradient of either loss."""
    leaves, targets, weight, lists, teacher = questions(seed, rows, catalog, catalog - 2 - seed % 2, scale)
    plan, share = chosen(TaskDistillation(loss), LIST_LOSSES, "x"), torch.tensor(0.3).double()
    excluded = None
    if excluding:  # an item that is not the label
        excluded = torch.where(targets == 2, 3, 2)
        excluded[::2] = 0
    hard, soft = taught_cross_entropy(plan, *leaves, targets, weight, lists, teacher, share, excluded)
    found = torch.autograd.grad(0.25 * hard + 0.25 * 0.3 * soft, leaves)
    columns = None if excluded is None else torch.where(excluded > 0, excluded, -1)
    own = linear_cross_entropy(*leaves, targets, weight, excluded_M=columns)
    listed, _ = catalog_loss(plan, *leaves, lists, teacher, None, excluded)
    expected = torch.autograd.grad(0.25 * own + 0.25 * 0.3 * listed, leaves)
    torch.testing.assert_close(hard, own, rtol=1e-6, atol=1e-6)  # weights are single
    torch.testing.assert_close(soft, listed)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_another_proportion_is_refused():
    """Prevents a gradient of the wrong mixture, where somebody adds the two losses otherwise than announced."""
    leaves, targets, weight, lists, teacher = questions(0, 5, 9, 3, 1.0)
    plan = chosen(TaskDistillation(), LIST_LOSSES, "x")
    both = taught_cross_entropy(plan, *leaves, targets, weight, lists, teacher, torch.tensor(0.3).double())
    with pytest.raises(RuntimeError, match="compute them one by one"):
        both[0].backward()


def test_a_temperature_is_refused():
    """Prevents labels from being judged at the lists' temperature."""
    leaves, targets, weight, lists, teacher = questions(0, 5, 9, 3, 1.0)
    plan = chosen(TaskDistillation(temperature=2.0), LIST_LOSSES, "x")
    with pytest.raises(ValueError, match="have no temperature"):
        taught_cross_entropy(plan, *leaves, targets, weight, lists, teacher, torch.tensor(0.3).double())
