"""The student's side of lists, against logits that are kept whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from head_fixtures import head_of
from torch.utils._python_dispatch import TorchDispatchMode

from polyrec.distillation.catalog import sampled_rest, whole_catalog
from polyrec.distillation.ranking_losses import list_kl
from polyrec.encoders.item import FIRST_ITEM, ItemRows

NONE = float("-inf")


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation made."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return made


def catalog(rows: int = 7, items: int = 11, places: int = 4, seed: int = 0):
    """States [M, D], items [N, D] and lists [M, K] without repetition, some places of which are empty."""
    random = torch.Generator().manual_seed(seed)
    states, table = (torch.randn(n, 3, generator=random, dtype=torch.float64) for n in (rows, items))
    listed = torch.stack([torch.randperm(items - 2, generator=random)[:places] + 2 for _ in range(rows)])
    listed[::3, -2:] = 0
    return states.requires_grad_(), table.requires_grad_(), listed


def scored(states, table):
    """Logits of rows, with columns 0 and 1 impossible, as of a head."""
    impossible = torch.arange(len(table)) < 2
    return lambda rows: (states[rows] @ table.T).masked_fill(impossible, NONE)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_chunks_equal_the_whole(temperature, monkeypatch):
    """Prevents chunks from mixing up rows, listed items from counting among the others, and empty places from counting."""
    states, table, listed = catalog()
    monkeypatch.setattr("polyrec.distillation.catalog._CHUNK", 2 * len(table))
    logits = scored(states, table)(torch.arange(7))
    others = [
        torch.stack([row[j] / temperature for j in range(2, 11) if j not in own.tolist()]).logsumexp(0)
        for row, own in zip(logits, listed, strict=True)
    ]
    expected = logits.gather(1, listed), torch.stack(others)
    found = whole_catalog(scored(states, table), listed, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    goal = torch.randn(7, 5, dtype=torch.float64)
    gradients = []
    for listed_MK, rest_M in (found, expected):
        total, _ = list_kl(listed_MK, rest_M, goal, temperature)
        gradients.append(torch.autograd.grad(total, (states, table), retain_graph=True))
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-8)


def test_a_list_of_everything_leaves_nothing():
    """Prevents NaN gradients of an empty log-sum-exp."""
    states, table, _ = catalog()
    everything = torch.arange(2, 11).expand(7, -1)
    listed_MK, rest_M = whole_catalog(scored(states, table), everything)
    assert (rest_M == NONE).all()
    scores = torch.cat([torch.randn(7, 9).double(), torch.full((7, 1), NONE).double()], dim=1)
    list_kl(listed_MK, rest_M, scores)[0].backward()
    assert torch.isfinite(states.grad).all()
    assert states.grad.count_nonzero()


def test_no_row_still_has_a_gradient_of_zero():
    """Prevents a batch without lists from leaving parameters without gradient, for which other ranks would wait."""
    states, table, listed = catalog()
    listed_MK, rest_M = whole_catalog(scored(states, table), listed[:0])
    list_kl(listed_MK, rest_M, torch.zeros(0, 5))[0].backward()
    assert table.grad.count_nonzero() == 0


def test_logits_of_the_catalog_are_never_kept():
    """Prevents memory that grows with rows times items, in forward and backward."""
    states, table, _ = catalog(rows=600, items=20_000, places=1)
    listed = torch.full((600, 1), 5)
    with Largest() as largest:
        listed_MK, rest_M = whole_catalog(scored(states, table), listed)
        list_kl(listed_MK, rest_M, torch.zeros(600, 2))[0].backward()
    assert largest.size <= 1 << 20 < 600 * 20_000


def test_a_head_scores_the_chunks():
    """Prevents the columns of a head's scores from being other items than a list's rows."""
    head = head_of("retrieval")
    states, items = torch.randn(5, head.project.in_features), ItemRows(torch.randn(12, head.project.in_features))
    listed = torch.tensor([[2, 7, 11]] * 5)
    listed_MK, rest_M = whole_catalog(lambda rows: head(states[rows], items), listed)
    pairs = head.pair_logits(states.unsqueeze(1), items.lookup(listed), listed, items)
    torch.testing.assert_close(listed_MK, pairs)
    everything = head(states, items)[:, FIRST_ITEM:].logsumexp(1)
    torch.testing.assert_close(torch.logaddexp(listed_MK.logsumexp(1), rest_M), everything)


def test_a_sample_estimates_the_rest():
    """Prevents listed items from counting in the sampled rest, and a correction by the wrong power of the chances."""
    random = np.random.default_rng(0)
    logits, q = torch.from_numpy(random.normal(size=9)), torch.from_numpy(random.dirichlet(np.full(9, 5.0)))
    listed, temperature, draws = torch.tensor([[3, 5, 0]]), 2.0, 200_000
    rest = torch.tensor([j for j in range(1, 9) if j not in (3, 5)])
    q[0] = 0.0
    q /= q.sum()
    drawn_S = torch.multinomial(q, draws, replacement=True, generator=torch.Generator().manual_seed(0))
    found = sampled_rest(logits[drawn_S].unsqueeze(0), drawn_S, (draws * q)[drawn_S].log(), listed, temperature)
    np.testing.assert_allclose(found.item(), (logits[rest] / temperature).logsumexp(0).item(), rtol=0.01)


def test_nothing_sampled_beside_the_list():
    """Prevents NaN where all samples are listed."""
    logits = torch.zeros(1, 2, requires_grad=True)
    found = sampled_rest(logits, torch.tensor([3, 5]), torch.zeros(2), torch.tensor([[5, 3, 0]]))
    assert found.item() == NONE
    list_kl(torch.zeros(1, 3), found, torch.zeros(1, 4))[0].backward()
    assert logits.grad.count_nonzero() == 0
