"""Events in order, and the windows of them that a model reads.

An [`EventLog`] holds every event once, sorted by (person, time, order), in flat arrays. A [`SequenceDataset`] asks
questions about it: *candidates* (which item, seen after how many of the person's events, with which labels), cut
into windows of at most `max_history` events. Both are numpy only and without a Python loop over events.

Letters: R events, P people, C candidates, F statistics, T tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from polyrec.schema import STATISTICS


@dataclass
class EventLog:
    """All events, sorted by (person, time, order).

    Args:
        person: int64 [R], dense index of the person, ascending.
        item: int64 [R], row of the item table (1 = unknown item).
        time: float64 [R], seconds.
        order: int64 [R], rank of the event in time over the whole log (ties broken by the order column, then by row).
        row: int64 [R], row of the user's own table.
        user_ids: Arrow array [P], id of each person.
        labels: float32 [R, T], NaN = unknown.
        event_features: {name: [R] or [R, K]}, known once the event had happened.
        candidate_features: {name: [R] or [R, K]}, known before the answer.
        user_features: {name: [P] or [P, K]}.
    """

    person: np.ndarray
    item: np.ndarray
    time: np.ndarray
    order: np.ndarray
    row: np.ndarray
    user_ids: pa.Array
    labels: np.ndarray
    event_features: dict[str, np.ndarray] = field(default_factory=dict)
    candidate_features: dict[str, np.ndarray] = field(default_factory=dict)
    user_features: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        people = int(self.person[-1]) + 1 if len(self.person) else 0
        self.offsets = np.searchsorted(self.person, np.arange(people + 1))

    def __len__(self) -> int:
        return len(self.person)

    def visible(self, ties: str = "strict") -> np.ndarray:
        """How many of the person's events each event's candidate may see, int64 [R].

        "strict": those with an earlier time, so the lines of one basket never see each other. "order": those before
        it in the log, for files whose order within one second is meant.
        """
        index = np.arange(len(self))
        if ties == "order":
            return index - self.offsets[self.person]
        if ties != "strict":
            raise ValueError(
                f'ties must be "strict" (only earlier times are visible) or "order" (trust the order), not {ties!r}'
            )
        begins = np.ones(len(self), dtype=bool)
        begins[1:] = (np.diff(self.person) != 0) | (np.diff(self.time) != 0)
        return np.maximum.accumulate(np.where(begins, index, 0)) - self.offsets[self.person]

    def visible_before(self, cutoff: np.ndarray) -> np.ndarray:
        """How many events of each event's person lie before `cutoff` [R] (seconds), int64 [R]."""
        moments, rank = np.unique(self.time, return_inverse=True)
        span = len(moments) + 1
        stamp = self.person * span + rank  # ascending, as the log is sorted
        return np.searchsorted(stamp, self.person * span + np.searchsorted(moments, cutoff)) - self.offsets[self.person]


@dataclass
class Candidates:
    """Questions about a log, in any order.

    Args:
        event: int64 [C], the event of the log whose item is asked about.
        position: int64 [C], how many of the person's events are visible (counted from the person's first event).
        statistic: int64 [C], row of the data set's statistics; defaults to `event`.
    """

    event: np.ndarray
    position: np.ndarray
    statistic: np.ndarray = None  # type: ignore[assignment]  # filled by __post_init__

    def __post_init__(self) -> None:
        if self.statistic is None:
            self.statistic = self.event

    @staticmethod
    def concatenate(parts: list[Candidates]) -> Candidates:
        """All candidates of several sets, which share one log and one table of statistics."""
        return Candidates(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("event", "position", "statistic")))


class SequenceDataset:
    """Windows of one log: what a `DataLoader` iterates and the collator turns into batches.

    A person's candidates are grouped by how much they may see: those that see (b * stride, (b + 1) * stride] events
    share a window that ends at their last visible event and holds at most `max_history` events. With
    `stride == max_history` each event is read once (training); a smaller stride re-reads events so that each
    candidate sees at least `max_history - stride` of them (evaluation).

    Args:
        log: the events.
        candidates: what to ask.
        statistics: float32 [S, F] or None; rows 0..R-1 belong to the log's events, further rows to other views.
        task_names: names of the T label columns.
        max_history, stride: events per window, see above.
        shuffle_ties: draw the order of events of one time anew in every epoch (training): their order in a file is
            mostly chance, and a model that sees one order only learns it by heart. Windows draw for themselves, so
            at their edges an event may be asked twice.
        seed: of that order, which also depends on `set_epoch` and the window, so a resumed run draws the same.
        own_view_tasks: tasks that only candidates of the log's own view are asked (`statistic == event`): what comes
            next is no question to somebody whose latest events are hidden.
    """

    def __init__(
        self,
        log: EventLog,
        candidates: Candidates,
        task_names: list[str],
        statistics: np.ndarray | None = None,
        max_history: int = 200,
        stride: int | None = None,
        shuffle_ties: bool = False,
        seed: int = 0,
        own_view_tasks: tuple[str, ...] = (),
    ) -> None:
        self.log, self.task_names, self.statistics = log, task_names, statistics
        self.max_history, self.stride = max_history, stride or max_history
        self.shuffle_ties, self.seed, self.epoch = shuffle_ties, seed, 0
        self._own_view_columns = [task_names.index(name) for name in own_view_tasks]
        if not 1 <= self.stride <= max_history:
            raise ValueError(f"stride must be in 1..max_history = {max_history}, not {self.stride}")
        person = log.person[candidates.event]
        block = np.maximum(candidates.position - 1, 0) // self.stride
        sort = np.lexsort((candidates.event, candidates.position, block, person))
        self.candidates = Candidates(*(getattr(candidates, n)[sort] for n in ("event", "position", "statistic")))
        person, block = person[sort], block[sort]
        begins = np.ones(len(sort), dtype=bool)
        begins[1:] = (np.diff(person) != 0) | (np.diff(block) != 0)
        first = np.flatnonzero(begins)
        self._candidate_offsets = np.append(first, len(sort))
        self._person = person[first]
        last_position = self.candidates.position[self._candidate_offsets[1:] - 1] if len(first) else first
        self._stop = last_position
        self._start = np.maximum((block[first] + 1) * self.stride - max_history, 0)

    def __len__(self) -> int:
        return len(self._person)

    @property
    def lengths(self) -> list[int]:
        """Padded-length proxy of each window (events or candidates, whichever are more), for bucketing."""
        return np.maximum(self._stop - self._start, np.diff(self._candidate_offsets)).tolist()

    @property
    def own_view(self) -> np.ndarray:
        """Which candidates see all that the log knew at their time, bool [C]."""
        return self.candidates.statistic == self.candidates.event

    @property
    def num_candidates(self) -> int:
        """Candidates of all windows."""
        return len(self.candidates.event)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One window as numpy views: the batch contract without the batch dimension, plus `candidate_rows`."""
        log, person = self.log, self._person[index]
        base, start, stop = log.offsets[person], self._start[index], self._stop[index]
        asked = slice(self._candidate_offsets[index], self._candidate_offsets[index + 1])
        rows, statistic = self.candidates.event[asked], self.candidates.statistic[asked]
        events: slice | np.ndarray = slice(base + start, base + stop)
        if self.shuffle_ties:
            events, rows, statistic = self._shuffled(index, base + start, base + stop, rows, statistic)
        event_features = {k: v[events] for k, v in log.event_features.items()}
        event_features |= {k: v[events] for k, v in log.candidate_features.items()}
        candidate_features = {k: v[rows] for k, v in log.candidate_features.items()}
        if self.statistics is not None:
            event_features[STATISTICS] = self.statistics[events]
            candidate_features[STATISTICS] = self.statistics[statistic]
        labels = log.labels[rows]
        if self._own_view_columns:
            labels[np.ix_(statistic != rows, self._own_view_columns)] = np.nan
        return {
            "item_ids": log.item[events],
            "event_features": event_features,
            "user_features": {k: v[person] for k, v in log.user_features.items()},
            "candidate_ids": log.item[rows],
            "candidate_positions": self.candidates.position[asked] - start,
            "candidate_features": candidate_features,
            "labels": {task: labels[:, j] for j, task in enumerate(self.task_names)},
            "candidate_rows": np.arange(asked.start, asked.stop),
        }

    def set_epoch(self, epoch: int) -> None:
        """Draw other orders of ties (the data loader of accelerate calls this)."""
        self.epoch = epoch

    def _shuffled(
        self, index: int, start: int, stop: int, rows: np.ndarray, statistic: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Exchange events of one time among the window's events and candidates; nothing else moves."""
        last = max(stop, int(rows.max()) + 1) if len(rows) else stop
        span = np.arange(start, last)
        noise = np.random.default_rng((self.seed, self.epoch, index)).random(len(span))
        moved = span[np.lexsort((noise, self.log.time[span]))]
        # A candidate moves with the event at its place only if it is asked in order, i.e. right before it happened.
        in_order = (rows >= start) & (rows < last) & (statistic == rows)
        place = np.where(in_order, rows - start, 0)
        moved_rows = np.where(in_order, moved[place], rows)
        return moved[: stop - start], moved_rows, np.where(in_order, moved_rows, statistic)

    def labels(self) -> np.ndarray:
        """Labels of all candidates in `candidate_rows` order, float32 [C, T]."""
        return self.log.labels[self.candidates.event]

    def people(self) -> np.ndarray:
        """Person of each candidate in `candidate_rows` order, int64 [C]."""
        return self.log.person[self.candidates.event]

    def with_candidates(
        self, candidates: Candidates, statistics: np.ndarray | None, stride: int | None = None
    ) -> SequenceDataset:
        """Other questions about the same log."""
        return SequenceDataset(
            self.log,
            candidates,
            self.task_names,
            statistics,
            self.max_history,
            self.stride if stride is None else stride,
        )
