"""A loss of lists over a catalog: the student's logits of the teacher's items, and of all others their log-sum-exp.

Letters: M rows, K items of a list, N items of the catalog, S sampled items.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyrec.distillation.losses import at_least_single
from polyrec.distillation.ranking_losses import list_loss
from polyrec.distillation_config import TaskDistillation
from polyrec.linear_loss import Groups, linear_loss
from polyrec.reduction import known_weight

_NONE = float("-inf")


def catalog_loss(
    plan: TaskDistillation,
    query_MD: Tensor,
    items_ND: Tensor,
    bias_N: Tensor,
    listed_MK: Tensor,
    teacher_MK1: Tensor,
    weight_M: Tensor | None = None,
    excluded_M: Tensor | None = None,
    of_groups_MG: Tensor | None = None,
    groups: Groups | None = None,
) -> tuple[Tensor, Tensor]:
    r"""A loss of lists where a student scores the whole catalog, z_ij = q_i . v_j + b_j (+ a_{i, g(i, j)}).

    The student's side is its logits of the listed items and r_i = log sum_j exp(z_ij / T) over all others. Logits
    [M, N] are never kept: the loss of a chunk's lists says what the gradients of these K + 1 numbers are, and they what
    those of its logits are, g_ir softmax(z_ij / T)_j / T for an item that is not listed. So lists cost about as much
    time and memory as labels do (`polyrec.linear_loss`).

    Args:
        plan: one of `LIST_LOSSES`, checked by `chosen`.
        query_MD, items_ND, bias_N: queries, rows 0..N-1 of the item table, their biases; a bias of -inf: no candidate,
            as the padding item in row 0 must be.
        listed_MK: int64 [M, K], rows of the item table; an item once per list, 0 in empty places.
        teacher_MK1: the teacher's logits of the listed items and, last, its rest, see `polyrec.distillation.teacher`.
        weight_M: of the rows.
        excluded_M: int64 [M], an item that is no candidate in this row, 0 = none.
        of_groups_MG, groups: as of `linear_loss`.

    Returns:
        (sum, number or weight of the rows that a teacher has answered).

    Example:
        >>> from polyrec.distillation.choices import chosen
        >>> from polyrec.distillation.ranking_losses import LIST_LOSSES
        >>> plan = chosen(TaskDistillation(), LIST_LOSSES, "task 'next'")
        >>> impossible = torch.tensor([float("-inf"), 0.0, 0.0, 0.0])
        >>> listed, answer = torch.tensor([[2, 0]]), torch.tensor([[0.0, 0.0, float("-inf")]])  # sure of item 2
        >>> total, count = catalog_loss(plan, torch.zeros(1, 5), torch.zeros(4, 5), impossible, listed, answer)
        >>> round(total.item(), 4), count.item()  # log 3
        (1.0986, 1.0)
    """
    temperature = plan.temperature

    def judge(rows: Tensor, logits: Tensor, wants_gradient: bool) -> Tensor:
        listed = listed_MK[rows]
        if excluded_M is not None:
            logits.scatter_(1, excluded_M[rows].unsqueeze(1), _NONE)
        own = logits.gather(1, listed).requires_grad_(wants_gradient)
        others = logits.scatter_(1, listed, _NONE).div_(temperature)
        rest = log_sum_exp(others).requires_grad_(wants_gradient)
        with torch.set_grad_enabled(wants_gradient):
            weight = None if weight_M is None else weight_M[rows]
            total, _ = list_loss(plan, own, rest, teacher_MK1[rows], weight)
        if not wants_gradient:
            return total
        of_own, of_rest = torch.autograd.grad(total, (own, rest), allow_unused=True, materialize_grads=True)
        # Where nothing is left over, all of them are -inf.
        others.sub_(rest.detach().nan_to_num(neginf=0.0).unsqueeze(1)).exp_()
        others.mul_(of_rest.unsqueeze(1) / temperature).scatter_add_(1, listed, of_own)
        return total.detach()

    known_M = ~torch.isnan(teacher_MK1).any(1)
    total = linear_loss(query_MD, items_ND, bias_N, judge, of_groups_MG, groups)
    return total, known_weight(known_M, weight_M).sum()


def sampled_rest(
    sampled_MS: Tensor,
    sampled_S: Tensor,
    log_expected_S: Tensor,
    listed_MK: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    r"""An estimate of log sum_j exp(s_j / T) over all items that are not listed, for catalogs too large to score.

        log sum_{j sampled, not listed} exp(s_j / T) / E[times that j is sampled]

    The sum inside is unbiased for that over the catalog (importance sampling: Bengio and Senecal, 2008, "Adaptive
    Importance Sampling to Accelerate Training of a Neural Probabilistic Language Model"), as far as every item can be
    sampled; its logarithm is so in the limit of many.

    Args:
        sampled_MS: logits of sampled items.
        sampled_S: which items they are, int64; with replacement, they are repeated.
        log_expected_S: logarithm of how often each is expected in a sample: log(S Q(j)) for S draws from Q, or the log
            chance to be there at all.
        listed_MK: items of the lists, int64; 0 = none.
        temperature: T.

    Returns:
        [M], in single precision; -inf where nothing else was sampled.

    Example:
        >>> two_of_four = torch.tensor([2, 4])  # of items 1..4, each with Q = 1/4
        >>> expected = torch.full((2,), 0.5).log()
        >>> listed = torch.tensor([[1, 2]])
        >>> round(sampled_rest(torch.zeros(1, 2), two_of_four, expected, listed).exp().item(), 4)  # items 3 and 4
        2.0
    """
    logits = at_least_single(sampled_MS) / temperature - log_expected_S
    order_MK = listed_MK.sort(dim=1).values
    place_MS = torch.searchsorted(order_MK, sampled_S.expand(len(listed_MK), -1).contiguous())
    is_listed = order_MK.gather(1, place_MS.clamp(max=order_MK.shape[1] - 1)) == sampled_S
    return log_sum_exp(logits.masked_fill(is_listed, _NONE))


def log_sum_exp(logits: Tensor) -> Tensor:
    """Log-sum-exp of the last axis; where all are -inf it is -inf with a gradient of 0, not NaN."""
    nothing = (logits == _NONE).all(-1)
    total = torch.where(nothing.unsqueeze(-1), 0.0, logits).logsumexp(-1)
    return total.masked_fill(nothing, _NONE)
