"""Conditional log odds of ordered classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from polyrec.core.distillation_config import TaskDistillation
from polyrec.core.registry import SOFT_LOSSES
from polyrec.distillation.choices import SoftLoss
from polyrec.distillation.losses import ordinal_kl
from polyrec.distillation.soft_losses.base import KindOfOutput


@SOFT_LOSSES.register("ordinal")
class OrdinalOutput(KindOfOutput):
    r"""One of K ordered classes, by the conditional log odds of K - 1 thresholds.

    "kl", L = T^2 sum_i w_i KL(p_i || q_i) of the distributions of the label, see
    [`~polyrec.distillation.losses.ordinal_kl`].
    """

    losses: ClassVar[Mapping[str, SoftLoss]] = {"kl": SoftLoss(tempered=True)}

    @staticmethod
    def loss(
        head: Any, logits: Tensor, teacher: Tensor, plan: TaskDistillation, weight: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """KL to the teacher's distribution of the label: (sum, count)."""
        return ordinal_kl(logits, teacher, plan.temperature, weight)
