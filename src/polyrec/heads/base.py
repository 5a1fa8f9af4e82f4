"""The contract of a head: it knows all about its kind of task."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from polyrec.configuration_polyrec import PolyRecConfig
from polyrec.registry import checked_options
from polyrec.schema import TaskConfig


class TaskHead(nn.Module):
    """Base of all heads.

    A *pair* head reads a hidden vector per (state, candidate); a *state* head reads the state alone and scores the
    whole catalog.

    Subclasses declare `reads`, `default_options` (every option with its default; others are refused) and `metrics`
    (names of metrics in `polyrec.evaluation.evaluator`), and implement `forward`, `loss` and `predict`.
    """

    reads: ClassVar[Literal["pair", "state"]]
    metrics: ClassVar[tuple[str, ...]] = ()
    default_options: ClassVar[dict[str, Any]] = {}

    def __init__(self, task: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__()
        self.task = task
        what = f"task {task.name!r} (head {task.head!r})"
        self.options = checked_options(task.options, self.default_options, what)

    def initialise(self) -> None:
        """Set parameters that should not start at random; called after the default initialisation."""

    def known(self, labels: Tensor, candidate_ids: Tensor) -> Tensor:
        """Which candidates count in the loss, bool [B, C]."""
        return ~torch.isnan(labels)

    def loss(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (sum of losses, number or weight of known labels), both scalars; NaN labels count as nothing."""
        raise NotImplementedError

    def predict(self, logits: Tensor) -> Tensor:
        """Turn logits into what a person reads: a probability, or a number in the label's unit."""
        raise NotImplementedError


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


def per_member(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels [B, C] shaped to meet logits [B, C] or, for an ensemble of M members, [B, C, M]."""
    return labels if labels.dim() == logits.dim() else labels.unsqueeze(-1).expand_as(logits)


def over_members(losses: Tensor, labels: Tensor) -> Tensor:
    """Losses [B, C] as they are, or the mean over members of [B, C, M]."""
    return losses if losses.dim() == labels.dim() else losses.mean(-1)
