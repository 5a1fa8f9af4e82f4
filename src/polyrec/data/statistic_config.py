"""What to count: one statistic, its baseline, its shrinkage and how it fades."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polyrec.registry import nearest

BASELINES: dict[str, tuple[str, ...]] = {
    "none": (),
    "global": ("global",),
    "item": ("global", "item"),
    "user": ("global", "user"),
    "item+user": ("global", "item", "user"),
}
REDUCTIONS = ("mean", "max", "min")
HOUR, DAY = 3600.0, 86400.0


@dataclass(frozen=True)
class StatisticConfig:
    """One statistic: residual means of all targets by key.

    Args:
        keys: one or two keys; () = the whole log.
        baseline: what is subtracted from the label first: "none", "global" (mu), "item" (mu + b_i), "user" (mu + b_u),
            "item+user" (mu + b_i + b_u).
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
    shrinkage: float = 5.0
    recent: float | None = None
    half_life: float | None = None
    count: bool = False
    gap: bool = False
    reduce: tuple[str, ...] = ("mean",)

    def __post_init__(self) -> None:
        if isinstance(self.keys, str):
            raise ValueError(f"keys must be a tuple of names, not the string {self.keys!r}: write ({self.keys!r},)")
        object.__setattr__(self, "keys", tuple(self.keys))
        object.__setattr__(self, "reduce", tuple(self.reduce))
        if len(self.keys) > 2:
            raise ValueError(f"keys {self.keys} are {len(self.keys)}: a statistic takes at most two")
        if self.baseline not in BASELINES:
            raise ValueError(f"unknown baseline {self.baseline!r}; {nearest(self.baseline, list(BASELINES))}")
        for how in self.reduce:
            if how not in REDUCTIONS:
                raise ValueError(f"unknown reduction {how!r} of {self.name!r}; {nearest(how, list(REDUCTIONS))}")
        if self.recent is not None and self.half_life is not None:
            raise ValueError(f"{self.name!r} fades by recent (events) and half_life (seconds): choose one")
        if self.shrinkage < 0 or (self.fade is not None and self.fade <= 0):
            raise ValueError(
                f"{self.name!r} needs shrinkage >= 0 and recent or half_life > 0, not {self.shrinkage} and {self.fade}"
            )

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
        """Whether its state is kept per person."""
        return "user" in self.keys

    def feature_names(self, targets: Sequence[str]) -> list[str]:
        """Names of the features, in order."""
        means = [f"{self.name}.{t}" + ("" if r == "mean" else f".{r}") for r in self.reduce for t in targets]
        extra = [("log_count", self.count), ("log_seconds_since", self.gap)]
        return means + [f"{self.name}.{n}" for n, wanted in extra if wanted]


# The three levels of the bias model; each is also a statistic whose state is kept.
LEVELS = {
    "global": StatisticConfig((), "none", shrinkage=100.0),
    "item": StatisticConfig(("item",), "global"),
    "user": StatisticConfig(("user",), "item"),
}
