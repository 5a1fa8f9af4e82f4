"""From losses per label to sums and counts; the lowest layer of all that has losses."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sum(losses: Tensor, known: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum of the losses of known labels and their number (or weight); differentiable also when none is known."""
    scale = known_weight(known, weight).to(losses.dtype)
    return (losses * scale).sum(), scale.sum()


def known_weight(known: Tensor, weight: Tensor | None) -> Tensor:
    """1 (or the weight) where a label is known, else 0; a padded weight may be NaN."""
    return known.float() if weight is None else torch.where(known, weight.float(), 0.0)


def mean_loss(total: Tensor, count: Tensor) -> Tensor:
    """A sum of losses over the number (or weight) of known labels; 0 if none is known."""
    return total / torch.where(count > 0, count, 1.0)


def per_member(values: Tensor, logits: Tensor) -> Tensor:
    """Labels [B, C], or the skip's [B, C, K], shaped to meet logits that may have an axis of M members after C."""
    return values if values.dim() == logits.dim() else values.unsqueeze(2).expand_as(logits)


def over_members(losses: Tensor, labels: Tensor) -> Tensor:
    """Losses [B, C] as they are, or the mean over members of [B, C, M]."""
    return losses if losses.dim() == labels.dim() else losses.mean(-1)
