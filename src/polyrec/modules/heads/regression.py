"""A number: rating, watch time, spend."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.reduction import masked_sum, over_members, per_member
from polyrec.core.registry import HEADS
from polyrec.core.schema import TaskConfig
from polyrec.modules.heads.base import NumberHead, Summary, trees_option


@HEADS.register("regression")
class RegressionHead(NumberHead):
    r"""A mean by squared loss in units of the label's own spread, L = sum_i w_i ((y_i - m) / s - z_i)^2.

    The head predicts z, the standardised label, so that losses of tasks with different units can be added; `predict`
    returns m + s z, clipped to [minimum, maximum]. Canonical logits are the same without clipping.

    Args:
        task: options `mean` and `std` of the training labels, `minimum` and `maximum` of a prediction (None = no
            limit), `loss` "squared" or "huber" (quadratic within one standard deviation, Huber, 1964), `trees` (how
            many trees to grow, which validation may put beside the network, see `TreeBlend`; 0 = none.
            `processor.model_config()` sets it where the training rows allow trees).

    Shapes: hidden [..., D] -> logits z [...]; labels [...] in the label's unit, NaN = unknown.

    Example:
        >>> options = {"mean": 3.0, "std": 2.0, "maximum": 5.0}
        >>> config = PolyRecConfig(tasks=[{"name": "rating", "head": "regression", "options": options}], hidden_size=4)
        >>> head = RegressionHead(config.task_configs[0], config)
        >>> head.predict(torch.tensor([0.0, 0.5, 9.0])).tolist()
        [3.0, 4.0, 5.0]
        >>> head.loss(torch.zeros(2), torch.tensor([5.0, float("nan")]))[0].item()
        1.0
    """

    output_kind = "number"
    metrics = ("rmse", "mae")
    default_options: ClassVar[dict[str, Any]] = {**NumberHead.default_options, "loss": "squared", "trees": 0}

    def __init__(self, task: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__(task, config)
        if self.options["loss"] not in ("squared", "huber"):
            raise self.option_error("loss", "known: squared, huber")
        self.output = nn.Linear(config.pair_width, 1)

    @classmethod
    def options_from_labels(cls, task: TaskConfig, summary: Summary) -> dict[str, Any]:
        """Mean, spread and range of the training labels, and trees where the rows allow them."""
        return super().options_from_labels(task, summary) | trees_option(summary)

    def forward(self, hidden_D: Tensor) -> Tensor:
        """Standardised mean, [..., D] -> [...]."""
        return self.output(hidden_D).squeeze(-1)

    def loss(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Loss of the known labels in standardised units: (sum, count)."""
        target = per_member(self.standardised(labels), logits)
        if self.options["loss"] == "huber":
            losses = 2 * F.huber_loss(logits.float(), target, reduction="none")
        else:
            losses = (logits.float() - target).square()
        return masked_sum(over_members(losses, labels), ~torch.isnan(labels), weight)

    def predict(self, logits: Tensor) -> Tensor:
        """The predicted mean in the label's unit."""
        return self.in_unit(logits)
