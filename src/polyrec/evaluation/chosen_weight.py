"""What validation rows chose to stand beside a network, and what it gains."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ChosenWeight:
    """The weight of something beside the network.

    Args:
        title: of it, as messages name it.
        weight: 0: it has no say.
        metric: of the validation rows, "ndcg@10" or "loss".
        without, value: the metric without and with it.
        rows: validation rows that were read.
    """

    title: str
    weight: float
    metric: str
    without: float
    value: float
    rows: int

    def __str__(self) -> str:
        change = f"{self.metric} {self.without:.4f} -> {self.value:.4f} on {self.rows:,} validation rows"
        if not self.weight:
            return f"{self.title} left out: no weight gains anything ({change})"
        return f"{self.title} of weight {self.weight:g}: {change}"
