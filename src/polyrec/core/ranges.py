"""Numbers that make sense: the ranges that settings declare beside their types."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Numbers that make sense.

    Args:
        low, high: limits; None = no limit.
        open_low, open_high: the limit itself is outside.

    Example:
        >>> str(Range(0, 1, open_high=True)), str(Range(0, open_low=True)), str(Range(1))
        ('in [0, 1)', '> 0', '>= 1')
    """

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range."""
        below = self.low is not None and (value <= self.low if self.open_low else value < self.low)
        over = self.high is not None and (value >= self.high if self.open_high else value > self.high)
        return not (below or over)

    def __str__(self) -> str:
        low, high = (None if x is None else f"{x:,}" if isinstance(x, int) else f"{x:g}" for x in (self.low, self.high))
        if low is not None and high is not None:
            return f"in {'(' if self.open_low else '['}{low}, {high}{')' if self.open_high else ']'}"
        if low is not None:
            return f"{'>' if self.open_low else '>='} {low}"
        return "" if high is None else f"{'<' if self.open_high else '<='} {high}"


POSITIVE, NOT_NEGATIVE = Range(0, open_low=True), Range(0)
SHARE, BELOW_ONE, AT_LEAST_ONE = Range(0, 1), Range(0, 1, open_high=True), Range(1)
