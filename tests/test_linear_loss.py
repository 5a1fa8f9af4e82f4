"""The loss of linear scores, whose logits are never kept: in half precision, and cut into chunks by device."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from polyrec import linear_loss
from polyrec.losses import linear_cross_entropy


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
