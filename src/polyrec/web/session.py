"""The web demo without its page: histories as lists of dicts, results as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from polyrec.core.names import ROW_KEYS
from polyrec.data.columns import FIRST
from polyrec.data.remote_requests import MAX_EVENTS, check_text, check_values
from polyrec.data.row_lists import row_events, with_lists
from polyrec.data.tables import ids, times
from polyrec.inference.explanation.explain import explain
from polyrec.inference.predictions import predictions
from polyrec.inference.recommender import Recommender
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor

Event = dict[str, Any]
_PAUSE = 60.0  # seconds between the last event of a history and one that is added to it
_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


@dataclass(frozen=True)
class Feedback:
    """A column of feedback that a visitor may fill in.

    Args:
        name: of the column.
        number: whether the model takes numbers there.
        choices: the values it knows, in order; empty = any number.
    """

    name: str
    number: bool
    choices: tuple[Any, ...] = ()

    def parse(self, value: Any) -> Any:
        """What was chosen or typed as the column has it; nothing is unknown."""
        if value is None or value == "":
            return None
        if not self.number:
            return value
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{self.name} is {value!r}; it must be a number") from None


class DemoSession:
    """A model, its catalog and, if there is a log, its users.

    Args:
        model, processor: as they were saved together.
        interactions: events of users to choose from, or None.
        users: their attributes, or None.
        k: number of recommendations.
    """

    def __init__(
        self,
        model: PolyRecForRecommendation,
        processor: PolyRecProcessor,
        interactions: pa.Table | None = None,
        users: pa.Table | None = None,
        k: int = 10,
    ) -> None:
        self.model, self.processor, self.k = model, processor, k
        self.recommender = Recommender(model, processor)
        self.interactions = None if interactions is None else with_lists(interactions, processor.columns)
        self.users = users
        shown = processor.columns.title
        self.titles = {
            item: f"{title or ''} [{item}]".strip()
            for item, title in zip(
                processor.items.ids.to_pylist(),
                processor.items.table[shown].to_pylist()
                if shown in processor.items.table.column_names
                else [""] * len(processor.items.ids),
                strict=True,
            )
        }
        self.feedback = _feedback(processor)

    @property
    def tasks(self) -> list[str]:
        """Tasks that score one item."""
        return list(self.model.pair_tasks)

    # ------------------------------------------------------------- users
    def user_ids(self, most: int = 200) -> list[Any]:
        """Ids of users of the log, those with the most events first."""
        if self.interactions is None:
            return []
        counted = pc.value_counts(ids(self.interactions, self.processor.columns.user, "interactions", "user"))
        order = pc.sort_indices(counted, sort_keys=[("counts", "descending"), ("values", "ascending")])
        return counted.field("values").take(order[:most]).to_pylist()

    def history_of(self, user: Any) -> list[Event]:
        """The events of a user, oldest first, the last that the model reads."""
        if self.interactions is None:
            return []
        columns = self.processor.columns
        own = self._rows(self.interactions, columns.user, user, "interactions")
        if columns.history is not None:  # of several rows the latest
            row = int(np.argsort(times(own, columns, "interactions"), kind="stable")[-1])
            return row_events(own, columns, row).to_pylist()[-self.processor.max_history :]
        seconds = times(own, columns, "interactions")
        latest = np.argsort(seconds, kind="stable")[-self.processor.max_history :]
        own = own.take(pa.array(latest))
        encoders = self.processor.event_encoders
        wanted = dict.fromkeys(
            [columns.item, *(f.name for f in self.feedback), *encoders["event"], *encoders["candidate"]]
        )
        events = own.select([name for name in wanted if name in own.column_names]).to_pylist()
        if columns.time is None:
            return events
        timestamps = seconds[latest] * _UNITS[columns.time_unit]
        return [{**event, columns.time: float(t)} for event, t in zip(events, timestamps, strict=True)]

    def attributes_of(self, user: Any) -> dict[str, Any]:
        """What the model reads of a user."""
        if self.users is None:
            return {}
        own = self._rows(self.users, self.processor.columns.user, user, "users")
        read = [n for n, e in self.processor.users.encoders.items() if e.kind != "text" and n in own.column_names]
        return own.select(read).to_pylist()[0] if own.num_rows else {}

    def _rows(self, table: pa.Table, key: str, user: Any, name: str) -> pa.Table:
        known = ids(table, key, name, "user")
        return table.filter(pc.equal(known.cast(pa.large_string()), str(user)))

    # ------------------------------------------------------------ histories
    def find(self, text: str, most: int = 20) -> list[tuple[str, Any]]:
        """(label, id) of items whose title or id holds every word of the text; whole matches and short titles first."""
        check_text(text, "the text to search for")
        words = text.lower().split()
        if not words:
            return []
        found = [(label, item) for item, label in self.titles.items() if all(w in label.lower() for w in words)]
        return sorted(found, key=lambda entry: (str(entry[1]) != text.strip(), len(entry[0])))[:most]

    def added(self, history: Sequence[Event], item: Any, values: Mapping[str, Any]) -> list[Event]:
        """The history with one event more."""
        columns = self.processor.columns
        if len(history) >= MAX_EVENTS:
            raise ValueError(f"the history has {len(history):,} events, and holds no more")
        event = {columns.item: self._known(item), **self._parsed(values)}
        if history and columns.time is not None and columns.time in history[-1]:
            event[columns.time] = history[-1][columns.time] + _PAUSE * _UNITS[columns.time_unit]
        return [*history, event]

    def changed(self, history: Sequence[Event], position: int, values: Mapping[str, Any]) -> list[Event]:
        """The history with other feedback of one event."""
        self._check(history, position)
        return [{**event, **self._parsed(values)} if n == position else event for n, event in enumerate(history)]

    def removed(self, history: Sequence[Event], position: int) -> list[Event]:
        """The history without one event."""
        self._check(history, position)
        return [event for n, event in enumerate(history) if n != position]

    def labels(self, history: Sequence[Event]) -> list[tuple[str, int]]:
        """(what is shown of an event, its position), the latest first."""
        key, names = self.processor.columns.item, [f.name for f in self.feedback]
        found = []
        for n, event in enumerate(history):
            said = ", ".join(f"{name} {event[name]}" for name in names if event.get(name) is not None)
            title = self.titles.get(event[key], f"unknown [{event[key]}]")
            found.append((f"{n + 1}. {title}" + (f" ({said})" if said else ""), n))
        return found[::-1]

    def _known(self, item: Any) -> Any:
        check_values({"item": item}, "the choice")
        if isinstance(item, list | tuple) or item not in self.titles:
            raise ValueError("choose an item of the catalog: search for a title, then choose one of those found")
        return item

    def _parsed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        check_values(values, "the feedback")
        columns = {f.name: f for f in self.feedback}
        return {name: columns[name].parse(value) for name, value in values.items()}

    def _check(self, history: Sequence[Event], position: int | None) -> None:
        if not isinstance(position, int) or not 0 <= position < len(history):
            raise ValueError("choose an event of the history first")

    # -------------------------------------------------------------- predictions
    def recommendations(
        self, history: Sequence[Event], user: Mapping[str, Any], before: Mapping[Any, int]
    ) -> tuple[list[list[Any]], dict[Any, int]]:
        """Rows [rank, move, title, score, every other task ..., reason], and {item: rank} to compare the next with.

        Args:
            before: what the last call gave; {} = nothing to compare with.
        """
        found = self.recommender.recommend(list(history), k=self.k, user=user)
        items = [row["item"] for row in found]
        reasons = {
            row["item"]: row["reason"]
            for row in explain(self.model, self.processor, list(history), items, user=user, task=self.ranking_task)
        }
        ranks = {row["item"]: row["rank"] for row in found}
        rows = [
            [
                row["rank"],
                _move(before, row["item"], row["rank"]),
                self.titles[row["item"]],
                round(row["score"], 3),
                *(round(value, 3) for name, value in row.items() if name not in ROW_KEYS),
                reasons[row["item"]],
            ]
            for row in found
        ]
        return rows, ranks

    @property
    def ranking_task(self) -> str:
        """The task by which the catalog is ranked."""
        return next(iter(self.model.history_tasks or self.model.pair_tasks))

    @property
    def headers(self) -> list[str]:
        """Of the rows of [`recommendations`]."""
        others = [name for name in (*self.model.history_tasks, *self.model.pair_tasks) if name != self.ranking_task]
        return ["#", "moved", "item", f"score ({self.ranking_task})", *others, "reason"]

    def predictions(
        self, history: Sequence[Event], user: Mapping[str, Any], item: Any, before: Mapping[str, float]
    ) -> tuple[list[list[Any]], dict[str, float]]:
        """Rows [task, prediction, change] about one item, and {task: prediction} to compare the next with."""
        row = np.array([list(self.titles).index(self._known(item)) + FIRST])
        request = {"user": user, "context": None, "time": None}
        with torch.no_grad(), self.model.eval_mode() as model:
            items = self.recommender.items
            opened = self.processor.open_requests([{"history": list(history), **request}])
            (given,) = predictions(model, opened, [row], items)
        now = {name: float(values[0]) for name, values in given.items() if name in self.tasks}
        rows = [
            [name, round(value, 4), f"{value - before[name]:+.4f}" if name in before else ""]
            for name, value in now.items()
        ]
        return rows, now


def _move(before: Mapping[Any, int], item: Any, rank: int) -> str:
    if not before:
        return ""
    if item not in before:
        return "new"
    moved = before[item] - rank
    return "=" if moved == 0 else f"{'↑' if moved > 0 else '↓'} {abs(moved)}"


def _feedback(processor: PolyRecProcessor) -> list[Feedback]:
    """Feedback that can be typed: numbers and categories, labels included."""
    rules = [task.parsed_label for task in processor.tasks]
    numbers = dict.fromkeys(rule.column for rule in rules if rule is not None and not rule.words)
    if processor.statistics is not None:
        numbers |= dict.fromkeys(processor.statistics.measures)
    encoders = processor.event_encoders["event"]
    found = []
    for name in dict.fromkeys([*encoders, *numbers]):
        encoder = encoders.get(name)
        if encoder is not None and encoder.kind not in ("categorical", "numeric"):
            continue
        number = name in numbers or encoder is None or encoder.kind == "numeric"
        known = [] if encoder is None or encoder.kind == "numeric" else encoder.vocabulary
        choices = sorted({float(value) for value in known}) if number else known
        found.append(Feedback(name, number, tuple(choices)))
    return found
