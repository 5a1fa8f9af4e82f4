"""One of several classes in order: stars, satisfaction, levels of interest."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.reduction import masked_sum, over_members, per_member
from polyrec.core.registry import HEADS
from polyrec.core.schema import TaskConfig
from polyrec.modules.heads.base import Summary, TaskHead


@HEADS.register("ordinal")
class OrdinalHead(TaskHead):
    r"""K ordered classes by K - 1 conditional thresholds (CORN: Shi, Cao and Raschka, 2021, "Deep Neural Networks for
    Rank-Consistent Ordinal Regression Based On Conditional Probabilities").

    Threshold k says, of the rows whose label is at least r_k, whether it is above r_k: f_k = P(y > r_k | y >= r_k) =
    sigmoid(z_k). By the chain rule P(y > r_k) = f_1 f_2 .. f_k, which can only fall with k: ranks are consistent
    without a constraint on the weights. With y_i the r_m of row i,

        L = -sum_i w_i [sum_{k < m} log f_ik + log(1 - f_im)],   without the last term for the highest class

    which is -log P(y_i). (The authors' code divides by the number of thresholds that apply; here a row counts once, as
    for every other head.)

    `predict` returns the expected label, minimum + sum_k P(y > r_k), in the label's unit.

    Canonical logits are the log odds z of the thresholds.

    Args:
        task: options `minimum` and `maximum` (the lowest and highest class, whole numbers; `processor.model_config()`
            takes them from the training labels) and `prior` (K shares of the classes, at which the head starts; None =
            none known).

    Shapes: hidden [..., D] -> logits z [..., K - 1]; labels [...] whole numbers in [minimum, maximum], NaN = unknown.

    Example:
        >>> options = {"minimum": 1, "maximum": 3}
        >>> config = PolyRecConfig(tasks=[{"name": "stars", "head": "ordinal", "options": options}], hidden_size=8)
        >>> head = OrdinalHead(config.task_configs[0], config)
        >>> head.predict(torch.zeros(1, 2)).tolist()  # 1 + 1/2 + 1/4
        [1.75]
        >>> round(head.loss(torch.zeros(1, 2), torch.tensor([3.0]))[0].item(), 4)  # P(y = 3) = 1/4
        1.3863
    """

    reads = "pair"
    output_kind = "ordinal"
    metrics = ("rmse", "mae", "accuracy", "quadratic_kappa")
    default_options: ClassVar[dict[str, Any]] = {"minimum": None, "maximum": None, "prior": None}

    def __init__(self, task: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__(task, config)
        for name in ("minimum", "maximum"):
            if self.options[name] is None or self.options[name] != int(self.options[name]):
                raise self.option_error(name, "it must be a whole number, or come from processor.model_config()")
        self.minimum, self.maximum = int(self.options["minimum"]), int(self.options["maximum"])
        if self.minimum >= self.maximum:
            raise self.option_error("maximum", f"it must be above the minimum, {self.minimum}")
        classes, prior = self.maximum - self.minimum + 1, self.options["prior"]
        if prior is not None and not (len(prior) == classes and min(prior) > 0):
            raise self.option_error("prior", f"it must hold {classes} shares > 0, one per class")
        self.logit_width = classes - 1
        self.output = nn.Linear(config.pair_width, classes - 1)

    @classmethod
    def options_from_labels(cls, task: TaskConfig, summary: Summary) -> dict[str, Any]:
        """Range and shares of the classes, each with one imagined label more."""
        found = int(summary["minimum"]), int(summary["maximum"])
        low, high = (task.options.get(name, value) for name, value in zip(("minimum", "maximum"), found, strict=True))
        seen = dict(zip(range(found[0], found[1] + 1), summary["class_counts"], strict=True))
        counts = [seen.get(level, 0.0) + 1 for level in range(low, high + 1)]
        return {"minimum": low, "maximum": high, "prior": [n / sum(counts) for n in counts]}

    def initialise(self) -> None:
        """Start at the shares of the classes: odds of a higher class against this one, among rows that get so far."""
        if self.options["prior"] is not None:
            share_K = torch.tensor(self.options["prior"], dtype=torch.float64)
            above_K = share_K.flip(0).cumsum(0).flip(0) - share_K
            init.copy_(self.output.bias, (above_K[:-1] / share_K[:-1]).log().to(self.output.bias.dtype))

    def forward(self, hidden_D: Tensor) -> Tensor:
        """Log odds of each threshold, [..., D] -> [..., K - 1]."""
        return self.output(hidden_D)

    def loss(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """-log P(label) of the known labels: (sum, count)."""
        rank = torch.nan_to_num(labels - self.minimum)
        bad = (rank < 0) | (rank > self.maximum - self.minimum) | (rank != rank.floor())
        if bad.any():
            raise ValueError(
                f"label of ordinal task {self.task.name!r} is {rank[bad][0].item() + self.minimum:g}: it must be a "
                f"whole number from minimum={self.minimum} to maximum={self.maximum}"
            )
        rank = per_member(rank, logits[..., 0]).unsqueeze(-1)
        threshold_K = torch.arange(logits.shape[-1], device=logits.device)
        reached, above = rank >= threshold_K, rank > threshold_K
        losses = F.binary_cross_entropy_with_logits(logits.float(), above.float(), reduction="none")
        losses = torch.where(reached, losses, 0.0).sum(-1)
        return masked_sum(over_members(losses, labels), ~torch.isnan(labels), weight)

    def predict(self, logits: Tensor) -> Tensor:
        """Expected label."""
        return self.minimum + torch.exp(F.logsigmoid(logits.float()).cumsum(-1)).sum(-1)

    def canonical_logits(self, logits: Tensor) -> Tensor:
        """Log odds of the thresholds."""
        return logits.float()
