"""Examples of the events of a log: for training, for evaluation, and without updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polyrec.core.schema import TIME_GAP, TaskConfig
from polyrec.data.event_log import Candidates, EventLog
from polyrec.data.log_statistics import LogStatistics
from polyrec.data.neighbours import fold_of
from polyrec.data.sampling import DELAY, uniform
from polyrec.data.sequences import SequenceDataset
from polyrec.data.settings import UNTIMED_SHARE
from polyrec.data.trending import Trending
from polyrec.data.untimed import Untimed


@dataclass(frozen=True)
class ExampleBuilder:
    """Makes data sets of the events of a log.

    Args:
        tasks: of each event.
        max_history: events per window.
        ties: "strict" (a candidate sees earlier times only) or "order" (it sees the rows before it).
        statistics: running statistics, or None.
        timed_context: context columns that are computed of times.
    """

    tasks: Sequence[TaskConfig]
    max_history: int
    ties: str
    statistics: LogStatistics | None
    timed_context: Sequence[str] = ()

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks, in the order of the labels' columns."""
        return [t.name for t in self.tasks]

    def evaluation(
        self,
        log: EventLog,
        rows: np.ndarray,
        values: np.ndarray | None,
        source: np.ndarray | None = None,
        trending: Trending | None = None,
    ) -> SequenceDataset:
        """Examples of some events (bool [R]), each with at least half a window of history.

        Args:
            values: running statistics of the log, [R, F].
            source: bool [R], events that they count; None: all.
            trending: what was popular at each time, counted of the same events.
        """
        candidates = self._candidates(log, rows)
        # All examples of a set see as much, so that one window, as long as it may be, serves them; lists of rows
        # have one example each.
        one = log.set_until is not None or log.untimed is not None
        stride = 1 if one else max(self.max_history // 2, 1)
        known: dict[str, Any] = {"source": source, "trending": trending}
        return SequenceDataset(log, candidates, self.task_names, values, self.max_history, stride, **known)

    def training(
        self,
        log: EventLog,
        rows: np.ndarray,
        values: np.ndarray | None,
        source: np.ndarray | None = None,
        shuffle_ties: bool = True,
        max_delay: float = 0.0,
        delayed_share: float | None = None,
        keep_negatives: Mapping[str, float] | None = None,
        seed: int = 0,
        untimed_share: float = UNTIMED_SHARE,
        trending: Trending | None = None,
    ) -> SequenceDataset:
        """Examples for training, see `PolyRecProcessor.split`.

        Args:
            rows: bool [R].
            values: running statistics of the log, [R, F].
            source: bool [R], events that statistics may count; None: all.
            trending: what was popular at each time, counted of the same events.
        """
        if log.set_until is not None:
            if max_delay:
                raise ValueError(
                    f"max_delay is {max_delay}, but the log has no times (columns.time: null): leave it out"
                )
            untimed_share = 0.0  # nothing follows from times
        if log.untimed is not None and max_delay:
            raise ValueError(
                f"max_delay is {max_delay}, but the lists of rows (columns.history) have no times: leave it out"
            )
        if max_delay < 0:
            raise ValueError(f"max_delay is {max_delay}; it must be >= 0 seconds")
        candidates = self._candidates(log, rows)
        if max_delay > 0:
            until = log.time - max_delay * uniform(log.row, seed, 0, DELAY)
            event = candidates.event
            position = np.minimum(candidates.position, log.visible_before(until)[event])
            index = np.arange(len(event)) + len(log)
            if self.statistics is not None and values is not None:
                delayed = self.statistics.compute(log, visible_until=until, source=source)[event]
                values = np.concatenate([values, delayed])
            candidates = Candidates.concatenate([candidates, Candidates(event, position, index)])
        retrieval = tuple(t.name for t in self.tasks if t.ranks_catalog)
        return SequenceDataset(
            log,
            candidates,
            self.task_names,
            values,
            self.max_history,
            None if log.untimed is None else 1,
            shuffle_ties=shuffle_ties,
            own_view_tasks=retrieval if max_delay > 0 else (),
            delayed_share=delayed_share,
            seed=seed,
            keep_negatives=dict(keep_negatives or {}),
            source=source,
            untimed=self._untimed(untimed_share),
            folds=fold_of(log.groups) if retrieval else None,
            trending=trending,
        )

    def _untimed(self, share: float) -> Untimed | None:
        columns = np.zeros(0, dtype=np.int64) if self.statistics is None else self.statistics.timed_columns
        return Untimed(share, (TIME_GAP, *self.timed_context), columns) if share else None

    def without_updates(self, dataset: SequenceDataset, cutoff: float) -> SequenceDataset:
        """The same examples when nothing at or after `cutoff` (seconds) is known: no history, no statistics."""
        if dataset.log.set_until is not None:
            raise ValueError("nothing can be hidden from a time on: the log has no times (columns.time: null)")
        dataset = replace(dataset, known_until=min(cutoff, dataset.known_until))
        log, candidates, values = dataset.log, dataset.candidates, dataset.statistics
        position = np.minimum(candidates.position, log.visible_before(np.full(len(log), cutoff))[candidates.event])
        if values is None or self.statistics is None:
            return dataset.with_candidates(Candidates(candidates.event, position), values)
        view = self.statistics.compute(log, visible_until=np.minimum(log.time, cutoff), source=dataset.source)
        view = view[candidates.event]
        rows = np.arange(len(view)) + len(values)
        return dataset.with_candidates(Candidates(candidates.event, position, rows), np.concatenate([values, view]))

    def _candidates(self, log: EventLog, rows: np.ndarray) -> Candidates:
        event = np.flatnonzero(rows)
        return Candidates(event, log.visible(self.ties)[event])
