"""What training rows say of a task before it learns: of its labels, and, where it ranks items, of those."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyrec.core.registry import HEADS
from polyrec.core.schema import TaskConfig
from polyrec.data.columns import FIRST
from polyrec.data.event_log import EventLog
from polyrec.data.label_summary import summarise
from polyrec.data.neighbours import weighed_sizes, worthwhile
from polyrec.data.release import age_start, milliseconds
from polyrec.data.training_evidence import TrainingEvidence
from polyrec.data.trending import Mixture
from polyrec.data.trending_fit import TrendingFit, fit_trending
from polyrec.data.trends import positive_items


@dataclass(frozen=True)
class TaskSummaries:
    """Summaries of the tasks of a log.

    Args:
        log: whose labels are read.
        train: its training rows, bool [R].
        evidence: of the same rows.
        num_items: rows of the item table.
        max_history: events per window.
        timed: whether the log has times.
        item_times: when items appeared, by the source that `item_age` names, see `PolyRecProcessor.item_times`.
    """

    log: EventLog
    train: np.ndarray
    evidence: TrainingEvidence
    num_items: int
    max_history: int
    timed: bool
    item_times: Callable[[str], np.ndarray]

    def of(
        self, task: TaskConfig, labels: np.ndarray, mixture: Mixture | None = None
    ) -> tuple[dict[str, Any], str | None]:
        """The summary of a task, plain values for JSON, and what recent popularity says, if it was looked at.

        Args:
            labels: [R].
            mixture: of the trends that models of a loaded processor read, which stay; None: to be found.
        """
        log, train = self.log, self.train
        context = {name: values[train] for name, values in log.candidate_features.items()}
        found, said = summarise(task, labels[train], context), None
        options = {**HEADS.get(task.head).known_options(), **task.options}
        if task.head == "retrieval":
            found["neighbours"] = worthwhile(self.num_items, ordered=self.evidence.ordered)
            if self.evidence.ordered:
                found |= weighed_sizes(self.evidence.user, self.num_items, self.max_history)
            else:
                found["of_sets"] = True
            if "trending" not in task.options and self.timed:
                if mixture is not None:
                    found |= {"trending": mixture, "recent": bool(mixture)}
                elif (trend := self._trend(task, options["repeats"])) is not None:
                    aged = options["item_age"] == "release"
                    found |= trend.options(options["label_smoothing"] > 0, aged)
                    said = trend.reason(aged)
        if options.get("item_age") is not None:
            positive = train & (labels == 1) & (log.item >= FIRST)
            found["age_start"] = age_start(
                self.item_times(options["item_age"]),
                log.item[positive],
                milliseconds(log.time[positive]),
                options["age_buckets"],
                unseen_now=options["item_age"] == "first_event",
            )
        return found, said

    def _trend(self, task: TaskConfig, repeats: bool) -> TrendingFit | None:
        log = self.log
        positive = self.train & (positive_items(log, task.name) >= FIRST)
        return fit_trending(log.user[positive], log.item[positive], log.time[positive], self.num_items, not repeats)
