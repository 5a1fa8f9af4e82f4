"""Arguments of `PolyRecProcessor.fit` and `split`, in recipes `processor:` and `split:`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from polyrec.core.backbones import TextConfig
from polyrec.core.ranges import NOT_NEGATIVE, SHARE, Range
from polyrec.core.settings import SettingError, conform, shown
from polyrec.data.statistic_config import StatisticsConfig
from polyrec.data.times import read_time

UNTIMED_SHARE = 0.05  # of the training windows
MAX_HISTORY = Range(1, 1_000_000)
_Share = Annotated[float, SHARE]


@dataclass(frozen=True)
class FitSettings:
    """Arguments of `PolyRecProcessor.fit` beside tables, tasks and columns."""

    max_history: Annotated[int, MAX_HISTORY] = 200
    ties: Literal["strict", "order"] = "strict"
    statistics: bool | StatisticsConfig = True
    text: TextConfig | None = None

    def __post_init__(self) -> None:
        conform(self)


@dataclass(frozen=True)
class SplitSettings:
    """Arguments of `PolyRecProcessor.split` beside tables.

    Example:
        >>> SplitSettings(max_delay=float("inf"))
        Traceback (most recent call last):
            ...
        polyrec.core.settings.SettingError: max_delay is inf; it must be a number >= 0, and finite
    """

    by: Literal["time", "leave_one_out", "random"] | None = None
    fractions: tuple[_Share, _Share, _Share] = (0.8, 0.1, 0.1)
    cuts: Sequence[Any] | None = None
    shuffle_ties: bool = True
    max_delay: Annotated[float, NOT_NEGATIVE] = 0.0
    delayed_share: _Share | None = None
    keep_negatives: dict[str, Annotated[float, Range(0, 1, open_low=True)]] | None = None
    seed: Annotated[int, NOT_NEGATIVE] = 0
    untimed_share: _Share = UNTIMED_SHARE

    def __post_init__(self) -> None:
        conform(self)
        if abs(sum(self.fractions) - 1) > 1e-5:
            raise SettingError(
                "fractions", f"are {list(self.fractions)}: shares of training, validation, test sum to 1"
            )
        if self.cuts is not None and len(self.cuts) != 2:
            raise SettingError("cuts", f"are {shown(self.cuts)}: give two times, where validation and test begin")
        if self.cuts is not None and self.by not in (None, "time"):
            raise SettingError("cuts", f"are times, but the split is by {self.by!r}: leave one of them out")
        if self.delayed_share is not None and not self.max_delay:
            raise SettingError("delayed_share", f"is {self.delayed_share} and max_delay 0: give max_delay in seconds")
        _ = self.cut_times

    @property
    def cut_times(self) -> tuple[float, float] | None:
        """`cuts` in seconds since the epoch."""
        if self.cuts is None:
            return None
        first, second = (read_time(time, what=f"cuts[{n}]") for n, time in enumerate(self.cuts))
        if first > second:
            raise SettingError("cuts", f"are {shown(self.cuts)}: the first must not be later than the second")
        return first, second
