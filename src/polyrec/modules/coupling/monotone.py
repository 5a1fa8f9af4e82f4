"""A child that should not be likelier than its parent."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.reduction import known_weight, over_members
from polyrec.core.registry import COUPLINGS
from polyrec.core.schema import TaskConfig
from polyrec.modules.coupling.base import CoupledTask, Coupling


@COUPLINGS.register("monotone")
class Monotone(Coupling):
    r"""A soft order of probabilities, L = L_child + c sum_i w_i max(p_child,i - p_parent,i, 0).

    The calibrator of AITM (Xi et al., 2021, "Modeling the Sequential Dependence among Audience Multi-step Conversions
    with Multi-task Learning in Targeted Display Advertising") without its transfer module. A purchase without a click
    is impossible, so P(purchase) <= P(click); the penalty says so where labels of the child are known.

    Use it where the order nearly always holds but not by definition (users like what they finished watching), or as
    the cheapest coupling: it has no parameters and leaves the child's head alone.

    Labels: of the child on all rows, 0 where the parent is 0, NaN where unknown. The parent's are not read.

    Options: `penalty` (c).

    Shapes: logits [B, C] or [B, C, M] -> the same, unchanged.

    Example:
        >>> from polyrec import PolyRecConfig
        >>> tasks = [{"name": "click", "head": "binary"},
        ...          {"name": "buy", "head": "binary", "parent": "click", "coupling": "monotone"}]
        >>> config = PolyRecConfig(tasks=tasks)
        >>> click, buy = config.task_configs
        >>> Monotone(buy, click, config).options
        {'penalty': 1.0}
    """

    default_options: ClassVar[dict[str, Any]] = {"penalty": 1.0}

    def __init__(self, task: TaskConfig, parent: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__(task, parent, config)
        penalty = self.options["penalty"]
        if not (math.isfinite(penalty) and penalty >= 0):
            raise ValueError(f"option 'penalty' of {self.what} is {penalty}; it must be a finite number >= 0")

    def loss(self, found: CoupledTask) -> tuple[Tensor, Tensor]:
        """The child's own loss and the penalty, over the child's known labels."""
        total, count = super().loss(found)
        excess = torch.sigmoid(found.logits.float()) - torch.sigmoid(found.parent_logits.float())
        weight = known_weight(~torch.isnan(found.labels), found.weight)
        penalty = (over_members(torch.relu(excess), found.labels) * weight).sum()
        return total + self.options["penalty"] * penalty, count
