"""Pure maths of losses that are worth more than a line of torch."""

from __future__ import annotations

import torch
from torch import Tensor

from polyrec.core.linear_loss import Groups, linear_loss

LARGEST_LOG_RATE = 20.0  # e^20 = 5e8 expected events


def linear_cross_entropy(
    query_MD: Tensor,
    items_ND: Tensor,
    bias_N: Tensor,
    targets_M: Tensor,
    weight_M: Tensor | None = None,
    label_smoothing: float = 0.0,
    excluded_M: Tensor | None = None,
    of_groups_MG: Tensor | None = None,
    groups: Groups | None = None,
) -> Tensor:
    r"""Weighted SUM of softmax cross entropies over a catalog, sum_i w_i [log sum_j exp(z_ij) - z_it], z = Q V^T + b.

    With groups of items, which may differ from row to row (the age of an item at the time of an example),
    z_ij = q_i . v_j + b_j + sum of a_ig over the groups of j.

    The logits [M, N] are never kept: each chunk of rows is turned into its loss and its gradient while it lies in the
    cache (Wijmans et al., 2024, "Cut Your Losses in Large-Vocabulary Language Models"). Equal to
    `F.cross_entropy(F.linear(...), reduction="sum")`, about twice as fast on CPU, and in memory M x N smaller.

    Args:
        query_MD, items_ND, bias_N: queries [M, D], items [N, D], biases [N].
        targets_M: int64 [M], columns 0..N-1.
        weight_M: [M], default 1; 0 leaves a row out.
        label_smoothing: share of the target spread evenly over the catalog.
        excluded_M: int64 [M], a column that is no candidate in this row, < 0 = none; not with label smoothing.
        of_groups_MG: what each row says of each group, [M, G]; -inf: its items are no candidates, which needs label
            smoothing 0 and a target of another group.
        groups: which group is added to which column for some rows, int64 [R] -> [`polyrec.core.linear_loss.GroupBias`].
            It is called chunk by chunk, so that there is never a matrix [M, N].

    Example:
        >>> linear_cross_entropy(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4), torch.tensor([0, 1])).item() / 2
        1.386...
    """
    weight_M = torch.ones(len(query_MD), device=query_MD.device) if weight_M is None else weight_M.float()

    def judge(rows: Tensor, logits: Tensor, wants_gradient: bool) -> Tensor:
        weight, target = weight_M[rows].unsqueeze(1).to(logits), targets_M[rows].unsqueeze(1)
        if excluded_M is not None:
            at = (excluded_M[rows] >= 0).nonzero().squeeze(1)
            logits[at, excluded_M[rows][at]] = float("-inf")
        top = logits.amax(1, keepdim=True)
        losses = top - (1 - label_smoothing) * logits.gather(1, target)
        if label_smoothing:
            losses = losses - label_smoothing * logits.mean(1, keepdim=True)
        weights = logits.sub_(top).exp_()  # in place: one pass of exponentials for the loss and its gradient
        total = weights.sum(1, keepdim=True)
        losses = losses + total.log()
        if wants_gradient:
            gradient = weights.mul_(weight / total)
            gradient.scatter_add_(1, target, weight * (label_smoothing - 1))
            if label_smoothing:
                gradient.sub_(weight * (label_smoothing / logits.shape[1]))
        return (losses * weight).sum()

    return linear_loss(query_MD, items_ND, bias_N, judge, of_groups_MG, groups)


def half_poisson_deviance(log_rate: Tensor, mean: Tensor) -> Tensor:
    """e^z - y z + y log y - y, elementwise; beyond z = 20 e^z continues as its tangent, so that nothing overflows."""
    rate = torch.exp(log_rate.clamp(max=LARGEST_LOG_RATE)) * (1 + (log_rate - LARGEST_LOG_RATE).clamp(min=0))
    return rate - mean * log_rate + torch.xlogy(mean, mean) - mean
