"""A number with an interval: price paid, days until the next visit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.reduction import masked_sum, over_members, per_member
from polyrec.core.registry import HEADS
from polyrec.core.schema import TaskConfig
from polyrec.modules.heads.base import NumberHead


@HEADS.register("quantile")
class QuantileHead(NumberHead):
    r"""Quantiles by pinball loss (Koenker and Bassett, 1978, "Regression Quantiles"), in units of the label's spread.

    L = sum_i w_i 2/K sum_k max(q_k e_ik, (q_k - 1) e_ik),   e_ik = (y_i - m) / s - z_ik

    They never cross: the first is a plain number and each further one adds a positive step, z_k = z_{k-1} +
    softplus(u_k) (as in Park et al., 2022, "Learning Quantile Functions without Quantile Crossing for
    Distribution-free Time Series Forecasting"). The head starts at the quantiles of a normal distribution.

    `predict` returns the median in the label's unit (or the quantile nearest to it), `details` all of them, which are
    the canonical logits, too.

    Args:
        task: options `quantiles` (q, ascending), `mean` and `std` of the training labels, `minimum` and `maximum` of a
            prediction (None = no limit).

    Shapes: hidden [..., D] -> logits z [..., K]; labels [...] in the label's unit, NaN = unknown.

    Example:
        >>> options = {"quantiles": [0.25, 0.5, 0.75], "mean": 10.0, "std": 2.0}
        >>> config = PolyRecConfig(tasks=[{"name": "price", "head": "quantile", "options": options}], hidden_size=8)
        >>> head = QuantileHead(config.task_configs[0], config)
        >>> head.details(torch.tensor([-1.0, 0.0, 2.0])).tolist(), head.predict(torch.tensor([-1.0, 0.0, 2.0])).item()
        ([8.0, 10.0, 14.0], 10.0)
    """

    output_kind = "quantiles"
    metrics = ("mae", "interval_coverage")
    default_options: ClassVar[dict[str, Any]] = {**NumberHead.default_options, "quantiles": [0.1, 0.5, 0.9]}

    def __init__(self, task: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__(task, config)
        levels = self.options["quantiles"]
        ascending = all(a < b for a, b in zip([0, *levels], [*levels, 1], strict=True))
        if not levels or not ascending:
            raise self.option_error("quantiles", "give shares between 0 and 1 in ascending order, e.g. [0.1, 0.5, 0.9]")
        self.logit_width = self.detail_width = len(levels)
        self.median = min(range(len(levels)), key=lambda k: abs(levels[k] - 0.5))
        self.output = nn.Linear(config.pair_width, len(levels))

    def initialise(self) -> None:
        """Start at the normal distribution: softplus(bias) are the steps between its quantiles."""
        normal_K = torch.special.ndtri(torch.tensor(self.options["quantiles"], dtype=torch.float64))
        steps = torch.expm1(normal_K.diff()).log()  # softplus, inverted
        init.copy_(self.output.bias, torch.cat([normal_K[:1], steps]).to(self.output.bias.dtype))

    def forward(self, hidden_D: Tensor) -> Tensor:
        """The first quantile and unconstrained steps, [..., D] -> [..., K]."""
        return self.output(hidden_D)

    def finish(self, own: Tensor, candidate_features: Mapping[str, Tensor]) -> Tensor:
        """Add the steps up, each at least 0."""
        own = own.float()
        return torch.cat([own[..., :1], F.softplus(own[..., 1:])], dim=-1).cumsum(-1)

    def loss(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pinball loss of the known labels in standardised units: (sum, count); for the median alone |e|."""
        level_K = logits.new_tensor(self.options["quantiles"], dtype=torch.float32)
        error = per_member(self.standardised(labels), logits[..., 0]).unsqueeze(-1) - logits.float()
        losses = 2 * torch.maximum(level_K * error, (level_K - 1) * error).mean(-1)
        return masked_sum(over_members(losses, labels), ~torch.isnan(labels), weight)

    def predict(self, logits: Tensor) -> Tensor:
        """The median, or the quantile nearest to it, in the label's unit."""
        return self.in_unit(logits[..., self.median])

    def details(self, logits: Tensor) -> Tensor:
        """All quantiles in the label's unit, [..., K]."""
        return self.in_unit(logits)
