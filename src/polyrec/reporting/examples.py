"""Recommendations of example users with titles and reasons; nobody is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polyrec.evaluation.page import Section, Table
from polyrec.tracking.tables import safe

_SHOWN = 8  # latest events of a history


@dataclass(frozen=True)
class Example:
    """One user.

    Args:
        events: in the history.
        history: titles of the latest events, oldest first.
        then: title of the user's next item, which the model has not seen here.
        rows: what `model.explain` gives: rank, title, score, reason.
    """

    events: int
    history: Sequence[str]
    then: str
    rows: Sequence[dict[str, Any]]


def example_sections(run: str, examples: Sequence[Example]) -> list[Section]:
    """A section per user, under the name of the run."""
    return [_section(f"Example {number} ({run})", example) for number, example in enumerate(examples, start=1)]


def _section(title: str, example: Example) -> Section:
    points = [
        f"Somebody with {example.events} earlier events, the latest: "
        + ", ".join(safe(name) for name in example.history[-_SHOWN:])
        + ".",
        f"Took next: {safe(example.then)}.",
    ]
    rows = [
        [f"{safe(title_of(row))}{' ◀' * (title_of(row) == example.then)}", f"{row['score']:.4f}", safe(row["reason"])]
        for row in example.rows
    ]
    return Section(title, points, Table(["recommended", "score", "reason"], rows))


def title_of(row: dict[str, Any]) -> str:
    """The title of an item, or its id where the catalog has no titles."""
    return str(row.get("title", row["item"]))
