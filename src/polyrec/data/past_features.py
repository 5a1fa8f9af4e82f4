"""What was counted of the events before a log, for the events of the log.

Letters: R events of the log, F features, E events before it, T targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from polyrec.data.event_log import EventLog
from polyrec.data.log_tables import LogTables
from polyrec.data.prior_history import PriorHistory
from polyrec.data.statistics import RunningStatistics


class PastFeatures:
    """Features that come of what users did before the log.

    Args:
        past: statistics of it.
        tables: what these read.
    """

    def __init__(self, past: RunningStatistics, tables: LogTables) -> None:
        self.past, self._tables = past, tables
        self._known: tuple[PriorHistory, RunningStatistics] | None = None  # of the last log

    def fit(self, log: EventLog) -> dict[str, float]:
        """Learn the mean of each mark; gives their standard deviations."""
        past = log.prior_history
        known = [np.zeros(0) if past is None else past.marks[mark] for mark in self.past.targets]
        self.past.prior = np.array([v.mean() if len(v) else 0.0 for v in known])
        return {mark: float(v.std()) for mark, v in zip(self.past.targets, known, strict=True) if len(v)}

    def recount(self, log: EventLog) -> None:
        """Count the events before a log, and nothing else."""
        self.past.reset()
        self._known = None
        if log.prior_history is not None:
            self.past.update(self._tables.past(self.past, log))

    def of(self, log: EventLog, rows: np.ndarray) -> np.ndarray:
        """Features of some events of a log, float32 [rows, F]."""
        past = log.prior_history
        if past is None:
            return self.past.transform(self._tables.after_past(self.past, log, rows))
        if self._known is None or self._known[0] is not past:
            self._known = past, self.past.with_users(self._tables.past(self.past, log))
        return self._known[1].transform(self._tables.after_past(self.past, log, rows))

    def residuals(
        self, past: PriorHistory, targets: Sequence[str], marked: Mapping[str, str], spread: Mapping[str, float]
    ) -> np.ndarray:
        """What past events said against the mean of all, float32 [E, T], NaN where they say nothing of a target.

        Args:
            marked: {target: mark of the past that says the same}.
            spread: {mark: standard deviation}.
        """
        found = np.full((len(past.item), len(targets)), np.nan, dtype=np.float32)
        prior = dict(zip(self.past.targets, self.past.prior, strict=True))
        for target, mark in marked.items():
            found[:, targets.index(target)] = (past.marks[mark] - prior[mark]) / max(spread.get(mark, 1.0), 1e-6)
        return found
