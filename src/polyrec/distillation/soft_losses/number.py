"""A number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from polyrec.core.distillation_config import TaskDistillation
from polyrec.core.registry import SOFT_LOSSES
from polyrec.distillation.choices import NOT_NEGATIVE, POSITIVE, SoftLoss
from polyrec.distillation.losses import bounded_error, huber_error, squared_error
from polyrec.distillation.soft_losses.base import KindOfOutput


@SOFT_LOSSES.register("number")
class NumberOutput(KindOfOutput):
    r"""A number in the label's unit; losses are in units of the label's spread.

    "squared": L = sum_i w_i (s_i - t_i)^2. "huber" (option `delta`): squares up to a difference of delta, a line after.
    "bounded" (option `margin`): squares to the label, as long as the student is not nearer to it than the teacher, see
    [`~polyrec.distillation.losses.bounded_error`].
    """

    losses: ClassVar[Mapping[str, SoftLoss]] = {
        "squared": SoftLoss(),
        "huber": SoftLoss(options={"delta": 1.0}, rules={"delta": POSITIVE}),
        "bounded": SoftLoss(options={"margin": 0.0}, rules={"margin": NOT_NEGATIVE}),
    }

    @staticmethod
    def loss(
        head: Any, logits: Tensor, teacher: Tensor, plan: TaskDistillation, weight: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Loss of the teacher's numbers: (sum, count)."""
        target, wide = head.in_loss_units(teacher), head.canonical_width is not None
        if plan.loss == "bounded":
            labels = None if labels is None else head.in_loss_units(labels)
            return bounded_error(logits, target, labels, plan.options["margin"], weight)
        if plan.loss == "huber":
            return huber_error(logits, target, plan.options["delta"], weight, wide)
        return squared_error(logits, target, weight, wide)
