"""The contract of a loss weighting: how task losses become one objective."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from polyrec.configuration_polyrec import PolyRecConfig
from polyrec.registry import checked_options


class LossWeighting(nn.Module):
    """Base of all weightings: `forward({task: mean loss}) -> (total, {task: weight})`.

    A weighting lives inside the model, so that what it learns is saved, resumed and free of weight decay.

    Subclasses declare `default_options`; options of `config.weighting_options` outside it are refused.
    """

    default_options: dict[str, Any] = {}

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__()
        what = f"loss weighting {config.weighting!r}"
        self.options = checked_options(config.weighting_options or {}, self.default_options, what)

    def forward(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """Combine mean losses of the tasks into one scalar."""
        raise NotImplementedError
