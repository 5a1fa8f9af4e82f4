"""What a model can be called for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from polyrec.core.rules import Rules


@dataclass(frozen=True)
class User:
    """Who calls, and when; arguments as of `Recommender.recommend`."""

    user_id: int | str | None = None
    history: list[Any] | None = None
    user: Mapping[str, Any] | None = None
    context: Mapping[str, Any] | None = None
    time: float | str | None = None


@dataclass(frozen=True)
class Recommend:
    """Items for a user."""

    who: User
    k: int = 10
    task: str | None = None
    exclude_seen: bool | None = None
    candidates: list[Any] | None = None
    exclude: tuple[Any, ...] = ()
    rules: Rules | None = None


class Recommended(NamedTuple):
    """A list, as `Recommender.recommend` gives it, and what its rules could not keep."""

    rows: list[dict[str, Any]]
    unmet: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """Every task's prediction for given items."""

    who: User
    items: list[Any]


@dataclass(frozen=True)
class Search:
    """Items by what was typed."""

    who: User
    query: str
    k: int = 10
    task: str | None = None
    rules: Rules | None = None


@dataclass(frozen=True)
class Similar:
    """Items like one."""

    item: int | str
    k: int = 10


@dataclass(frozen=True)
class Explain:
    """Reasons for items."""

    who: User
    items: list[Any] | None = None
    k: int = 5
    task: str | None = None
    events: int = 3


Call = Recommend | Score | Search | Similar | Explain
