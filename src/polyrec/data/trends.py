"""Recent popularity of the retrieval tasks that read it: for the rows of a log, and for requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyrec.core.schema import REFUSED
from polyrec.data.event_log import EventLog
from polyrec.data.trending import Mixture, RecentCounts, Trending, request_trending


def positive_items(log: EventLog, task: str) -> np.ndarray:
    """Items of events, 0 where the label of a task is known to be 0, and in lists of rows, int64 [R]."""
    refused = log.event_features.get(REFUSED + task)
    left_out = np.zeros(len(log), dtype=bool) if refused is None else refused > 0
    return np.where(left_out if log.untimed is None else left_out | log.untimed, 0, log.item)


class Trends:
    """What is popular now, by task, and what was popular at each time of the logs.

    Args:
        mixtures: {task: the option `trending` of its head}.
        num_items: rows of the item table.
        recent: what was counted so far; None: nothing.
    """

    def __init__(
        self, mixtures: Mapping[str, Mixture], num_items: int, recent: dict[str, RecentCounts] | None = None
    ) -> None:
        counts = {task: RecentCounts(own, num_items) for task, own in mixtures.items()} if recent is None else recent
        self.mixtures, self.num_items, self.recent = mixtures, num_items, counts
        self._logs: list[tuple[EventLog, np.ndarray | None, Trending]] = []

    @property
    def time(self) -> float:
        """The latest event counted, seconds; -inf = none."""
        return max((recent.time for recent in self.recent.values()), default=-np.inf)

    def count(self, log: EventLog, rows: np.ndarray | None = None) -> None:
        """Count events, bool [R], none before those counted so far; None: all of the log."""
        event = np.arange(len(log)) if rows is None else np.flatnonzero(rows)
        event = event[np.argsort(log.time[event], kind="stable")]
        for task, recent in self.recent.items():
            recent.add(log.time[event], positive_items(log, task)[event])

    def extend(self, num_items: int) -> None:
        """There are more items now."""
        self.num_items = num_items
        for recent in self.recent.values():
            recent.extend(num_items)

    def of_log(self, log: EventLog, source: np.ndarray | None) -> Trending | None:
        """What was popular at each time of a log, counted of the events in `source`; None: no task reads it."""
        if not self.mixtures:
            return None
        for known, counted, found in self._logs:
            if known is log and counted is source:
                return found
        items = {task: positive_items(log, task) for task in self.mixtures}
        time = log.time
        if source is not None:
            time, items = time[source], {task: own[source] for task, own in items.items()}
        found = Trending(self.mixtures, time, items, self.num_items)
        self._logs.append((log, source, found))
        return found

    def of_requests(
        self, log: EventLog, own: Sequence[np.ndarray], num_candidates: Sequence[int]
    ) -> list[dict[str, Any]]:
        """What all candidates of each request see, with some of its own events counted, int64 each."""
        if not self.recent:
            return [{} for _ in own]
        items = {task: positive_items(log, task) for task in self.recent}

        def seen(rows: np.ndarray, number: int) -> dict[str, Any]:
            return request_trending(self.recent, log.time[rows], {t: i[rows] for t, i in items.items()}, number)

        common = seen(np.zeros(0, dtype=np.int64), 0)["trending"]  # of all requests without such events
        return [
            seen(rows, number)
            if len(rows)
            else {"trending": common, "candidate_trending": np.ones(number, dtype=np.int64)}
            for rows, number in zip(own, num_candidates, strict=True)
        ]
