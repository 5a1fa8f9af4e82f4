"""How long: seconds of a video, a track or an article, judged among items of the same length."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.reduction import masked_sum, over_members, per_member
from polyrec.core.registry import HEADS
from polyrec.core.schema import TaskConfig
from polyrec.modules.heads.base import Summary, TaskHead


@HEADS.register("watch_time")
class WatchTimeHead(TaskHead):
    r"""Watch time as a quantile within its duration (D2Q: Zhan et al., 2022, "Deconfounding Duration Bias in Watch-time
    Prediction for Video Recommendation").

    Long items are watched longer whoever watches them, so seconds mostly say how long an item is. D2Q compares instead
    where the watch time stands among those of items of about the same length. With F_g the distribution of the training
    labels in the group g of durations,

        L = 12 sum_i w_i (sigmoid(z_i) - F_g(y_i))^2

    (12: a quantile has variance 1/12, so that 1 is the loss of a constant). `predict` goes back, F_g^-1(sigmoid(z)),
    to the unit of the label. Only ranks enter, so labels in seconds and in log seconds train the same model, and
    nothing needs clipping. The prediction is nearer to a median than to a mean: judge it by MAE and XAUC. (Weighted
    logistic regression, Covington et al., 2016, estimates the mean seconds, but lets long items outweigh short ones:
    what is removed here.)

    Canonical logits are the watch time in the label's unit.

    Ten groups, equally frequent in training, are read from the scaled duration in the batch; where it is unknown the
    label is ranked among all.

    Args:
        task: options `duration` (name of a numeric context column) and `group_quantiles` (G + 1 ascending rows of
            quantiles of the labels, one per group and one for all; `processor.model_config()` fills it).

    Shapes: hidden [..., D] -> logits [..., 2], z and the number of the group; labels [...] >= 0, NaN = unknown.

    Example:
        >>> from polyrec import FeatureConfig
        >>> quantiles = [[0.0, 10.0, 20.0], [0.0, 100.0, 200.0], [0.0, 50.0, 200.0]]  # of short items, long ones, all
        >>> options = {"duration": "length", "group_quantiles": quantiles}
        >>> config = PolyRecConfig(tasks=[{"name": "watch", "head": "watch_time", "options": options}],
        ...                        features=[FeatureConfig("length", "candidate", "numeric")])
        >>> head = WatchTimeHead(config.task_configs[0], config)
        >>> logits = head.finish(torch.zeros(1, 3), {"length": torch.tensor([[-1.0, 1.0, float("nan")]])})
        >>> head.predict(logits).tolist()
        [[10.0, 100.0, 50.0]]
    """

    reads = "pair"
    output_kind = "rank"
    metrics = ("mae", "rmse", "xauc")
    default_options: ClassVar[dict[str, Any]] = {"duration": None, "group_quantiles": None}
    logit_width = 2
    quantiles: Tensor

    def __init__(self, task: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__(task, config)
        known = [f.name for f in config.feature_configs if f.source == "candidate" and f.kind == "numeric"]
        if self.options["duration"] not in known:
            raise self.option_error(
                "duration", f"it must name a numeric context column; known: {', '.join(known) or 'none'}"
            )
        rows = self.options["group_quantiles"]
        if rows is None:
            raise self.option_error("group_quantiles", "build the configuration by processor.model_config()")
        even = len(rows) >= 2 and len(rows[0]) >= 2 and len({len(row) for row in rows}) == 1
        if not even or any(a > b for row in rows for a, b in pairwise(row)):
            raise self.option_error("group_quantiles", "it must hold rows of equal length, each ascending")
        self.groups = len(rows) - 1
        self.output = nn.Linear(config.pair_width, 1)
        self.register_buffer("quantiles", torch.tensor(rows, dtype=torch.float32))

    @classmethod
    def options_from_labels(cls, task: TaskConfig, summary: Summary) -> dict[str, Any]:
        """The distribution of the labels per group of durations."""
        return {"group_quantiles": summary["group_quantiles"]}

    def initialise(self) -> None:
        """Put the distributions in place."""
        init.copy_(self.quantiles, torch.tensor(self.options["group_quantiles"], dtype=torch.float32))

    @property
    def own_width(self) -> int | None:
        """One number, z."""
        return None

    def forward(self, hidden_D: Tensor) -> Tensor:
        """Logit of the quantile, [..., D] -> [...]."""
        return self.output(hidden_D).squeeze(-1)

    def finish(self, own: Tensor, candidate_features: Mapping[str, Tensor]) -> Tensor:
        """Put the group of the candidate's duration beside the logit."""
        duration_BC = candidate_features[self.options["duration"]].float()
        # The processor scales numbers to the standard normal distribution: its parts are equally frequent groups.
        group_BC = (torch.special.ndtr(duration_BC) * self.groups).floor().clamp(max=self.groups - 1)
        group_BC = torch.where(torch.isnan(duration_BC), float(self.groups), group_BC)
        return torch.stack([own.float(), per_member(group_BC, own)], dim=-1)

    def loss(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Squared error of the quantile at the known labels: (sum, count)."""
        target = per_member(torch.nan_to_num(labels).float(), logits[..., 0])
        losses = 12 * (torch.sigmoid(logits[..., 0]) - self._ranks(target, self.rows(logits))).square()
        return masked_sum(over_members(losses, labels), ~torch.isnan(labels), weight)

    def predict(self, logits: Tensor) -> Tensor:
        """Watch time in the label's unit."""
        rows_Q = self.rows(logits)
        position = torch.sigmoid(logits[..., :1]) * (rows_Q.shape[-1] - 1)
        below = position.floor().clamp(max=rows_Q.shape[-1] - 2)
        low, high = (rows_Q.gather(-1, below.long() + step) for step in (0, 1))
        return torch.lerp(low, high, position - below).squeeze(-1)

    @property
    def canonical_width(self) -> int | None:
        """One number."""
        return None

    def canonical_logits(self, logits: Tensor) -> Tensor:
        """Watch time in the label's unit."""
        return self.predict(logits)

    def read_canonical(self, canonical: Tensor) -> tuple[Tensor, Tensor | None]:
        """Watch time as it is."""
        return canonical, None

    def rows(self, logits: Tensor) -> Tensor:
        """Quantiles of each candidate's group, [..., Q]."""
        # round: the mean over members of one number may miss it by a rounding error.
        return self.quantiles.float()[logits[..., 1].round().long()]

    @classmethod
    def _ranks(cls, values: Tensor, rows_Q: Tensor) -> Tensor:
        """Share of the distribution below each value, in [0, 1]; a value that fills several quantiles: their middle."""
        low, high = cls.filled(values, rows_Q)
        return (low + high) / 2

    @staticmethod
    def filled(values: Tensor, rows_Q: Tensor) -> tuple[Tensor, Tensor]:
        """Where in the distribution, in [0, 1], each value begins and ends: apart where many labels are alike."""
        value = values.unsqueeze(-1).contiguous()
        first, behind = (torch.searchsorted(rows_Q, value, right=right) for right in (False, True))
        above = first.clamp(1, rows_Q.shape[-1] - 1)
        low, high = rows_Q.gather(-1, above - 1), rows_Q.gather(-1, above)
        between = ((value - low) / (high - low).clamp(min=1e-12)).clamp(0, 1) + above - 1
        positions = (torch.where(behind > first, filled.to(value.dtype), between) for filled in (first, behind - 1))
        low, high = (position.squeeze(-1) / (rows_Q.shape[-1] - 1) for position in positions)
        return low, high
