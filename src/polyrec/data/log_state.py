"""What is known of a log so far and goes on with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from polyrec.data.event_log import EventLog
from polyrec.data.later_events import check_later
from polyrec.data.log_statistics import LogStatistics
from polyrec.data.release import first_times
from polyrec.data.stored_events import StoredEvents
from polyrec.data.trends import Trends


@dataclass(frozen=True)
class LogState:
    """Running statistics, recent popularity, the events of each user, and when items appeared; all advance in place.

    Args:
        statistics: None: nothing counts them.
        trends: recent popularity.
        stored_events: None: nobody keeps them.
        first_event: of each item, float64 seconds [N], inf = none so far.
    """

    statistics: LogStatistics | None
    trends: Trends
    stored_events: StoredEvents | None
    first_event: np.ndarray

    @property
    def counted(self) -> float:
        """The latest event counted or stored, seconds; -inf = none."""
        stored = -np.inf if self.stored_events is None else self.stored_events.last_time
        known = max(stored, self.trends.time)
        return known if self.statistics is None else max(known, self.statistics.last_time)

    @property
    def latest(self) -> float:
        """The latest event counted, or, where nothing is, the latest first event of an item; seconds, 0 = none."""
        known = self.first_event[np.isfinite(self.first_event)]
        return self.counted if np.isfinite(self.counted) else float(known.max(initial=0.0))

    def warm(self) -> None:
        """Compute what follows of the stored events and is kept, which the first request would wait for."""
        if self.statistics is not None and self.stored_events is not None:
            self.statistics.warm(self.stored_events)

    def see(self, log: EventLog) -> None:
        """Items that occur for the first time have been seen then."""
        np.minimum(self.first_event, first_times(log.item, log.time, len(self.first_event)), out=self.first_event)

    def advance(self, log: EventLog) -> None:
        """Count events, later than all known so far.

        Raises:
            ValueError: an event is not later; nothing is counted then.
        """
        self.prepared(log)()

    def prepared(self, log: EventLog) -> Callable[[], None]:
        """What [`advance`] has to compute, beside readers; the call of the result is short and changes the state."""
        own = log.own_rows
        check_later(log.time[own[np.argsort(log.row[own])]], self.counted)
        changes = []
        if self.statistics is not None and len(own):
            changes.append(self.statistics.prepared(log, self.stored_events))
        if self.stored_events is not None:
            changes.append(self.stored_events.prepared(log))

        def apply() -> None:
            for change in changes:
                change()
            self.see(log)
            self.trends.count(log)

        return apply

    def prepared_late(self, log: EventLog) -> Callable[[], None]:
        """The same of events that are not later than all known so far: they join the history of their users.

        No statistic of an item or an attribute counts them, nor recent popularity.
        """
        log.uncounted = np.ones(len(log), dtype=bool)
        stored, changes = self.stored_events, []
        if stored is not None and len(log):
            if self.statistics is not None:
                changes.append(self.statistics.prepared_late(log, stored))
            changes.append(stored.prepared(log))

        def apply() -> None:
            for change in changes:
                change()
            self.see(log)

        return apply
