"""Feedback and context of past events as they were given, for conditions on a history such as "rating >= 4"."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from polyrec.core.settings import as_number
from polyrec.data.columns import FIRST, ColumnEncoder
from polyrec.data.event_log import EventLog
from polyrec.data.pipeline import LogPipeline


class HistoryValues:
    """Columns of encoded events with the values that a log or a request had in them.

    Those are known: labels (by the name of the task, and of a column that is a label as it is), numbers that running
    statistics count, categories, and times. What only its place among others is kept of cannot be asked for.

    Args:
        pipeline: that encoded the events.
    """

    def __init__(self, pipeline: LogPipeline) -> None:
        columns = pipeline.columns
        self._time, self._tasks = columns.time, {task.name: j for j, task in enumerate(pipeline.tasks)}
        self._labels = dict(self._tasks)
        for j, task in enumerate(pipeline.tasks):
            rule = task.parsed_label
            if rule is not None and rule.op is None and rule.divisor == 1 and not rule.log1p:
                self._labels[rule.column] = j
        self._measures = [] if pipeline.statistics is None else list(pipeline.statistics.measures)
        kinds = ("categorical", "multi")
        self._events = {n: e for n, e in pipeline.event_encoders["event"].items() if e.kind in kinds}
        self._context = {n: e for n, e in pipeline.event_encoders["candidate"].items() if e.kind in kinds}

    @property
    def names(self) -> list[str]:
        """Columns there are."""
        time = [] if self._time is None else [self._time]
        return list(dict.fromkeys([*time, *self._labels, *self._measures, *self._events, *self._context]))

    def of(self, log: EventLog, rows: np.ndarray, name: str) -> pa.Array:
        """The values of some events of a log, null where they are unknown."""
        if name in self._labels:
            return pa.array(log.labels[rows, self._labels[name]].astype(np.float64), from_pandas=True)
        if name in self._measures:
            return pa.array(log.measures[name][rows].astype(np.float64), from_pandas=True)
        if name == self._time:
            seconds = log.time[rows]
            known = np.ones(len(rows), dtype=bool) if log.untimed is None else ~log.untimed[rows]
            return pa.array(np.round(seconds * 1e6).astype(np.int64), pa.timestamp("us"), mask=~known)
        if name in self._events:
            return _categories(self._events[name], log.event_features[name][rows])
        return _categories(self._context[name], log.candidate_features[name][rows])


def _categories(encoder: ColumnEncoder, codes: np.ndarray) -> pa.Array:
    """Categories of codes; those that training did not know are null. Fractions are numbers again."""
    vocabulary = encoder.vocabulary
    if vocabulary and all(isinstance(value, str) for value in vocabulary):
        as_numbers = [_fraction(value) for value in vocabulary]
        vocabulary = as_numbers if all(value is not None for value in as_numbers) else vocabulary
    if encoder.kind == "multi":
        return pa.array([[vocabulary[c - FIRST] for c in row if c >= FIRST] for row in codes.tolist()])
    values = pa.array([*[None] * FIRST, *vocabulary])
    return values.take(pa.array(codes))


def _fraction(text: str) -> float | None:
    """The number that a category of fractions was."""
    try:
        return as_number(float(text))
    except ValueError:
        return None
