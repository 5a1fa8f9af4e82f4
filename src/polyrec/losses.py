"""Pure maths of losses that are worth more than a line of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK = 1 << 18  # logits per chunk: 1 MiB in fp32, so that a chunk stays in the cache from the product to the gradient


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_MD: Tensor,
        items_ND: Tensor,
        bias_N: Tensor,
        targets_M: Tensor,
        weight_M: Tensor,
        label_smoothing: float,
        excluded_M: Tensor | None,
    ) -> Tensor:
        wants_gradient = any(ctx.needs_input_grad[:3])
        size = len(items_ND)
        total = torch.zeros((), device=query_MD.device)
        grad_query_MD = torch.empty_like(query_MD) if wants_gradient else None
        grad_items_ND = torch.zeros_like(items_ND) if wants_gradient else None
        grad_bias_N = torch.zeros_like(bias_N) if wants_gradient else None
        for rows in torch.arange(len(query_MD), device=query_MD.device).split(max(_CHUNK // size, 1)):
            query, weight, target = query_MD[rows], weight_M[rows].unsqueeze(1), targets_M[rows].unsqueeze(1)
            logits = torch.nn.functional.linear(query, items_ND, bias_N).float()
            if excluded_M is not None:
                at = (excluded_M[rows] >= 0).nonzero().squeeze(1)
                logits[at, excluded_M[rows][at]] = float("-inf")
            log_z = logits.logsumexp(1, keepdim=True)
            losses = log_z - (1 - label_smoothing) * logits.gather(1, target)
            if label_smoothing:
                losses = losses - label_smoothing * logits.mean(1, keepdim=True)
            total += (losses * weight).sum()
            if wants_gradient:
                gradient = logits.sub_(log_z).exp_()  # softmax, in place
                gradient.scatter_add_(1, target, torch.full_like(log_z, label_smoothing - 1))
                if label_smoothing:
                    gradient.sub_(label_smoothing / size)
                gradient = gradient.mul_(weight)
                grad_bias_N += gradient.sum(0)
                gradient = gradient.to(query.dtype)
                grad_query_MD[rows] = (gradient @ items_ND).to(query.dtype)  # type: ignore[index]
                grad_items_ND += gradient.T @ query
        ctx.save_for_backward(grad_query_MD, grad_items_ND, grad_bias_N)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        return (*(None if g is None else g * grad_total.to(g.dtype) for g in ctx.saved_tensors), *[None] * 4)


def linear_cross_entropy(
    query_MD: Tensor,
    items_ND: Tensor,
    bias_N: Tensor,
    targets_M: Tensor,
    weight_M: Tensor | None = None,
    label_smoothing: float = 0.0,
    excluded_M: Tensor | None = None,
) -> Tensor:
    r"""Weighted SUM of softmax cross entropies over a catalog, sum_i w_i [log sum_j exp(z_ij) - z_it], z = Q V^T + b.

    The logits [M, N] are never kept: each chunk of rows is turned into its loss and its gradient while it lies in the
    cache (Wijmans et al., 2024, "Cut Your Losses in Large-Vocabulary Language Models"). Equal to
    `F.cross_entropy(F.linear(...), reduction="sum")`, about twice as fast on CPU, and in memory M x N smaller.

    Args:
        query_MD, items_ND, bias_N: queries [M, D], items [N, D], biases [N].
        targets_M: int64 [M], columns 0..N-1.
        weight_M: [M], default 1; 0 leaves a row out.
        label_smoothing: share of the target spread evenly over the catalog.
        excluded_M: int64 [M], a column that is no candidate in this row, < 0 = none; not with label smoothing.

    Example:
        >>> linear_cross_entropy(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4), torch.tensor([0, 1])).item() / 2
        1.386...
    """
    weight_M = torch.ones(len(query_MD), device=query_MD.device) if weight_M is None else weight_M
    return _LinearCrossEntropy.apply(
        query_MD, items_ND, bias_N, targets_M, weight_M.float(), label_smoothing, excluded_M
    )
