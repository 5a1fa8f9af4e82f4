"""The loss of linear scores, whose logits are never kept: in half precision, and cut into chunks by device."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from polyrec.core import linear_loss
from polyrec.core.losses import linear_cross_entropy


def gradients(loss, inputs, dtype, factor):
    leaves = [x.clone().to(dtype).requires_grad_() for x in inputs]
    (factor * loss(*leaves)).backward()
    assert all(x.grad.dtype == dtype for x in leaves)
    return [x.grad.double() for x in leaves]


@pytest.mark.parametrize("factor", [1.0, 1 / 3])
def test_gradients_of_half_precision_inputs_are_as_near_as_those_of_torch(factor, monkeypatch):
    """Prevents sums over many chunks, and the factor of the mean, from being rounded to 8 binary digits."""
    torch.manual_seed(0)
    inputs = [x.to(torch.bfloat16) for x in (torch.randn(1024, 16), 0.3 * torch.randn(200, 16), 0.1 * torch.randn(200))]
    targets = torch.randint(0, 200, (1024,))
    monkeypatch.setattr(linear_loss, "_CHUNK", 16 * 200)  # 64 chunks

    def of_torch(query, items, bias):
        return F.cross_entropy(F.linear(query, items, bias), targets, reduction="sum")

    def ours(query, items, bias):
        return linear_cross_entropy(query, items, bias, targets)

    exact = gradients(of_torch, inputs, torch.float64, factor)
    theirs, found = (gradients(loss, inputs, torch.bfloat16, factor) for loss in (of_torch, ours))
    for right, reference, own in zip(exact, theirs, found, strict=True):
        assert (own - right).norm() <= 1.3 * (reference - right).norm()


def test_a_chunk_fills_an_accelerator():
    """Prevents launches of 52 rows at 20,000 items where nothing is gained by a small chunk."""
    seen = []

    def judge(rows, logits, wants_gradient):
        seen.append(len(rows))
        return logits.sum()

    with torch.device("meta"):
        linear_loss.linear_loss(torch.ones(5000, 2), torch.ones(20_000, 2), torch.zeros(20_000), judge)
    assert seen[0] == (1 << 25) // 20_000
    seen.clear()
    linear_loss.linear_loss(torch.ones(100, 2), torch.ones(20_000, 2), torch.zeros(20_000), judge)
    assert seen[0] == (1 << 20) // 20_000


@pytest.mark.parametrize("questions", [0, 5])
def test_numbers_of_shared_table_rows_are_added_to_the_right_logits(questions):
    """Prevents a table row that many questions read, or a column that stands in it twice, from counting once."""
    torch.manual_seed(0)
    columns, values = torch.randint(0, 7, (3, 4)), torch.rand(3, 2, 4)  # U = 3, K = 4, T = 2
    rows, groups = torch.randint(0, 3, (questions, 6)), torch.randn(questions, 1 + 2 * 6)  # H = 6, one other group
    placed = linear_loss.SparseBias(columns[rows], values, rows).beyond(1)
    found, gradient = placed.add(torch.zeros(questions, 7), groups), torch.randn(questions, 7)
    expected, expected_gradient = torch.zeros(questions, 7), torch.zeros_like(groups)
    for r, h, t, k in itertools.product(range(questions), range(6), range(2), range(4)):
        u, group = rows[r, h], 1 + t * 6 + h
        expected[r, columns[u, k]] += groups[r, group] * values[u, t, k]
        expected_gradient[r, group] += gradient[r, columns[u, k]] * values[u, t, k]
    of_groups = torch.zeros_like(groups)
    placed.collect(of_groups, gradient)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(of_groups, expected_gradient)
