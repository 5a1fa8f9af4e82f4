"""`Rules`: what a list may hold and in which order, as a request, a recipe or a command line says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, Self

from polyrec.core.expressions import parse, said_by
from polyrec.core.extras import check_extra
from polyrec.core.ids import check_id
from polyrec.core.ranges import POSITIVE, SHARE, Range
from polyrec.core.score import Score
from polyrec.core.settings import SettingError, check_keys, conform, read_arguments, shown

_MOST_ENTRIES = 1_000  # of quotas, pins and boosts


@dataclass(frozen=True)
class Diversity:
    """Different items beside each other, by `pyversity` on the embeddings of the items.

    Args:
        strength: 0 leaves the order as it is, 1 looks at differences alone.
        method: "mmr" (Carbonell and Goldstein, 1998: not close to any item above), "msd" (Borodin et al., 2012: far
            from all items above), "dpp" (Chen, Zhang and Zhou, 2018: determinantal point process) or "ssd" (Huang et
            al., 2021: sliding spectrum decomposition).
    """

    strength: Annotated[float, SHARE] = 0.5
    method: Literal["mmr", "msd", "dpp", "ssd"] = "mmr"

    def __post_init__(self) -> None:
        conform(self, where="diversity")
        check_extra("pyversity", "rerank", "lists with diversity")


@dataclass(frozen=True)
class Explore:
    """Drawn instead of ranked: at each rank an item of those left comes with the chance exp(score / t) / sum.

    Args:
        temperature: t; a small one leaves the order nearly as it is.
        seed: the same lists again, drawn for each user or history by itself; None: other ones at each call.
    """

    temperature: Annotated[float, POSITIVE]
    seed: Annotated[int, Range(0)] | None = None

    def __post_init__(self) -> None:
        conform(self, where="explore")


@dataclass(frozen=True)
class Seen:
    """Which items of a history are left out: by kind of event, within a window of time, and once shown too often.

    Args:
        where: true: items with any event; false: none of them; or a condition on events, e.g. "rating >= 4". None:
            true, and false beside a cap of impressions.
        impressions: an item with so many impressions is left out, too. None: there is no cap.
        shown: a condition that says which events are impressions, e.g. "click == 0". None: all of them.
        days: only events of the last so many days before the request are looked at; those whose time is not known are
            of now. None: the whole history.

    Example:
        >>> Seen(impressions=3, days=7).where
        False
    """

    where: bool | str | None = None
    impressions: Annotated[int, Range(1)] | None = None
    shown: str | None = None
    days: Annotated[float, POSITIVE] | None = None

    def __post_init__(self) -> None:
        conform(self, where="seen")
        if self.where is None:
            object.__setattr__(self, "where", self.impressions is None)
        if self.shown is not None and self.impressions is None:
            raise SettingError("seen.shown", "is given without seen.impressions, the number that is allowed")
        for name in ("where", "shown"):
            if isinstance(text := getattr(self, name), str):
                with said_by(f"seen.{name}"):
                    parse(text)


@dataclass(frozen=True)
class Rules:
    """What lists may hold, and in which order. Everything is checked here but for names of columns, tasks and items.

    Filters (`where`, `candidates`, `exclude`, `seen`) come before anything is cut: a list holds k items where k are
    allowed. What quotas, pins and thresholds of `score` leave unmet is said in `unmet` of the result and by a warning.

    Args:
        where: a condition on columns of the catalog, e.g. "price <= 20 and genre != 'Horror'" or "'Horror' in genres";
            an item whose value is missing does not match, see `polyrec.core.expressions`.
        candidates: ids of the items to choose from.
        exclude: ids of items that are never listed.
        at_most: quotas, {column: items with the same value}; each entry of a list counts, a missing value does not.
        pins: {rank, from 1: id of the item that stands there}. Filters and quotas hold for pinned items, too.
        boosts: {condition: what is added to the score of items that match}: log-odds, of a task that predicts a
            number its unit.
        seen: true and false: leave out items of the history, or not; or a condition on events of the history, e.g.
            "rating >= 4": only items with such an event are left out. Columns are feedback, context, time and tasks. Or
            a [`Seen`] with a window of time and a cap of impressions.
        diversity: strength in [0, 1], or a [`Diversity`] with a method.
        score: what ranks instead of one task, of the `best` items: a weighted sum of tasks' log-odds ("0.3*next_item +
            2*like") or a product of predictions ("like^2 * watch_time"); after commas conditions on predictions
            ("like >= 0.2").
        explore: temperature, or an [`Explore`] with a seed: draw lists and give `propensity`.
        best: how many of the best allowed items `score`, `diversity` and `explore` choose from; more where quotas
            and thresholds need more.

    Example:
        >>> rules = Rules(where="year >= 2000", at_most={"genres": 2}, diversity=0.3)
        >>> rules.diversity
        Diversity(strength=0.3, method='mmr')
        >>> Rules(where="year >=")
        Traceback (most recent call last):
            ...
        polyrec.core.settings.SettingError: where cannot be read: 'year >=': a value is missing at its end
    """

    where: str | None = None
    candidates: list[Any] | None = None
    exclude: list[Any] = field(default_factory=list)
    at_most: dict[str, Annotated[int, Range(0)]] = field(default_factory=dict)
    pins: dict[int, Any] = field(default_factory=dict)
    boosts: dict[str, float] = field(default_factory=dict)
    seen: str | bool | Seen | None = None
    diversity: float | Diversity | None = None
    score: str | None = None
    explore: float | Explore | None = None
    best: Annotated[int, Range(1, 100_000)] = 500

    def __post_init__(self) -> None:
        object.__setattr__(self, "pins", _ranks(self.pins))
        # Most rules are not set; what is empty needs no check.
        given = {n: v for n, v in vars(self).items() if not (v is None or (type(v) in (dict, list) and not v))}
        for name, value in read_arguments(Rules, given).items():
            object.__setattr__(self, name, value)
        for name in ("candidates", "exclude"):
            for n, item in enumerate(getattr(self, name) or ()):
                check_id(item, f"{name}[{n}]")
        if isinstance(self.diversity, float):
            object.__setattr__(self, "diversity", Diversity(self.diversity))
        if isinstance(self.explore, float):
            object.__setattr__(self, "explore", Explore(self.explore))
        self._check_expressions()
        for name in ("at_most", "pins", "boosts"):
            if len(getattr(self, name)) > _MOST_ENTRIES:
                raise SettingError(name, f"has {len(getattr(self, name)):,} entries; {_MOST_ENTRIES:,} at most")
        for rank, item in self.pins.items():
            check_id(item, f"pins[{rank}]")
        if len(set(map(str, self.pins.values()))) < len(self.pins):
            raise SettingError("pins", "names an item twice: give each one rank")
        if self.diversity is not None and self.explore is not None:
            raise SettingError(
                "explore", "is given beside diversity, whose lists have no known chances: give one of both"
            )

    def _check_expressions(self) -> None:
        written: list[tuple[str, str]] = [("boosts", text) for text in self.boosts]
        written += [(n, text) for n in ("where", "seen") if isinstance(text := getattr(self, n), str)]
        for name, text in written:
            with said_by(name):
                parse(text)
        if self.score is not None:
            with said_by("score"):
                Score.parse(self.score)

    @property
    def orders(self) -> bool:
        """Whether anything but filters is set: then lists are more than the best of what is allowed."""
        return any((self.at_most, self.pins, self.boosts, self.score, self.diversity, self.explore))

    @classmethod
    def of(cls, given: Rules | Mapping[str, Any] | None) -> Rules | None:
        """Rules as a caller gives them: an object, a dict, or None."""
        return given if given is None or isinstance(given, Rules) else cls.from_dict(given)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The rules of a JSON request; unknown keys are refused.

        Example:
            >>> Rules.from_dict({"pins": {"1": 318}, "explore": {"temperature": 0.5, "seed": 1}}).explore
            Explore(temperature=0.5, seed=1)
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"rules are {shown(values)}; they must be a mapping of some of {', '.join(RULES)}")
        check_keys(values, RULES, "rules")
        return cls(**{name: value for name, value in values.items() if value is not None})


RULES = tuple(f.name for f in fields(Rules))


def _ranks(pins: Any) -> Any:
    """Ranks as whole numbers, which keys of JSON are not."""
    if not isinstance(pins, Mapping):
        return pins
    found = {int(k) if isinstance(k, str) and k.isdecimal() and len(k) < 10 else k: item for k, item in pins.items()}
    for rank in found:
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise SettingError("pins", f"has the rank {shown(rank)}; ranks are whole numbers from 1 on")
    return found
