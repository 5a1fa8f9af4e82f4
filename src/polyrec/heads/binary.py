"""Yes or no: click, like, purchase."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from polyrec.configuration_polyrec import PolyRecConfig
from polyrec.heads.base import TaskHead, masked_sum, over_members, per_member
from polyrec.registry import HEADS
from polyrec.schema import TaskConfig


@HEADS.register("binary")
class BinaryHead(TaskHead):
    r"""A probability by logistic loss, L = -sum_i w_i [y_i log p_i + (1 - y_i) log(1 - p_i)] with p = sigmoid(w h + b).

    Args:
        task: options `prior` (share of positives in training; b starts at its log odds, so that the first steps do not
            have to find the base rate).

    Shapes: hidden [..., D] -> logits [...]; labels [...] in {0, 1, NaN}.

    Example:
        >>> config = PolyRecConfig(tasks=[{"name": "like", "head": "binary"}], hidden_size=4)
        >>> head = BinaryHead(config.task_configs[0], config)
        >>> total, count = head.loss(torch.zeros(3), torch.tensor([1.0, 0.0, float("nan")]))
        >>> round(total.item(), 4), count.item()  # 2 log 2
        (1.3863, 2.0)
    """

    reads = "pair"
    metrics = ("auc", "gauc", "logloss", "calibration_error")
    default_options: ClassVar[dict[str, Any]] = {"prior": 0.5}

    def __init__(self, task: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__(task, config)
        prior = self.options["prior"]
        if not 0 < prior < 1:
            raise ValueError(f"option 'prior' of task {task.name!r} is {prior}; it must lie between 0 and 1")
        self.initial_bias = math.log(prior / (1 - prior))
        self.output = nn.Linear(config.hidden_size, 1)

    def initialise(self) -> None:
        """Start at the base rate."""
        init.constant_(self.output.bias, self.initial_bias)

    def forward(self, hidden_D: Tensor) -> Tensor:
        """Log odds, [..., D] -> [...]."""
        return self.output(hidden_D).squeeze(-1)

    def loss(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logistic loss of the known labels: (sum, count)."""
        target = per_member(torch.nan_to_num(labels).float(), logits)
        losses = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
        return masked_sum(over_members(losses, labels), ~torch.isnan(labels), weight)

    def predict(self, logits: Tensor) -> Tensor:
        """Probability of a positive label."""
        return torch.sigmoid(logits.float())
