"""The web demo without its page: histories as lists of dicts, results as they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.core.names import ROW_KEYS
from polyrec.data.columns import FIRST
from polyrec.data.remote_requests import MAX_EVENTS, check_text, check_values
from polyrec.data.row_lists import row_events, with_lists
from polyrec.data.tables import ids, times
from polyrec.inference.explanation.explain import explain
from polyrec.inference.explanation.reasons import as_text
from polyrec.inference.predictions import predictions
from polyrec.inference.recommender import Recommender
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.web.covers import Covers
from polyrec.web.feedback import feedback_columns
from polyrec.web.results import BarScales, Prediction, Recommendation, Snapshot, move

Event = dict[str, Any]
_PAUSE = 60.0  # seconds between the last event of a history and one that is added to it
_SHOWN_KINDS = ("categorical", "multi", "numeric")  # of attributes: the others are long texts and vectors
_MOST_SHOWN = 80  # letters of one attribute
_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


class DemoSession:
    """A model, its catalog and, if there is a log, its users.

    Args:
        model, processor: as they were saved together.
        interactions: events of users to choose from, or None.
        users: their attributes, or None.
        k: number of recommendations.
        cover_addresses: show pictures that the catalog names by an address, see [`Covers`].
    """

    def __init__(
        self,
        model: PolyRecForRecommendation,
        processor: PolyRecProcessor,
        interactions: pa.Table | None = None,
        users: pa.Table | None = None,
        k: int = 10,
        cover_addresses: bool = False,
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
        self._places = {item: row for row, item in enumerate(self.titles)}
        self.feedback = feedback_columns(processor)
        self.covers = Covers(processor.items.table, cover_addresses)
        self._scales = BarScales(model, processor)

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
        event = {columns.item: self.known(item), **self._parsed(values)}
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

    def known(self, item: Any) -> Any:
        """The item, if it is one of the catalog."""
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
        self, history: Sequence[Event], user: Mapping[str, Any], before: Snapshot
    ) -> tuple[list[Recommendation], Snapshot]:
        """The list, and what the next one is compared with.

        Args:
            before: what the last call gave; {} = nothing to compare with.
        """
        found = self.recommender.recommend(list(history), k=self.k, user=user)
        items = [row["item"] for row in found]
        how: dict[str, Any] = {"user": user, "task": self.ranking_task, "recommender": self.recommender}
        explained = explain(self.model, self.processor, list(history), items, **how)
        reasons = {row["item"]: row["reason"] for row in explained}
        now: Snapshot = {
            row["item"]: (row["rank"], {self.ranking_task: row["score"], **{t: row[t] for t in self.other_tasks}})
            for row in found
        }
        best = found[0]["score"] if found else None
        shown = [
            Recommendation(
                rank,
                item,
                self.titles[item],
                move(before, item, rank),
                self._about(item),
                reasons[item],
                self._compared(values, before.get(item, (0, {}))[1], best),
                self.covers.source(self._row(item)),
            )
            for item, (rank, values) in now.items()
        ]
        return shown, now

    def gone(self, before: Snapshot, now: Snapshot) -> list[str]:
        """Titles of items that are no longer in the list."""
        return [self.titles[item] for item in before if item not in now]

    @property
    def ranking_task(self) -> str:
        """The task by which the catalog is ranked."""
        return next(iter(self.model.history_tasks or self.model.pair_tasks))

    @property
    def other_tasks(self) -> list[str]:
        """Tasks whose predictions stand beside the score of the ranking task."""
        names = (*self.model.history_tasks, *self.model.pair_tasks)
        return [name for name in names if name != self.ranking_task and name not in ROW_KEYS]

    def predictions(
        self, history: Sequence[Event], user: Mapping[str, Any], item: Any, before: Mapping[str, float]
    ) -> tuple[list[Prediction], dict[str, float]]:
        """What every task predicts for one item, and {task: prediction} to compare the next with."""
        row = np.array([self._row(self.known(item)) + FIRST])
        request = {"user": user, "context": None, "time": None}
        opened = self.processor.open_requests([{"history": list(history), **request}])
        with self.recommender.scorer() as scorer:
            (given,) = predictions(self.model, opened, [row], scorer)
        now = {name: float(values[0]) for name, values in given.items() if name in self.tasks}
        return self._compared(now, before), now

    def _compared(
        self, now: Mapping[str, float], before: Mapping[str, float], best: float | None = None
    ) -> list[Prediction]:
        return [
            Prediction(
                name, value, self._scales.share(name, value, best), value - before[name] if name in before else None
            )
            for name, value in now.items()
        ]

    def _row(self, item: Any) -> int:
        """Where an item stands in the catalog."""
        return self._places[item]

    def _about(self, item: Any) -> str:
        """Attributes of an item, e.g. "year 1995 · genres Crime, Drama"."""
        table, encoders = self.processor.items.table, self.processor.items.encoders
        names = [n for n, e in encoders.items() if e.kind in _SHOWN_KINDS and n != self.covers.column]
        texts = [(name, as_text(table[name][self._row(item)].as_py())) for name in names if name in table.column_names]
        return " · ".join(f"{name.replace('_', ' ')} {text[:_MOST_SHOWN]}" for name, text in texts if text)
