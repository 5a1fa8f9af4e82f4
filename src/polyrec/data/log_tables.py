"""What running statistics read of a log: times, keys and targets of some of its events.

Letters: R events, T targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from polyrec.data.catalog import EntityTable
from polyrec.data.columns import ColumnEncoder
from polyrec.data.event_log import EventLog
from polyrec.data.event_table import Codes, EventTable
from polyrec.data.statistic_keys import key_names, past_table, statistic_keys
from polyrec.data.statistics import RunningStatistics

AFTER_PAST = 1.0  # seconds; events of the past have the time 0
_ALL = slice(None)


@dataclass
class LogTables:
    """Makes the tables of statistics.

    Args:
        items: the catalog.
        encoders: {"user": {...}, "candidate": {...}}, encoders of the attributes that may be keys.
        label_columns: of the log's labels, those that are targets.
        measures: further targets, by name.
    """

    items: EntityTable
    encoders: Mapping[str, Mapping[str, ColumnEncoder]]
    label_columns: Sequence[int]
    measures: Sequence[str]

    def targets(self, log: EventLog, rows: np.ndarray | slice = _ALL) -> np.ndarray:
        """Labels of the pair tasks and further measures of some events, float64 [R, T]."""
        columns = [log.labels[rows][:, self.label_columns], *(log.measures[n][rows][:, None] for n in self.measures)]
        return np.concatenate(columns, axis=1).astype(np.float64)

    def of_log(self, of: RunningStatistics, log: EventLog, rows: np.ndarray | slice = _ALL) -> EventTable:
        """What statistics of the log read of some of its events."""
        return EventTable(log.time[rows], self._keys(of, log, rows), self.targets(log, rows))

    def after_past(self, of: RunningStatistics, log: EventLog, rows: np.ndarray | slice = _ALL) -> EventTable:
        """What statistics of the time before the log read of some of its events.

        One time for all rows, after the past: what was known then is known to each, and none counts another.
        """
        time = np.full(len(log.time[rows]), AFTER_PAST)
        return EventTable(time, self._keys(of, log, rows), np.full((len(time), len(of.targets)), np.nan))

    def past(self, of: RunningStatistics, log: EventLog) -> EventTable:
        """What they read of the events before the log."""
        return past_table(of, self.items, self.encoders, log)

    def read_by(self, of: RunningStatistics) -> LogTables:
        """The same without what these statistics do not read of the items: other processes get it sooner."""
        names = [name for name in self.items.encoded if f"item.{name}" in key_names(of)]
        encoders, encoded = ({n: own[n] for n in names} for own in (self.items.encoders, self.items.encoded))
        return replace(self, items=EntityTable(pa.nulls(0), pa.table({}), encoders, encoded))

    def _keys(self, of: RunningStatistics, log: EventLog, rows: np.ndarray | slice) -> dict[str, Codes]:
        context = {name: values[rows] for name, values in log.candidate_features.items()}
        read = log.item[rows], log.user[rows], log.user_features, context
        return statistic_keys(of, self.items, self.encoders, *read)
