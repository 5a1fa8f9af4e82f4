"""Quantiles of a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from polyrec.core.distillation_config import TaskDistillation
from polyrec.core.registry import SOFT_LOSSES
from polyrec.distillation.choices import POSITIVE, SoftLoss
from polyrec.distillation.losses import huber_error, squared_error
from polyrec.distillation.soft_losses.base import KindOfOutput


@SOFT_LOSSES.register("quantiles")
class QuantilesOutput(KindOfOutput):
    r"""K quantiles in the label's unit; losses are in units of the label's spread.

    "squared": L = sum_i w_i 1/K sum_k (s_ik - t_ik)^2. "huber" (option `delta`): squares up to a difference of delta, a
    line beyond, quantile by quantile.
    """

    losses: ClassVar[Mapping[str, SoftLoss]] = {
        "squared": SoftLoss(),
        "huber": SoftLoss(options={"delta": 1.0}, rules={"delta": POSITIVE}),
    }

    @staticmethod
    def loss(
        head: Any, logits: Tensor, teacher: Tensor, plan: TaskDistillation, weight: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Loss of the teacher's quantiles: (sum, count)."""
        target = head.in_loss_units(teacher)
        if plan.loss == "huber":
            return huber_error(logits, target, plan.options["delta"], weight, wide=True)
        return squared_error(logits, target, weight, wide=True)
