"""One of several classes without order: kind of feedback, surface of the next visit, reason of a skip."""

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


@HEADS.register("multiclass")
class MulticlassHead(TaskHead):
    r"""K exclusive classes by cross entropy, L = -sum_i w_i log softmax(W h_i + b)[y_i].

    Labels are class numbers 0..K-1. `predict` returns the number of the most likely class, `details` all K
    probabilities. Where the classes have an order, `ordinal` needs fewer labels.

    Canonical logits are the logits, of which only differences matter.

    Args:
        task: options `num_classes` (K; `processor.model_config()` takes it from the training labels) and `prior` (K
            shares of the classes; b starts at their logarithms; None = all alike).

    Shapes: hidden [..., D] -> logits [..., K]; labels [...] in {0, .., K - 1, NaN}.

    Example:
        >>> options = {"num_classes": 4}
        >>> config = PolyRecConfig(tasks=[{"name": "kind", "head": "multiclass", "options": options}], hidden_size=8)
        >>> head = MulticlassHead(config.task_configs[0], config)
        >>> total, count = head.loss(torch.zeros(3, 4), torch.tensor([1.0, 3.0, float("nan")]))
        >>> round(total.item(), 4), count.item()  # 2 log 4
        (2.7726, 2.0)
        >>> head.predict(torch.tensor([[0.0, 2.0, 1.0, 0.0]])).tolist()
        [1.0]
    """

    reads = "pair"
    output_kind = "categorical"
    metrics = ("accuracy", "class_logloss")
    default_options: ClassVar[dict[str, Any]] = {"num_classes": None, "prior": None}

    def __init__(self, task: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__(task, config)
        classes, prior = self.options["num_classes"], self.options["prior"]
        if not (isinstance(classes, int) and classes >= 2):
            raise self.option_error(
                "num_classes", "it must be a whole number >= 2, or come from processor.model_config()"
            )
        if prior is not None and not (len(prior) == classes and min(prior) > 0):
            raise self.option_error("prior", f"it must hold {classes} shares > 0, one per class")
        self.logit_width = self.detail_width = classes
        self.output = nn.Linear(config.pair_width, classes)

    @classmethod
    def options_from_labels(cls, task: TaskConfig, summary: Summary) -> dict[str, Any]:
        """Number and shares of the classes, each with one imagined label more."""
        seen = [0.0] * int(summary["minimum"]) + summary["class_counts"]
        classes = task.options.get("num_classes", len(seen))
        counts = [n + 1 for n in seen] + [1] * (classes - len(seen))
        return {"num_classes": classes, "prior": [n / sum(counts) for n in counts]}

    def initialise(self) -> None:
        """Start at the shares of the classes."""
        if self.options["prior"] is not None:
            init.copy_(self.output.bias, torch.tensor(self.options["prior"]).log())

    def forward(self, hidden_D: Tensor) -> Tensor:
        """Logits of the classes, [..., D] -> [..., K]."""
        return self.output(hidden_D)

    def loss(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cross entropy of the known labels: (sum, count)."""
        classes, target = logits.shape[-1], torch.nan_to_num(labels)
        bad = (target < 0) | (target >= classes) | (target != target.floor())
        if bad.any():
            raise ValueError(
                f"label of multiclass task {self.task.name!r} is {target[bad][0].item():g}: with num_classes={classes} "
                f"it must be one of 0, 1, .., {classes - 1}"
            )
        target = per_member(target.long(), logits[..., 0])
        losses = F.cross_entropy(logits.float().flatten(0, -2), target.flatten(), reduction="none").view_as(target)
        return masked_sum(over_members(losses, labels), ~torch.isnan(labels), weight)

    def predict(self, logits: Tensor) -> Tensor:
        """Number of the most likely class, as a float."""
        return logits.argmax(-1).float()

    def canonical_logits(self, logits: Tensor) -> Tensor:
        """Log-weights of the classes."""
        return logits.float()

    def details(self, logits: Tensor) -> Tensor:
        """Probabilities of the classes, [..., K]."""
        return torch.softmax(logits.float(), dim=-1)
