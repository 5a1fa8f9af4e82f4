"""`DataReport`: what a processor found in its tables, and what in them would mislead; it names no user in files."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from polyrec.core.escapes import printable
from polyrec.core.lines import folded
from polyrec.core.stack import caller_level
from polyrec.data.id_match import DataWarning, IdMatch
from polyrec.data.leaks import Separation

_WIDTH = 12  # of a line's name


@dataclass
class SplitFacts:
    """Rows of one split.

    Args:
        rows: events that are predicted.
        users: distinct ones.
        first, last: times of the first and last event, ISO; "" of none.
        labels: {task: mean of the known labels; None where none is known}.
        unseen_items: share of rows whose item has no training event.
        unseen_users: share of rows whose user has no training event.
        unranked: {retrieval task: positive rows whose item is not in the catalog, which no list can hold}.
    """

    rows: int
    users: int
    first: str = ""
    last: str = ""
    labels: dict[str, float | None] = field(default_factory=dict)
    unseen_items: float = 0.0
    unseen_users: float = 0.0
    unranked: dict[str, int] = field(default_factory=dict)


@dataclass
class DataReport:
    """Facts about the tables of [`PolyRecProcessor.fit`] and the split of its log; shares are of rows, in [0, 1].

    `print(processor.data_report)` shows it, `to_dict()` gives plain values for JSON, without ids of users.

    Args:
        rows, users, items: of the interactions; distinct users and items in them.
        events_per_user: {"min", "median", "p90", "max"}.
        largest_user: share of the rows of the user with most.
        time: {"first", "last": ISO, "resolution": "day" ... "second" or finer, "distinct": times}; empty without times.
        ties: rows whose user has another event at the same time.
        blind: rows that see no event of their user, as all that are not later have the same time.
        lists: {"column": of the items before each row, "median": ids in it, "empty": share of rows}; empty without such
            a column.
        repeats: rows whose user had the item in another row before.
        duplicates: rows that equal another one in every column.
        matches: ids that one table uses, looked up in another.
        constant: columns with one value only, e.g. "context.device".
        sparse: {column: share of rows with a value} of columns that are nearly empty.
        labels: {task: {"rows", "mean", "min", "max"}} of the known labels, "rows" alone where there are none.
        separations: inputs of which one alone tells a label.
        split: {"train", "validation", "test": [`SplitFacts`]}; empty before `split`.
        trees: which pair tasks could have trees beside them if LightGBM were installed; "" if it is, or none would.
        trending: {retrieval task: whether it reads recent popularity, and why}; empty before `split`.
        warnings: what would mislead, a sentence each.

    Example:
        >>> report = DataReport(rows=3, users=2, items=2, warnings=["every event has the same time"])
        >>> report
        DataReport(rows=3, users=2, items=2, warnings=1)
        >>> print(report)
        Data
          events      3 of 2 users and 2 items
        ! every event has the same time
    """

    rows: int
    users: int
    items: int
    events_per_user: dict[str, float] = field(default_factory=dict)
    largest_user: float = 0.0
    time: dict[str, Any] = field(default_factory=dict)
    ties: float = 0.0
    blind: float = 0.0
    lists: dict[str, Any] = field(default_factory=dict)
    repeats: float = 0.0
    duplicates: int = 0
    matches: list[IdMatch] = field(default_factory=list)
    constant: list[str] = field(default_factory=list)
    sparse: dict[str, float] = field(default_factory=dict)
    labels: dict[str, dict[str, float]] = field(default_factory=dict)
    separations: list[Separation] = field(default_factory=list)
    split: dict[str, SplitFacts] = field(default_factory=dict)
    trees: str = ""
    trending: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ids of users, which examples may hold, are left out."""
        found = asdict(self)
        found["matches"] = [asdict(m) | _NO_IDS if m.private else asdict(m) for m in self.matches]
        for match in found["matches"]:
            match |= {name: list(match[name]) for name in ("examples", "known_examples")}
        masked = {m.text(): m.text(show_ids=False) for m in self.matches if m.private}
        found["warnings"] = [masked.get(text, text) for text in self.warnings]
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what [`to_dict`] gave; keys of newer versions are left."""
        known = {f.name for f in fields(cls)}
        found = {name: value for name, value in values.items() if name in known}
        found["matches"] = [
            IdMatch(**m | {n: tuple(m[n]) for n in ("examples", "known_examples")}) for m in found.get("matches", [])
        ]
        found["separations"] = [Separation(**s) for s in found.get("separations", [])]
        found["split"] = {name: SplitFacts(**part) for name, part in found.get("split", {}).items()}
        return cls(**found)

    def lines(self) -> list[tuple[str, str]]:
        """What the report says but its split and its warnings, (name, text) a line."""
        events = f"{self.rows:,} of {self.users:,} users and {self.items:,} items"
        found = [("events", events)]
        if per := self.events_per_user:
            numbers = ", ".join(f"{name} {value:,.0f}" for name, value in per.items())
            found.append(("per user", f"{numbers}; the largest has {_percent(self.largest_user)} of rows"))
        found += self._time_lines()
        if self.events_per_user:
            where = "an earlier row" if self.time else "another row, too"
            repeats = f"{_percent(self.repeats)} of rows are an item that their user has in {where}"
            found.append(("repeats", f"{repeats}; {self.duplicates:,} exact duplicates"))
        for m in self.matches:
            unused = f"; {m.unused:,} of its {m.known:,} ids are in no row"
            found.append(("ids", m.summary() + unused))
        if self.constant:
            found.append(("constant", ", ".join(self.constant)))
        if self.sparse:
            found.append(("sparse", ", ".join(f"{n} ({_percent(share)} known)" for n, share in self.sparse.items())))
        for task, label in self.labels.items():
            known = f"{label['rows']:,} known"
            if label["rows"] and label["min"] == label["max"]:
                known += f", all {label['min']:g}"
            elif label["rows"]:
                known += f", mean {label['mean']:.4g} ({label['min']:g} to {label['max']:g})"
            found.append(("label", f"{task}: {known}"))
        if self.trees:
            found.append(("trees", self.trees))
        return [*found, *(("trending", f"{task}: {text}") for task, text in self.trending.items())]

    def _time_lines(self) -> list[tuple[str, str]]:
        """What gives the events of a user their order."""
        found = []
        if self.time:
            t = self.time
            span = f"{t['first']} to {t['last']}; {t['distinct']:,} distinct, resolution {t['resolution']}"
            found.append(("time", span))
        if self.lists:
            shape = f"median {self.lists['median']:,.0f} ids, {_percent(self.lists['empty'])} of them empty"
            found.append(("lists", f"{self.lists['column']}: {shape}; each row is a sequence of its own"))
        elif self.time:
            found.append(("ties", f"{_percent(self.ties)} of rows share their time with another event of their user"))
        elif self.events_per_user:
            found.append(("time", "none: the events of a user are a set, whatever their order in the file"))
        return found

    def split_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and a row of cells for each split."""
        tasks = list(next(iter(self.split.values())).labels) if self.split else []
        header = ["split", "rows", "users", "from", "to", *tasks, "unseen items", "unseen users", "unranked"]
        rows = [
            [
                name,
                f"{part.rows:,}",
                f"{part.users:,}",
                part.first,
                part.last,
                *("" if (mean := part.labels[task]) is None else f"{mean:.4g}" for task in tasks),
                _percent(part.unseen_items),
                _percent(part.unseen_users),
                ", ".join(f"{number:,}" for number in part.unranked.values()),
            ]
            for name, part in self.split.items()
        ]
        return header, rows

    def __str__(self) -> str:
        lines = ["Data", *(folded(printable(f"  {name:<{_WIDTH}}{text}"), _WIDTH + 2) for name, text in self.lines())]
        if self.split:
            header, rows = self.split_table()
            widths = [max(len(row[n]) for row in [header, *rows]) for n in range(len(header))]
            for row in [header, *rows]:
                cells = "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
                lines.append(printable(f"  {cells}".rstrip()))
        return "\n".join([*lines, *(printable(f"! {text}") for text in self.warnings)])

    def __repr__(self) -> str:
        return f"DataReport(rows={self.rows}, users={self.users}, items={self.items}, warnings={len(self.warnings)})"

    def warn(self, texts: Iterable[str]) -> None:
        """Add warnings that the report does not have yet, each also as a [`DataWarning`]."""
        new = [text for text in dict.fromkeys(texts) if text not in self.warnings]
        self.warnings += new
        _raise(new)

    def show(self, whole: bool = True) -> None:
        """Print the report to stderr, in the first process of a distributed run only.

        Args:
            whole: False raises the warnings alone, each as a [`DataWarning`].
        """
        if not whole:
            _raise(self.warnings)
        elif main_process():
            print(self, file=sys.stderr)


_NO_IDS: dict[str, Any] = {"examples": (), "known_examples": (), "difference": ""}


def _raise(texts: Iterable[str]) -> None:
    if main_process():
        for text in texts:
            warnings.warn(text, DataWarning, stacklevel=caller_level())


def main_process() -> bool:
    """Whether this is the first process, or the only one, of a launch by `torchrun` or `accelerate`."""
    return os.environ.get("RANK", "0") == "0"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
