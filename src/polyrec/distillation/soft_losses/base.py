"""The contract of soft losses: a kind of output, and the losses by which outputs of that kind are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrec.core.distillation_config import TaskDistillation
from polyrec.core.registry import SOFT_LOSSES
from polyrec.distillation.choices import SoftLoss, chosen


class KindOfOutput:
    """Base of the soft losses of one kind of output.

    Subclasses declare `losses`, {name: what it reads of a plan}, the one that "auto" means first, and implement `loss`.
    Of heads they read what these say of their outputs: `canonical_logits`, `in_loss_units`, `canonical_width`.
    """

    losses: ClassVar[Mapping[str, SoftLoss]] = {}

    @staticmethod
    def loss(
        head: Any, logits: Tensor, teacher: Tensor, plan: TaskDistillation, weight: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return (sum of soft losses, number or weight of the teacher's outputs), both scalars.

        Args:
            head: whose logits these are.
            logits: [B, C(, M)(, K)].
            teacher: [B, C(, K)], canonical logits, NaN = no output.
            plan: which loss, its temperature and all of its options, see `checked_plan`; its schedule is not read.
            weight: [B, C].
            labels: [B, C], NaN = unknown, for losses that read whether the teacher is right.
        """
        raise NotImplementedError


def kind_of(head: Any) -> Any:
    """The soft losses of a head's outputs; `head` may be its class."""
    if head.output_kind is None:
        raise ValueError(f"{head!r} cannot be taught: no teacher has outputs of its kind")
    return SOFT_LOSSES.get(head.output_kind)


def checked_plan(head: Any, plan: TaskDistillation) -> TaskDistillation:
    """The plan with its loss and options spelt out; one that the head's outputs cannot follow is refused."""
    what = f"task {head.task.name!r} (head {head.task.head!r})"
    if head.reads == "pair" and plan.top_k != TaskDistillation.top_k:
        raise ValueError(f"{what} is distilled without lists: leave top_k out")
    return chosen(plan, kind_of(head).losses, what)


def soft_loss(
    head: Any,
    logits: Tensor,
    teacher: Tensor,
    plan: TaskDistillation,
    weight: Tensor | None = None,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of a pair head's logits that a plan names, see `KindOfOutput.loss`."""
    return kind_of(head).loss(head, logits, teacher, checked_plan(head, plan), weight, labels)


def scored(head: Any, teacher: Tensor) -> Tensor:
    """Which pairs a teacher has scored, bool [B, C]: those that count in `soft_loss`."""
    missing = torch.isnan(teacher)
    return ~(missing if head.canonical_width is None else missing.any(-1))
