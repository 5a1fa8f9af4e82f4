"""Yes or no: click, like, purchase."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.reduction import masked_sum, over_members, per_member
from polyrec.core.registry import HEADS
from polyrec.core.schema import TaskConfig
from polyrec.modules.heads.base import Summary, TaskHead, trees_option


@HEADS.register("binary")
class BinaryHead(TaskHead):
    r"""A probability by logistic loss, L = -sum_i w_i [y_i log p_i + (1 - y_i) log(1 - p_i)] with p = sigmoid(w h + b).

    With all options, for s_i = z_i + log(positive_weight) - log(sampling_rate) and q_i = sigmoid(s_i):

        L = -sum_i w_i [W t_i (1 - q_i)^g log q_i + (1 - t_i) q_i^g log(1 - q_i)],   t_i = y_i (1 - e) + e / 2

    Both corrections (W = positive_weight: King and Zeng, 2001, "Logistic Regression in Rare Events Data";
    sampling_rate: He et al., 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook") shift the logit in
    the loss only. So the logits z, and whatever reads them (couplings, teachers, `predict`), are log odds of the whole
    population: neither a weight nor the sampling of negatives biases a probability.

    `predict` returns sigmoid(slope z + intercept): the probability of a positive label in the population, after the
    calibration on validation (`polyrec.evaluation.calibration`; slope 1 and intercept 0 until then). Focal loss and
    label smoothing pull probabilities to the middle and are NOT undone: calibrate afterwards.

    Canonical logits are the log odds of that probability.

    Args:
        task: options
            `prior` (share of positives in the population; b starts at its log odds, so that the first steps do not have
            to find the base rate),
            `positive_weight` (W; the loss of a positive label counts so many times),
            `sampling_rate` (share of the negatives that were kept in the training rows, 1 = all),
            `focal_gamma` (g; Lin et al., 2017, "Focal Loss for Dense Object Detection"; 0 = plain),
            `label_smoothing` (e),
            `trees` (how many trees to grow, which validation may put beside the network, see `TreeBlend`; 0 = none.
            `processor.model_config()` sets it where the training rows allow trees).

    Shapes: hidden [..., D] -> logits [...]; labels [...] in {0, 1, NaN}.

    Example:
        >>> config = PolyRecConfig(tasks=[{"name": "like", "head": "binary"}], hidden_size=4)
        >>> head = BinaryHead(config.task_configs[0], config)
        >>> total, count = head.loss(torch.zeros(3), torch.tensor([1.0, 0.0, float("nan")]))
        >>> round(total.item(), 4), count.item()  # 2 log 2
        (1.3863, 2.0)
    """

    reads = "pair"
    output_kind = "bernoulli"
    metrics = ("auc", "gauc", "logloss", "calibration_error")
    default_options: ClassVar[dict[str, Any]] = {
        "prior": 0.5,
        "positive_weight": 1.0,
        "sampling_rate": 1.0,
        "focal_gamma": 0.0,
        "label_smoothing": 0.0,
        "trees": 0,
    }
    calibration: Tensor

    def __init__(self, task: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__(task, config)
        options = self.options
        prior = options["prior"]
        for name, holds, rule in (
            ("prior", 0 < prior < 1, "it must lie between 0 and 1"),
            ("positive_weight", 0 < options["positive_weight"] < math.inf, "it must be a number > 0"),
            ("sampling_rate", 0 < options["sampling_rate"] <= 1, "it must be a share of the negatives, > 0 and <= 1"),
            ("focal_gamma", 0 <= options["focal_gamma"] < math.inf, "it must be a number >= 0"),
            ("label_smoothing", 0 <= options["label_smoothing"] < 1, "it must be in [0, 1)"),
        ):
            if not holds:
                raise self.option_error(name, rule)
        self.initial_bias = math.log(prior / (1 - prior))
        self.offset = math.log(options["positive_weight"]) - math.log(options["sampling_rate"])
        self.output = nn.Linear(config.pair_width, 1)
        self.register_buffer("calibration", torch.tensor([1.0, 0.0], dtype=torch.float32))  # slope and intercept

    @classmethod
    def options_from_labels(cls, task: TaskConfig, summary: Summary) -> dict[str, Any]:
        """The base rate, and the share of negatives that training reads if it is not all of them."""
        sampled = {"sampling_rate": summary["sampling_rate"]} if "sampling_rate" in summary else {}
        return {"prior": min(max(summary["mean"], 1e-4), 1 - 1e-4)} | sampled | trees_option(summary)

    @property
    def logit_of_mean(self) -> float:
        """The log odds of the base rate."""
        return self.initial_bias

    def initialise(self) -> None:
        """Start at the base rate, uncalibrated."""
        init.constant_(self.output.bias, self.initial_bias)
        init.copy_(self.calibration, torch.tensor([1.0, 0.0]))

    def forward(self, hidden_D: Tensor) -> Tensor:
        """Log odds, [..., D] -> [...]."""
        return self.output(hidden_D).squeeze(-1)

    def loss(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logistic loss of the known labels: (sum, count)."""
        shifted = logits.float() + self.offset
        target = per_member(torch.nan_to_num(labels).float(), logits)
        smoothing, gamma = self.options["label_smoothing"], self.options["focal_gamma"]
        target = target * (1 - smoothing) + smoothing / 2
        # softplus(-s) = -log q and softplus(s) = -log(1 - q), exact also where q rounds to 0 or 1.
        positive, negative = F.softplus(-shifted), F.softplus(shifted)
        if gamma:
            positive, negative = positive * torch.exp(-gamma * negative), negative * torch.exp(-gamma * positive)
        losses = self.options["positive_weight"] * target * positive + (1 - target) * negative
        return masked_sum(over_members(losses, labels), ~torch.isnan(labels), weight)

    def predict(self, logits: Tensor) -> Tensor:
        """Probability of a positive label, calibrated."""
        return torch.sigmoid(self.canonical_logits(logits))

    def canonical_logits(self, logits: Tensor) -> Tensor:
        """Log odds in the population, calibrated."""
        slope, intercept = self.calibration.float()
        return slope * logits.float() + intercept

    def in_loss_units(self, canonical: Tensor) -> Tensor:
        """Log odds as both corrections shift them."""
        return canonical + self.offset

    def read_canonical(self, canonical: Tensor) -> tuple[Tensor, Tensor | None]:
        """The probability of log odds that are calibrated already."""
        return torch.sigmoid(canonical), None

    @torch.no_grad()
    def calibrate(self, slope: float, intercept: float) -> None:
        """Put p' = sigmoid(slope logit(p) + intercept) after what `predict` gives so far."""
        old_slope, old_intercept = self.calibration.tolist()
        new = torch.tensor([slope * old_slope, slope * old_intercept + intercept])
        self.calibration.copy_(new)
