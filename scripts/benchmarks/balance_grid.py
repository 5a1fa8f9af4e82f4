"""The cells of `balance.py`: an expert layer and a loss weighting each. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from polyrec.core.registry import EXPERTS, WEIGHTINGS

AGGREGATION = "aggregation"  # the weighting that is many methods
DEFAULT_EXPERTS = "shared_bottom"


@dataclass(frozen=True)
class Cell:
    """One expert layer with one weighting.

    Args:
        experts: name of the expert layer.
        weighting: name of the loss weighting, "aggregation:<method>" for a method of aggregation.

    Example:
        >>> cell = Cell.parse("ple+aggregation:mgda")
        >>> cell.model({"hidden_size": 64, "expert_options": {"expansion": 0.5}})
        {'hidden_size': 64, 'experts': 'ple', 'weighting': 'aggregation', 'weighting_options': {'method': 'mgda'}}
    """

    experts: str
    weighting: str

    def __post_init__(self) -> None:
        EXPERTS.check(self.experts)
        WEIGHTINGS.check(self.kind)

    @classmethod
    def parse(cls, name: str) -> Self:
        """The cell of a name."""
        experts, _, weighting = name.partition("+")
        return cls(experts, weighting)

    @property
    def name(self) -> str:
        """Under which the report knows it."""
        return f"{self.experts}+{self.weighting}"

    @property
    def kind(self) -> str:
        """The registered name of the weighting."""
        return self.weighting.partition(":")[0]

    @property
    def aggregates(self) -> bool:
        """Whether gradients are aggregated."""
        return self.kind == AGGREGATION

    def model(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of PolyRecConfig: those of `base`, without options that were made for other parts."""
        found = {**base, "experts": self.experts, "weighting": self.kind}
        if self.experts != base.get("experts", DEFAULT_EXPERTS):
            found.pop("expert_options", None)
        if self.kind != base.get("weighting", "fixed"):
            found.pop("weighting_options", None)
        if method := self.weighting.partition(":")[2]:
            found["weighting_options"] = {**found.get("weighting_options", {}), "method": method}
        return found


REFERENCE = Cell(DEFAULT_EXPERTS, "fixed")


def weighting_names(methods: Sequence[str]) -> list[str]:
    """All weightings, `aggregation` by its methods, the reference's first and aggregations last."""
    plain = [name for name in WEIGHTINGS.names() if name not in (REFERENCE.weighting, AGGREGATION)]
    return [REFERENCE.weighting, *plain, *(f"{AGGREGATION}:{method}" for method in methods)]


def full_grid(methods: Sequence[str]) -> list[Cell]:
    """Every expert layer with every weighting, the reference first."""
    experts = [REFERENCE.experts, *(name for name in EXPERTS.names() if name != REFERENCE.experts)]
    return [Cell(layer, weighting) for layer in experts for weighting in weighting_names(methods)]


def cross_grid(methods: Sequence[str], also: Sequence[str]) -> list[Cell]:
    """Every expert layer with the reference's weighting, every weighting with its layer, and the cells of `also`."""
    cross = [c for c in full_grid(methods) if REFERENCE.experts == c.experts or REFERENCE.weighting == c.weighting]
    return list(dict.fromkeys([*cross, *map(Cell.parse, also)]))
