"""The contract of a head: it knows all about its kind of task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from polyrec.configuration_polyrec import PolyRecConfig
from polyrec.registry import checked_options
from polyrec.schema import TaskConfig

Summary = Mapping[str, Any]  # of a task's training labels, see `PolyRecProcessor.label_summary`


class TaskHead(nn.Module):
    """Base of all heads.

    A *pair* head reads a hidden vector per (state, candidate); a *state* head reads the state alone and scores the
    whole catalog.

    Subclasses declare `reads`, `default_options` (every option with its default; others are refused) and `metrics`
    (names of `PAIR_METRICS` or `DETAIL_METRICS` in `polyrec.evaluation.evaluator`, the main one first, which must be a
    pair metric), and implement `forward`, `loss` and `predict`.

    A head whose answer takes K numbers sets `logit_width` = K: its logits end in an axis K, those of other heads do
    not. Members of an ensemble come before it. A head with `details` sets their number, `detail_width`. The way of an
    answer:

        forward(hidden) -> own [B, C(, M)(, K)]   + linear skip   -> finish -> coupling -> logits
        loss(logits, labels), predict(logits), details(logits)
    """

    reads: ClassVar[Literal["pair", "state"]]
    metrics: ClassVar[tuple[str, ...]] = ()
    default_options: ClassVar[dict[str, Any]] = {}
    logit_width: int | None = None
    detail_width: int | None = None

    def __init__(self, task: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__()
        self.task = task
        what = f"task {task.name!r} (head {task.head!r})"
        self.options = checked_options(task.options, self.default_options, what)

    @classmethod
    def starting_options(cls, task: TaskConfig, summary: Summary) -> dict[str, Any]:
        """Options that fit the training labels (base rate, spread); the task's own options override them."""
        return {}

    def initialise(self) -> None:
        """Set parameters that should not start at random; called after the default initialisation."""

    def extend(self, num_items: int, known_N: Tensor) -> None:
        """Add what the head holds per item for items up to `num_items`; what it holds already stays bit-equal.

        Args:
            known_N: which of the items before had training events, bool [N].
        """

    @property
    def own_width(self) -> int | None:
        """Numbers per pair that `forward` gives, if `finish` changes that; None = one, without an axis."""
        return self.logit_width

    def finish(self, own: Tensor, candidate_features: Mapping[str, Tensor]) -> Tensor:
        """Make logits of what `forward` and the linear skip say, knowing the candidate's features {name: [B, C]}."""
        return own

    def mean_over_members(self, logits: Tensor) -> Tensor:
        """Logits [B, C(, M)(, K)] -> [B, C(, K)]."""
        return logits.mean(2) if logits.dim() == (3 if self.logit_width is None else 4) else logits

    def known(self, labels: Tensor, candidate_ids: Tensor) -> Tensor:
        """Which candidates count in the loss, bool [B, C]."""
        return ~torch.isnan(labels)

    def loss(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (sum of losses, number or weight of known labels), both scalars; NaN labels count as nothing."""
        raise NotImplementedError

    def predict(self, logits: Tensor) -> Tensor:
        """Turn logits into the ONE number per pair that a person reads: a probability, or one in the label's unit."""
        raise NotImplementedError

    def details(self, logits: Tensor) -> Tensor | None:
        """What metrics read beside the prediction, [..., K] (probabilities of classes, quantiles); None = nothing."""
        return None

    def refuse(self, option: str, rule: str) -> ValueError:
        """The error that an option breaks a rule ("it must be > 0")."""
        return ValueError(f"option {option!r} of task {self.task.name!r} is {self.options[option]!r}; {rule}")


class NumberHead(TaskHead):
    """Base of heads that predict a number in the label's unit from logits in units of the label's spread.

    Losses of tasks with different units can then be added.
    """

    reads = "pair"
    default_options: ClassVar[dict[str, Any]] = {"mean": 0.0, "std": 1.0, "minimum": None, "maximum": None}

    def __init__(self, task: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__(task, config)
        if not self.options["std"] > 0:
            raise self.refuse("std", "it must be > 0")

    @classmethod
    def starting_options(cls, task: TaskConfig, summary: Summary) -> dict[str, Any]:
        """Mean, spread and range of the training labels."""
        return {name: summary[name] for name in NumberHead.default_options}

    def standardised(self, labels: Tensor) -> Tensor:
        """Labels in units of their spread; unknown ones become 0."""
        return torch.nan_to_num((labels - self.options["mean"]) / self.options["std"]).float()

    def in_unit(self, logits: Tensor) -> Tensor:
        """Standardised numbers in the label's unit, within [minimum, maximum]."""
        value = self.options["mean"] + self.options["std"] * logits.float()
        if self.options["minimum"] is None and self.options["maximum"] is None:
            return value
        return torch.clamp(value, self.options["minimum"], self.options["maximum"])


def masked_sum(losses: Tensor, known: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum of the losses of known labels and their number (or weight); differentiable also when none is known."""
    scale = known_weight(known, weight).to(losses.dtype)
    return (losses * scale).sum(), scale.sum()


def known_weight(known: Tensor, weight: Tensor | None) -> Tensor:
    """1 (or the weight) where a label is known, else 0; a padded weight may be NaN."""
    return known.float() if weight is None else torch.where(known, weight.float(), 0.0)


def mean_loss(total: Tensor, count: Tensor) -> Tensor:
    """A sum of losses over the number (or weight) of known labels; 0 if none is known."""
    return total / torch.where(count > 0, count, 1.0)


def per_member(values: Tensor, logits: Tensor) -> Tensor:
    """Labels [B, C], or the skip's [B, C, K], shaped to meet logits that may have an axis of M members after C."""
    return values if values.dim() == logits.dim() else values.unsqueeze(2).expand_as(logits)


def over_members(losses: Tensor, labels: Tensor) -> Tensor:
    """Losses [B, C] as they are, or the mean over members of [B, C, M]."""
    return losses if losses.dim() == labels.dim() else losses.mean(-1)
