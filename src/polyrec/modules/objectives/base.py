"""The contract of an objective: a loss beside the tasks, of what a training batch holds anyway."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.reduction import mean_loss
from polyrec.core.registry import Part, checked_options
from polyrec.core.renamed import renamed_method
from polyrec.modules.encoders.history import HistoryEncoder
from polyrec.modules.encoders.item import FIRST_ITEM, ItemEncoder, ItemRows


@dataclass
class Reading:
    """A training batch as the model has read it.

    Args:
        item_encoder, history_encoder: to read it again, changed.
        items: vectors of the batch's items, what `draw` gave included.
        item_ids: [B, L], 0 = padding on the right.
        event_features, user_features: {name: [B, L(, K)]}, {name: [B(, K)]}.
        states_BLD: [B, L + 1, D]; index p has seen the first p events.
        drawn: what `draw` gave.
    """

    item_encoder: ItemEncoder
    history_encoder: HistoryEncoder
    items: ItemRows
    item_ids: Tensor
    event_features: dict[str, Tensor]
    user_features: dict[str, Tensor]
    states_BLD: Tensor
    drawn: Tensor | None = None

    def states(self, items: ItemRows, item_ids: Tensor, event_features: dict[str, Tensor]) -> Tensor:
        """States of changed histories of the same users, [B, L + 1, D]."""
        return self.history_encoder(items, item_ids, event_features, self.user_features)[1]


class Objective(nn.Module, Part):
    r"""Base of all objectives: `forward(reading) -> sum`, `count(...) -> what the sum is divided by`.

    The model adds weight * sum / count to what its weighting makes of the tasks, in training alone: an objective
    changes no prediction, and costs nothing where it is not configured. A weighting does not see objectives; their
    weights are constants.

    **Reduction.** `count` is known from the batch before anything is drawn or computed, so that the trainer can divide
    each batch of an accumulation window by the count of the whole window over all ranks, as it does for tasks. What is
    drawn at random counts as its expectation, so the sum over count estimates a mean without bias. An objective that
    tells things of a batch apart from each other (in-batch negatives) depends on the cut into batches beyond that: a
    window of 4 x 16 users has other negatives than one of 64. Its docstring says so.

    Subclasses declare `default_options` with "weight" among them; others are refused. Each parameter must get a
    gradient from every batch, an empty sum included (0 * parameter), or DDP waits for it.

    Args:
        name: under which it is registered, logged (`loss_<name>`) and configured.
        options: of `config.objectives[name]`.
    """

    default_options: ClassVar[dict[str, Any]] = {"weight": 0.1}

    def __init__(self, name: str, options: Mapping[str, Any], config: PolyRecConfig) -> None:
        super().__init__()
        self.name = name
        self.options = checked_options(options, self.default_options, f"objective {name!r}")
        self.weight = self.options["weight"]
        if not (isinstance(self.weight, int | float) and 0 < self.weight < math.inf):
            raise self.option_error("weight", "it must be a number > 0; to turn the objective off, leave it out")

    def initialise(self) -> None:
        """Set parameters that should not start at random; called after the default initialisation."""

    def load_texts(self, processor: Any) -> None:
        """Take what is needed of the processor that knows the items' texts; called before training."""

    def extend(self, num_items: int, known_N: Tensor) -> None:
        """Make place for new items; `known_N` says which of the old ones have been trained."""

    def draw(self, item_encoder: ItemEncoder) -> Tensor | None:
        """Items to be encoded beside those of the batch, int64 [K]."""
        return None

    def count(self, item_encoder: ItemEncoder, item_ids: Tensor) -> Tensor:
        """What the sum over a batch is divided by (in expectation, its terms), a float scalar on the batch's device."""
        raise NotImplementedError

    def forward(self, reading: Reading) -> Tensor:
        """The sum of losses, a float scalar."""
        raise NotImplementedError

    def check_range(self, option: str, low: float, high: float) -> None:
        """Refuse an option outside (low, high]."""
        if not low < self.options[option] <= high:
            raise self.option_error(option, f"it must be in ({low:g}, {high:g}]")

    def option_error(self, option: str, rule: str) -> ValueError:
        """The error that an option breaks a rule ("it must be > 0")."""
        return ValueError(f"option {option!r} of objective {self.name!r} is {self.options[option]!r}; {rule}")

    refuse = renamed_method("refuse", "option_error")


def mean_losses(
    objectives: Mapping[str, Objective],
    reading: Reading,
    drawn: Mapping[str, Tensor | None],
    counts: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """The loss of each objective over its count, {name: scalar}.

    Args:
        drawn: what `draw` gave, by name.
        counts: {name: scalar} of the accumulation window; None: of this batch.
    """
    found = {}
    for name, objective in objectives.items():
        count = objective.count(reading.item_encoder, reading.item_ids) if counts is None else counts[name]
        found[name] = mean_loss(objective(replace(reading, drawn=drawn[name])), count)
    return found


def described_items(item_encoder: ItemEncoder, item_ids: Tensor) -> Tensor:
    """Items of the histories that have a text, ascending, int64 [M]."""
    tokens = None if item_encoder.text is None else item_encoder.text.tokens
    if tokens is None:
        raise ValueError("the model has no texts of its items: call model.load_texts(processor) before training")
    rows_M = item_ids.unique()
    rows_M = rows_M[rows_M >= FIRST_ITEM]
    index = rows_M.cpu().numpy()
    return rows_M[torch.from_numpy(tokens.offsets[index + 1] > tokens.offsets[index]).to(rows_M.device)]


def symmetric_info_nce(one_MD: Tensor, two_MD: Tensor, temperature: float, group_M: Tensor | None = None) -> Tensor:
    r"""Sum over both directions of InfoNCE with cosines, half each (van den Oord et al., 2018; CLIP, Radford et al.,
    2021).

    L = -1/2 \sum_i [log softmax_j(cos(a_i, b_j) / \tau)_i + log softmax_j(cos(b_i, a_j) / \tau)_i]

    Args:
        group_M: rows of one group are no negatives of each other.

    Shapes: [M, D], [M, D] -> scalar.

    Example:
        >>> a = torch.eye(2)
        >>> round(symmetric_info_nce(a, a, temperature=1.0).item() / 2, 4)  # -log(e / (e + 1))
        0.3133
    """
    with torch.autocast(one_MD.device.type, enabled=False):
        one_MD, two_MD = F.normalize(one_MD.float(), dim=-1), F.normalize(two_MD.float(), dim=-1)
        logits_MM = one_MD @ two_MD.T / temperature
        if group_M is not None:
            same_MM = (group_M.unsqueeze(0) == group_M.unsqueeze(1)).fill_diagonal_(False)
            logits_MM = logits_MM.masked_fill(same_MM, float("-inf"))
        own_M = torch.arange(len(one_MD), device=one_MD.device)
        there = F.cross_entropy(logits_MM, own_M, reduction="sum")
        return 0.5 * (there + F.cross_entropy(logits_MM.T, own_M, reduction="sum"))
