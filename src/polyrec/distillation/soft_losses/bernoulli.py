"""Log odds of yes or no."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from polyrec.core.distillation_config import TaskDistillation
from polyrec.core.registry import SOFT_LOSSES
from polyrec.distillation.choices import SoftLoss
from polyrec.distillation.losses import binary_kl, squared_error
from polyrec.distillation.soft_losses.base import KindOfOutput


@SOFT_LOSSES.register("bernoulli")
class BernoulliOutput(KindOfOutput):
    r"""A probability, by its log odds.

    "kl": L = T^2 sum_i w_i KL(p_i || q_i), see [`~polyrec.distillation.losses.binary_kl`], of log odds as the
    head's loss of labels shifts them, so that soft and hard losses of a row weigh alike. "squared": of log odds, see
    [`~polyrec.distillation.losses.squared_error`].
    """

    losses: ClassVar[Mapping[str, SoftLoss]] = {"kl": SoftLoss(tempered=True), "squared": SoftLoss()}

    @staticmethod
    def loss(
        head: Any, logits: Tensor, teacher: Tensor, plan: TaskDistillation, weight: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """KL to the teacher's probabilities, or squares of log odds: (sum, count)."""
        student = head.canonical_logits(logits)
        if plan.loss == "squared":
            return squared_error(student, teacher, weight)
        return binary_kl(head.in_loss_units(student), head.in_loss_units(teacher.float()), plan.temperature, weight)
