"""Events in order, and examples of them.

An [`EventLog`] holds every event once, sorted by (user, time, order), in flat arrays.

Letters: R events, P users, C candidates, F statistics, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from polyrec.data.prior_history import PriorHistory
from polyrec.data.queries import Queries
from polyrec.data.storage import Storage

_BLOCK = 1 << 21  # events


@dataclass(repr=False)
class EventLog:
    """All events, sorted by (user, time, order).

    Args:
        user: int64 [R], dense index of the user, ascending.
        item: int64 [R], row of the item table (1 = unknown item).
        time: float64 [R], seconds.
        order: int64 [R], rank of the event in time over the whole log (ties broken by the order column, then by row).
        row: int64 [R], row of the user's own table.
        user_ids: Arrow array [P], id of each user.
        labels: float32 [R, T], NaN = unknown.
        event_features: {name: [R] or [R, K]}, known once the event had happened.
        candidate_features: {name: [R] or [R, K]}, known before the event.
        user_features: {name: [P] or [P, K]}.
        measures: {name: float32 [R]}, numeric feedback that running statistics count beside the labels.
        prior_history: events before the log, of the same users.
        sample_weight: {task: float32 [R]}, weight of the event's label in the task's loss; tasks that are not in it
            count every label once.
        queries: what users typed before the event, if the log says so.
        untimed: bool [R], events of a request, or of the list of a row (`Columns.history`), whose times are made up:
            only their order is known. They speak for their user alone, and are no targets. None: no such events.
        uncounted: bool [R], events that came too late for running statistics to count them: they speak for their user
            alone. None: no such events.
        set_until: seconds. The log has no times: each user's events before this one are a set, which stands in a drawn
            order, and later ones are held out and see all of it, see `polyrec.data.sets`. None: events have an order.
        drawn: times are places of a drawn order.
        together: int64 [P], users with one number belong together: they are of one fold, and held out as one. None:
            each user stands alone.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    order: np.ndarray
    row: np.ndarray
    user_ids: pa.Array
    labels: np.ndarray
    event_features: dict[str, np.ndarray] = field(default_factory=dict)
    candidate_features: dict[str, np.ndarray] = field(default_factory=dict)
    user_features: dict[str, np.ndarray] = field(default_factory=dict)
    measures: dict[str, np.ndarray] = field(default_factory=dict)
    prior_history: PriorHistory | None = None
    sample_weight: dict[str, np.ndarray] = field(default_factory=dict)
    queries: Queries | None = None
    untimed: np.ndarray | None = None
    uncounted: np.ndarray | None = None
    set_until: float | None = None
    drawn: bool = False
    together: np.ndarray | None = None

    def __post_init__(self) -> None:
        users = int(self.user[-1]) + 1 if len(self.user) else 0
        self.offsets = np.searchsorted(self.user, np.arange(users + 1))

    def __repr__(self) -> str:
        return f"EventLog({len(self):,} events, {len(self.offsets) - 1:,} users, {len(np.unique(self.item)):,} items)"

    def __len__(self) -> int:
        return len(self.user)

    @property
    def own_rows(self) -> np.ndarray:
        """The events that are rows of the table, int64; those of the lists of rows are none."""
        return np.arange(len(self)) if self.untimed is None else np.flatnonzero(~self.untimed)

    @property
    def groups(self) -> np.ndarray:
        """A number of each user, int64 [P], the same for those who belong together."""
        return np.arange(len(self.user_ids)) if self.together is None else self.together

    @property
    def user_codes(self) -> np.ndarray:
        """Who each event is of, int64 [R]: its user, and of rows with lists those of one user id are one."""
        if self.together is None:
            return self.user
        return np.asarray(self.user_ids.dictionary_encode().indices).astype(np.int64)[self.user]

    def visible(self, ties: str = "strict") -> np.ndarray:
        """How many of the user's events each event's candidate may see, int64 [R].

        "strict": those with an earlier time, so the lines of one basket never see each other. "order": those before
        it in the log, for files whose order within one second is meant. Of a set: those before it in the drawn order.
        """
        if self.set_until is not None:
            index = np.arange(len(self))
            return np.minimum(index - self.offsets[self.user], self.visible_before(np.full(len(self), self.set_until)))
        if ties == "order":
            return np.arange(len(self)) - self.offsets[self.user]
        if ties != "strict":
            raise ValueError(
                f'ties must be "strict" (only earlier times are visible) or "order" (trust the order), not {ties!r}'
            )
        found = np.empty(len(self), dtype=np.int64)
        for own in self.user_blocks():
            user, time, index = self.user[own], self.time[own], np.arange(own.start, own.stop)
            begins = np.ones(len(user), dtype=bool)
            begins[1:] = (np.diff(user) != 0) | (np.diff(time) != 0)
            found[own] = np.maximum.accumulate(np.where(begins, index, 0)) - self.offsets[user]
        return found

    def user_blocks(self, size: int = _BLOCK) -> Iterator[slice]:
        """Events in blocks of whole users, of about `size` events unless one user has more."""
        begin = 0
        while begin < len(self):
            user = int(self.user[min(begin + size, len(self)) - 1])
            end = int(self.offsets[user]) if self.offsets[user] > begin else int(self.offsets[user + 1])
            yield slice(begin, end)
            begin = end

    def visible_before(self, cutoff: np.ndarray) -> np.ndarray:
        """How many events of each event's user lie before `cutoff` [R] (seconds), int64 [R]."""
        timestamps, rank = np.unique(self.time, return_inverse=True)
        span = len(timestamps) + 1
        stamp = self.user * span + rank  # ascending, as the log is sorted
        return np.searchsorted(stamp, self.user * span + np.searchsorted(timestamps, cutoff)) - self.offsets[self.user]


@dataclass(repr=False)
class Candidates:
    """Examples of a log, in any order.

    Args:
        event: int64 [C], the event of the log whose item is the candidate.
        position: int64 [C], how many of the user's events are visible (counted from the user's first event).
        statistic: int64 [C], row of the data set's statistics; defaults to `event`.
    """

    event: np.ndarray
    position: np.ndarray
    statistic: np.ndarray = None  # type: ignore[assignment]  # filled by __post_init__

    def __post_init__(self) -> None:
        if self.statistic is None:
            self.statistic = self.event

    def __repr__(self) -> str:
        return f"Candidates({len(self.event):,})"

    def sorted_for(self, log: EventLog) -> Candidates:
        """The same in the order of (user, position, event), which those of one view of a log have already."""
        event, position = self.event, self.position
        later = np.diff(event) > 0  # events of a log are in the order of its users
        if (later & ((np.diff(position) >= 0) | (np.diff(log.user[event]) > 0))).all():
            return self
        sort = np.lexsort((event, position, log.user[event]))
        return Candidates(event[sort], position[sort], self.statistic[sort])

    def kept(self, storage: Storage, name: str) -> Candidates:
        """The same, where a storage has them."""
        event, position = (storage.keep(f"{name}.{n}", getattr(self, n)) for n in ("event", "position"))
        own = self.statistic is self.event
        return Candidates(event, position, event if own else storage.keep(f"{name}.statistic", self.statistic))

    @staticmethod
    def concatenate(parts: list[Candidates]) -> Candidates:
        """All candidates of several sets, which share one log and one table of statistics."""
        return Candidates(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("event", "position", "statistic")))


class WindowSpans(NamedTuple):
    """Where windows lie, int64 [B] each: user, events start:stop of that user, candidates first:last."""

    user: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    first_candidate: np.ndarray
    last_candidate: np.ndarray
