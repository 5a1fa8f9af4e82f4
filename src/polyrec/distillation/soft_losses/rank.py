"""A number that is predicted by its rank among labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrec.core.distillation_config import TaskDistillation
from polyrec.core.reduction import masked_sum, over_members, per_member
from polyrec.core.registry import SOFT_LOSSES
from polyrec.distillation.choices import SoftLoss
from polyrec.distillation.soft_losses.base import KindOfOutput, scored


@SOFT_LOSSES.register("rank")
class RankOutput(KindOfOutput):
    r"""A number in the label's unit that a head predicts as its place sigmoid(z) in a distribution F of labels.

    "squared": L = 12 sum_i w_i (sigmoid(z_i) - F(t_i))^2 for the teacher's number t; where labels are so often alike
    that t fills several quantiles, any of them will do. Of the head it also reads `rows` and `filled`, see
    [`~polyrec.modules.heads.watch_time.WatchTimeHead`].
    """

    losses: ClassVar[Mapping[str, SoftLoss]] = {"squared": SoftLoss()}

    @staticmethod
    def loss(
        head: Any, logits: Tensor, teacher: Tensor, plan: TaskDistillation, weight: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Squared error of the place of the teacher's number: (sum, count)."""
        student = torch.sigmoid(logits[..., 0].float())
        low, high = head.filled(per_member(torch.nan_to_num(teacher).float(), student), head.rows(logits))
        losses = 12 * (student - student.detach().clamp(low, high)).square()
        return masked_sum(over_members(losses, teacher), scored(head, teacher), weight)
