"""The student's side of lists, against logits that are kept whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from polyrec.core.distillation_config import TaskDistillation
from polyrec.core.linear_loss import GroupBias
from polyrec.distillation.catalog import catalog_loss, sampled_rest
from polyrec.distillation.choices import chosen
from polyrec.distillation.ranking_losses import LIST_LOSSES, list_kl, list_loss

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


# ------------------------------------------------------------------ the loss and its gradient at once
KINDS = [pytest.param(kind, id=kind) for kind in LIST_LOSSES]


def problem(dtype=torch.float64):
    """Queries, items, biases, what rows say of groups (all with gradients), and a function that builds the logits."""
    states, table, listed = catalog()
    random = torch.Generator().manual_seed(1)
    bias, of_groups = (torch.randn(*shape, generator=random, dtype=dtype) for shape in ((11,), (7, 3)))
    bias[:2] = NONE
    group_MN = torch.randint(3, (7, 11), generator=random)
    leaves = [x.detach().to(dtype).requires_grad_() for x in (states, table, bias, of_groups)]

    def logits(query, items, bias, of_groups):
        return query @ items.T + bias + of_groups.gather(1, group_MN)

    return leaves, listed, group_MN, logits


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_chunks_is_that_of_kept_logits(kind, groups, monkeypatch):
    """Prevents a gradient written by hand from being another than the loss's: of the list, the rest, or what is left out."""
    # Orders are drawn per chunk: for the same draws there must be one.
    monkeypatch.setattr("polyrec.core.linear_loss._CHUNK", 1000 if kind == "rank_distil" else 2 * 11)
    leaves, listed, group_MN, logits = problem()
    tempered = LIST_LOSSES[kind].tempered
    plan = chosen(TaskDistillation(kind, temperature=2.0 if tempered else 1.0), LIST_LOSSES, "task")
    teacher, weight = torch.randn(7, 5, dtype=torch.float64), torch.rand(7)
    teacher[:, :-1][listed == 0] = NONE
    teacher[4] = float("nan")
    excluded = torch.tensor([0, 5, 0, listed[3, 0].item(), 0, 9, 0])
    if not groups:
        leaves[3] = torch.zeros(7, 3, dtype=torch.float64, requires_grad=True)
    further = (leaves[3], lambda rows: [GroupBias(group_MN[rows])]) if groups else (None, None)
    torch.manual_seed(0)
    found = catalog_loss(plan, *leaves[:3], listed, teacher, weight, excluded, *further)
    torch.manual_seed(0)
    kept = logits(*leaves).scatter(1, excluded.unsqueeze(1), NONE)
    rest = (kept.scatter(1, listed, NONE) / plan.temperature).logsumexp(1)
    expected = list_loss(plan, kept.gather(1, listed), rest, teacher, weight)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, check_dtype=False)
    own, theirs = (
        torch.autograd.grad(3 * total, leaves[: 4 if groups else 3], materialize_grads=True)
        for total, _ in (found, expected)
    )
    torch.testing.assert_close(own, theirs, rtol=1e-6, atol=1e-8)
    assert own[0][4].count_nonzero() == 0
    assert sum(gradient.norm() for gradient in own) > 0.1


def test_its_logits_are_never_kept_either():
    """Prevents memory that grows with rows times items."""
    plan = chosen(TaskDistillation(), LIST_LOSSES, "task")
    states, table = torch.randn(600, 3, requires_grad=True), torch.randn(20_000, 3, requires_grad=True)
    with Largest() as largest:
        listed, teacher = torch.full((600, 1), 5), torch.zeros(600, 2)
        catalog_loss(plan, states, table, torch.zeros(20_000), listed, teacher)[0].backward()
    assert largest.size <= 1 << 20 < 600 * 20_000


def test_lists_of_everything_of_nothing_and_no_list():
    """Prevents NaN where a list leaves nothing over, or has nothing in it; and an absent gradient where there is none."""
    plan = chosen(TaskDistillation(), LIST_LOSSES, "task")
    (states, table, bias, _), _, _, _ = problem()
    everything, nothing = torch.arange(2, 11).expand(7, -1), torch.zeros(7, 9, dtype=torch.int64)
    scores = torch.randn(7, 10).double()
    for listed, teacher in (
        (everything, scores.masked_fill(torch.arange(10) == 9, NONE)),
        (nothing, scores.masked_fill(torch.arange(10) < 9, NONE)),
        (nothing, torch.full_like(scores, NONE)),
        (everything, torch.full_like(scores, float("nan"))),
        (everything[:0], scores[:0]),
    ):
        rows = len(listed)
        total, _ = catalog_loss(plan, states[:rows], table, bias, listed, teacher)
        gradients = torch.autograd.grad(total, (states, table, bias))
        assert torch.isfinite(total)
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_outside(kind):
    """Prevents overflow, or gradients of another type than their parameters, under autocast."""
    plan = chosen(TaskDistillation(kind), LIST_LOSSES, "task")
    leaves, listed, _, _ = problem(torch.float32)
    teacher = torch.randn(7, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = catalog_loss(plan, *leaves[:3], listed, teacher)
    assert total.dtype == torch.float32
    total.backward()
    assert all(leaf.grad.dtype == torch.float32 and torch.isfinite(leaf.grad).all() for leaf in leaves[:3])
