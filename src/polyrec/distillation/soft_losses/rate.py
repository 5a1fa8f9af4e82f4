"""Log rates of counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from polyrec.core.distillation_config import TaskDistillation
from polyrec.core.registry import SOFT_LOSSES
from polyrec.distillation.choices import SoftLoss
from polyrec.distillation.losses import poisson_kl
from polyrec.distillation.soft_losses.base import KindOfOutput


@SOFT_LOSSES.register("rate")
class RateOutput(KindOfOutput):
    r"""An expected count, by its logarithm.

    "kl": L = sum_i w_i KL(Poisson(e^t_i) || Poisson(e^s_i)), which is the head's loss of labels with the teacher's rate
    in the place of the count, see [`~polyrec.distillation.losses.poisson_kl`].
    """

    losses: ClassVar[Mapping[str, SoftLoss]] = {"kl": SoftLoss()}

    @staticmethod
    def loss(
        head: Any, logits: Tensor, teacher: Tensor, plan: TaskDistillation, weight: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """KL to the teacher's Poisson distribution: (sum, count)."""
        return poisson_kl(logits, teacher, weight)
