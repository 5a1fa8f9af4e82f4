"""A loss of lists over a catalog: the student's logits of the teacher's items, and of all others their log-sum-exp.

Letters: M rows, K items of a list, N items of the catalog, S sampled items.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyrec.core.distillation_config import TaskDistillation
from polyrec.core.linear_loss import Groups, linear_loss
from polyrec.core.reduction import known_weight
from polyrec.distillation.losses import at_least_single
from polyrec.distillation.ranking_losses import list_loss

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
    time and memory as labels do (`polyrec.core.linear_loss`).

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
        (sum, number or weight of the rows that a teacher has scored).

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
        if excluded_M is not None:
            logits.scatter_(1, excluded_M[rows].unsqueeze(1), _NONE)
        apart = _Apart(logits, listed_MK[rows], temperature)
        total, of_own, of_rest = _judged(
            plan, apart, teacher_MK1[rows], None if weight_M is None else weight_M[rows], wants_gradient
        )
        if wants_gradient:
            apart.put(of_rest / (temperature * apart.mass), of_own)
        return total

    known_M = ~torch.isnan(teacher_MK1).any(1)
    total = linear_loss(query_MD, items_ND, bias_N, judge, of_groups_MG, groups)
    return total, known_weight(known_M, weight_M).sum()


def taught_cross_entropy(
    plan: TaskDistillation,
    query_MD: Tensor,
    items_ND: Tensor,
    bias_N: Tensor,
    targets_M: Tensor,
    weight_M: Tensor,
    listed_MK: Tensor,
    teacher_MK1: Tensor,
    soft_share: Tensor,
    excluded_M: Tensor | None = None,
    of_groups_MG: Tensor | None = None,
    groups: Groups | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Cross entropy of labels and a loss of lists from ONE pass over the catalog, whose costly parts they share.

    sum_i w_i [log sum_j exp(z_ij) - z_it] as `polyrec.core.losses.linear_cross_entropy`, and `catalog_loss` at T = 1.
    Their gradients are one matrix, so it must be known beforehand how they will be added.

    Args:
        plan: with temperature 1.
        targets_M: int64 [M], rows of the item table; any candidate where the weight is 0.
        weight_M: of the labels.
        soft_share: s; the two are going to be added as c (labels + s lists), with any c.
        query_MD, items_ND, bias_N, listed_MK, teacher_MK1, excluded_M, of_groups_MG, groups: as of `catalog_loss`.

    Returns:
        Both sums.

    Example:
        >>> from polyrec.distillation.choices import chosen
        >>> from polyrec.distillation.ranking_losses import LIST_LOSSES
        >>> plan = chosen(TaskDistillation(), LIST_LOSSES, "task 'next'")
        >>> impossible = torch.tensor([float("-inf"), 0.0, 0.0, 0.0])
        >>> listed, answer = torch.tensor([[2, 0]]), torch.tensor([[0.0, 0.0, float("-inf")]])  # sure of item 2
        >>> label, one = torch.tensor([3]), torch.ones(1)
        >>> both = taught_cross_entropy(
        ...     plan, torch.zeros(1, 5), torch.zeros(4, 5), impossible, label, one, listed, answer, one)
        >>> [round(total.item(), 4) for total in both]  # log 3 each
        [1.0986, 1.0986]
    """
    if plan.temperature != 1:
        raise ValueError(f"labels have no temperature, so lists that share their logits have none: not {plan}")

    def judge(rows: Tensor, logits: Tensor, wants_gradient: bool) -> Tensor:
        if excluded_M is not None:
            logits.scatter_(1, excluded_M[rows].unsqueeze(1), _NONE)
        target, weight = targets_M[rows].unsqueeze(1), weight_M[rows].to(logits)
        of_target = logits.gather(1, target).squeeze(1)
        apart = _Apart(logits, listed_MK[rows])
        log_z = torch.logaddexp(apart.rest, log_sum_exp(apart.own))
        hard = torch.where(weight > 0, weight * (log_z - of_target), 0.0).sum()
        soft, of_own, of_rest = _judged(plan, apart, teacher_MK1[rows], None, wants_gradient)
        if wants_gradient:
            each = (apart.own - log_z.unsqueeze(1)).exp() * weight.unsqueeze(1)
            others = weight * (apart.top.squeeze(1) - log_z).exp() + soft_share * of_rest / apart.mass
            apart.put(others, each + soft_share * of_own)
            logits.scatter_add_(1, target, -weight.unsqueeze(1))
        return torch.stack([hard, soft])

    shares = torch.stack([torch.ones_like(soft_share), soft_share])
    hard, soft = linear_loss(query_MD, items_ND, bias_N, judge, of_groups_MG, groups, shares).unbind()
    return hard, soft


class _Apart:
    """Logits of listed items taken out of the catalog's, which are turned, in place, into what the others weigh.

    Args:
        logits: [R, N], overwritten by exp((z - top) / T), 0 for listed items.
        listed: int64 [R, K].
    """

    def __init__(self, logits: Tensor, listed: Tensor, temperature: float = 1.0) -> None:
        self.own, self.listed = logits.gather(1, listed), listed
        self.others = logits.scatter_(1, listed, _NONE)
        # The largest of the others, so that none of them is lost beside large listed ones.
        self.top = self.others.amax(1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
        self.others.sub_(self.top)
        if temperature != 1:
            self.others.div_(temperature)
        mass = self.others.exp_().sum(1)
        self.rest = mass.log() + self.top.squeeze(1) / temperature
        self.mass = mass.clamp(min=1.0)  # it is, unless nothing is left over

    def put(self, of_others: Tensor, of_own: Tensor) -> None:
        """Turn what others weigh into a gradient, times [R], and give listed items theirs, [R, K]."""
        self.others.mul_(of_others.unsqueeze(1)).scatter_(1, self.listed, of_own)


def _judged(
    plan: TaskDistillation, apart: _Apart, teacher: Tensor, weight: Tensor | None, wants_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the losses of some lists, and its gradients by the student's K logits and by its rest."""
    own, rest = (x.detach().requires_grad_(wants_gradient) for x in (apart.own, apart.rest))
    with torch.set_grad_enabled(wants_gradient):
        total, _ = list_loss(plan, own, rest, teacher, weight)
    if not wants_gradient:
        return total, own, rest
    of_own, of_rest = torch.autograd.grad(total, (own, rest), allow_unused=True, materialize_grads=True)
    return total.detach(), of_own, of_rest


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
    slot_MS = torch.searchsorted(order_MK, sampled_S.expand(len(listed_MK), -1).contiguous())
    is_listed = order_MK.gather(1, slot_MS.clamp(max=order_MK.shape[1] - 1)) == sampled_S
    return log_sum_exp(logits.masked_fill(is_listed, _NONE))


def log_sum_exp(logits: Tensor) -> Tensor:
    """Log-sum-exp of the last axis; where all are -inf it is -inf with a gradient of 0, not NaN."""
    nothing = (logits == _NONE).all(-1)
    total = torch.where(nothing.unsqueeze(-1), 0.0, logits).logsumexp(-1)
    return total.masked_fill(nothing, _NONE)
