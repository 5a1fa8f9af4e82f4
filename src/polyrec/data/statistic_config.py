"""What to count: one statistic, its baseline, its shrinkage and how it fades."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, Literal

from polyrec.core.ranges import NOT_NEGATIVE, POSITIVE
from polyrec.core.registry import nearest
from polyrec.core.schema import from_dict
from polyrec.core.settings import conform

BASELINES = ("none", "global", "context", "item", "user", "item+user")
REDUCTIONS: tuple[Literal["mean", "max", "min"], ...] = ("mean", "max", "min")
HOUR, DAY = 3600.0, 86400.0
_PART_OF_CONTEXT = re.compile(r"context:\d+")


@dataclass(frozen=True)
class StatisticConfig:
    """One statistic: residual means of all targets by key.

    Args:
        keys: one or two keys; () = the whole log.
        baseline: what is subtracted from the label first: "none", "global" (mu), "context" (m = mu + what the place and
            kind of the row say, see `RunningStatistics`), "item" (m + b_i), "user" (m + b_u), "item+user" (m + b_i +
            b_u).
        shrinkage: pseudo-count k of the mean.
        recent: a row's weight halves with every `recent` later rows of the key. Rows of one second count as one
            moment: none of them is later than another.
        half_life: a row's weight halves every `half_life` seconds. Neither: all earlier rows count alike.
        count: add log(1 + n), n = earlier rows; if it fades, the faded number of known labels (mean over the targets).
        gap: add log(1 + seconds since the last earlier row).
        reduce: for a key with several values per row: any of "mean", "max", "min" over the values. Counts are averaged;
            the gap is that of the latest value.

    Example:
        >>> config = StatisticConfig(("user", "item.genres"), "item+user", half_life=86400, reduce=("mean", "max"))
        >>> config.feature_names(["like"])
        ['user*item.genres-item+user.half-1d.like', 'user*item.genres-item+user.half-1d.like.max']
    """

    keys: tuple[str, ...]
    baseline: str
    shrinkage: Annotated[float, NOT_NEGATIVE] = 5.0
    recent: Annotated[float, POSITIVE] | None = None
    half_life: Annotated[float, POSITIVE] | None = None
    count: bool = False
    gap: bool = False
    reduce: tuple[Literal["mean", "max", "min"], ...] = ("mean",)

    def __post_init__(self) -> None:
        if isinstance(self.keys, str):
            raise ValueError(f"keys must be a tuple of names, not the string {self.keys!r}: write ({self.keys!r},)")
        conform(self, where="statistic")
        if len(self.keys) > 2:
            raise ValueError(f"keys {self.keys} are {len(self.keys)}: a statistic takes at most two")
        if self.baseline not in BASELINES and not _PART_OF_CONTEXT.fullmatch(self.baseline):
            raise ValueError(f"unknown baseline {self.baseline!r}; {nearest(self.baseline, list(BASELINES))}")
        if self.recent is not None and self.half_life is not None:
            raise ValueError(f"{self.name!r} fades by recent (events) and half_life (seconds): choose one")

    @property
    def name(self) -> str:
        """Readable and unique: keys, baseline, fading."""
        fade = "" if self.recent is None else f".recent{self.recent:g}"
        if self.half_life is not None:
            days = self.half_life % DAY == 0
            fade = f".half-{self.half_life / DAY:g}d" if days else f".half-{self.half_life / HOUR:g}h"
        return f"{'*'.join(self.keys) or 'log'}-{self.baseline}{fade}"

    @property
    def fade(self) -> float | None:
        """The half-life, in rows of the key or in seconds; None = nothing fades."""
        return self.half_life if self.recent is None else self.recent

    @property
    def personal(self) -> bool:
        """Whether its state is kept per user."""
        return "user" in self.keys

    def feature_names(self, targets: Sequence[str]) -> list[str]:
        """Names of the features, in order."""
        means = [f"{self.name}.{t}" + ("" if r == "mean" else f".{r}") for r in self.reduce for t in targets]
        extra = [("log_count", self.count), ("log_seconds_since", self.gap)]
        return means + [f"{self.name}.{n}" for n, wanted in extra if wanted]


@dataclass(frozen=True)
class StatisticsConfig:
    """Which running statistics a processor keeps.

    Keys are "item", "user", "item.<attribute>", "user.<attribute>" and "context.<column>"; numbers are counted in bins.

    Args:
        log: statistics of the event log; None: a strong default set (`RunningStatistics.default`).
        past: statistics of the prior history, whose feedback columns are the targets; None: a default set.
        context: keys of the context levels of the bias model, coarse ones first.
        targets: numeric feedback columns that are counted beside the labels of the pair tasks.

    Example:
        >>> StatisticsConfig(log=[{"keys": ["user"], "baseline": "item"}], context=[["context.tab"]]).log[0].name
        'user-item'
    """

    log: Sequence[Any] | None = None
    past: Sequence[Any] | None = None
    context: Sequence[Sequence[str]] = ()
    targets: Sequence[str] = ()

    def __post_init__(self) -> None:
        conform(self)
        for name in ("log", "past"):
            given = getattr(self, name)
            if given is not None:
                parsed = [s if isinstance(s, StatisticConfig) else from_dict(StatisticConfig, s) for s in given]
                object.__setattr__(self, name, parsed)
        object.__setattr__(self, "context", [tuple(keys) for keys in self.context])


def levels(context: Sequence[tuple[str, ...]] = ()) -> Mapping[str, StatisticConfig]:
    """The levels of the bias model in the order in which they are set against each other; each is also a statistic.

    Args:
        context: keys of the context levels, coarse ones first.

    Example:
        >>> [(name, config.name) for name, config in levels([("tab",), ("tab", "length")]).items()][1:3]
        [('context:0', 'tab-global'), ('context:1', 'tab*length-context:1')]
    """
    return _levels(tuple(context))


@cache  # each request reads them
def _levels(context: tuple[tuple[str, ...], ...]) -> Mapping[str, StatisticConfig]:
    found = {"global": StatisticConfig((), "none", shrinkage=100.0)}
    for i, keys in enumerate(context):
        found[f"context:{i}"] = StatisticConfig(keys, f"context:{i}" if i else "global", shrinkage=50.0)
    own = {"item": StatisticConfig(("item",), "context"), "user": StatisticConfig(("user",), "item")}
    return MappingProxyType(found | own)


def levels_of(baseline: str, depth: int) -> list[str]:
    """Names of the levels that add up to a baseline, for a bias model with `depth` context levels.

    Example:
        >>> levels_of("item", depth=1), levels_of("context:1", depth=2)
        (['global', 'context:0', 'item'], ['global', 'context:0'])
    """
    if baseline == "none":
        return []
    if _PART_OF_CONTEXT.fullmatch(baseline):
        depth = int(baseline.removeprefix("context:"))
    context = [] if baseline == "global" else [f"context:{i}" for i in range(depth)]
    return ["global", *context, *(level for level in ("item", "user") if level in baseline)]
