"""How many: plays of a song, units in a basket, comments."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.losses import half_poisson_deviance
from polyrec.core.reduction import masked_sum, over_members, per_member
from polyrec.core.registry import HEADS
from polyrec.core.schema import TaskConfig
from polyrec.modules.heads.base import Summary, TaskHead

_LARGEST = 20.0  # of the logit: e^20 = 5e8 expected events


@HEADS.register("count")
class CountHead(TaskHead):
    r"""An expected count by Poisson likelihood with a logarithmic link, f = exp(z) (Nelder and Wedderburn, 1972,
    "Generalized Linear Models").

    L = sum_i w_i [f_i - y_i log f_i + (y_i log y_i - y_i)]

    This is the negative log-likelihood less that of a perfect prediction, i.e. half the deviance: it has the gradient
    of the likelihood and is 0 for a perfect prediction, so weightings that compare losses can use it. It estimates the
    mean whatever the true spread of the counts is. Beyond z = 20 exp(z) continues as its tangent, so that nothing
    overflows.

    `predict` returns f, the expected count. Canonical logits are z, the logarithm of f.

    Args:
        task: option `mean` (of the training labels; the bias starts at its logarithm).

    Shapes: hidden [..., D] -> logits z [...]; labels [...] in {0, 1, 2, ..}, NaN = unknown.

    Example:
        >>> config = PolyRecConfig(tasks=[{"name": "plays", "head": "count", "options": {"mean": 2.0}}], hidden_size=4)
        >>> head = CountHead(config.task_configs[0], config)
        >>> head.predict(torch.zeros(1)).item()
        1.0
        >>> head.loss(torch.zeros(3), torch.tensor([1.0, 0.0, float("nan")]))[0].item()
        1.0
    """

    reads = "pair"
    output_kind = "rate"
    metrics = ("poisson_deviance", "mae")
    default_options: ClassVar[dict[str, Any]] = {"mean": 1.0}

    def __init__(self, task: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__(task, config)
        if not 0 < self.options["mean"] < math.inf:
            raise self.option_error("mean", "it must be a number > 0")
        self.output = nn.Linear(config.pair_width, 1)

    @classmethod
    def options_from_labels(cls, task: TaskConfig, summary: Summary) -> dict[str, Any]:
        """The mean count."""
        return {"mean": summary["mean"]}

    def initialise(self) -> None:
        """Start at the mean count."""
        init.constant_(self.output.bias, math.log(self.options["mean"]))

    def forward(self, hidden_D: Tensor) -> Tensor:
        """Logarithm of the expected count, [..., D] -> [...]."""
        return self.output(hidden_D).squeeze(-1)

    def loss(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Half the Poisson deviance of the known labels: (sum, count)."""
        bad = labels < 0
        if bad.any():
            raise ValueError(f"label of count task {self.task.name!r} is {labels[bad][0].item():g}: a count is >= 0")
        losses = half_poisson_deviance(logits.float(), per_member(torch.nan_to_num(labels).float(), logits))
        return masked_sum(over_members(losses, labels), ~torch.isnan(labels), weight)

    def predict(self, logits: Tensor) -> Tensor:
        """The expected count."""
        return torch.exp(logits.float().clamp(max=_LARGEST))

    def canonical_logits(self, logits: Tensor) -> Tensor:
        """Logarithm of the expected count."""
        return logits.float()
