"""What a baseline of a retrieval task may read, and what all of them are.

**Strictly before.** Whatever is fitted is fitted on training rows. A baseline that counts events up to an example sees
those of an earlier time that polyrec's running statistics may count for that data set (`SequenceDataset.source` and
`known_until`), and the user's history is the candidate's own.

Letters: R rows (candidates), E events, N items of the catalog (padding and the unknown item left out).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from polyrec.data.candidates import LeftOut
from polyrec.data.columns import FIRST
from polyrec.data.histories import Histories, visible_history
from polyrec.data.row_lists import positive_items, sequences
from polyrec.data.sequences import SequenceDataset

Scorer = Callable[[np.ndarray], np.ndarray]  # candidates of a data set, int64 [R] -> scores of the catalog, [R, N]
Settings = dict[str, Any]


@dataclass(frozen=True)
class CatalogTask:
    """A retrieval task and its training rows.

    Args:
        train: its own-view candidates with a positive label are the interactions.
        task: name of the task.
        num_items: N.
        what: is left out of lists, see `polyrec.data.candidates`.
        released: float64 seconds [N], when items appeared by the catalog, NaN = not known. None: it does not say.
    """

    train: SequenceDataset
    task: str
    num_items: int
    what: LeftOut = "history"
    released: np.ndarray | None = None

    def labels(self, dataset: SequenceDataset) -> np.ndarray:
        """Labels of all events of the log, float32 [E]."""
        return dataset.log.labels[:, dataset.task_names.index(self.task)]

    def training_rows(self) -> np.ndarray:
        """Candidates of `train` whose item is a positive and is in the catalog, int64."""
        log, event = self.train.log, self.train.candidates.event
        positive = self.train.own_view & (self.labels(self.train)[event] > 0) & (log.item[event] >= FIRST)
        return np.flatnonzero(positive)

    def training_events(self) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of the training rows, int64 each; with what their lists say (`Columns.history`)."""
        return positive_items(self.train.log, self.train.candidates.event[self.training_rows()])

    def popularity(self) -> np.ndarray:
        """How often each item occurs in training, float64 [N]."""
        item = self.train.log.item[self.train.candidates.event[self.training_rows()]] - FIRST
        return np.bincount(item, minlength=self.num_items).astype(np.float64)

    @property
    def ordered(self) -> bool:
        """Whether the events of a user have an order."""
        return self.train.log.set_until is None

    @property
    def timed(self) -> bool:
        """Whether the log has times."""
        return not self.train.log.drawn

    @property
    def mixed(self) -> bool:
        """Whether training has other events beside positives: impressions, views."""
        return not (self.labels(self.train)[self.train.candidates.event] > 0).all()

    def histories(
        self, dataset: SequenceDataset, rows: np.ndarray, last: int | None = None, history: str = "taken"
    ) -> Histories:
        """The last visible events of candidates, as items of the catalog.

        Args:
            history: "taken" (events with a positive label) or "all".
        """
        found = visible_history(dataset, rows, None if history == "all" else self.labels(dataset) > 0)
        begin = found.begin if last is None else np.maximum(found.begin, found.end - last)
        return Histories(begin, found.end, found.items - FIRST)

    def successions(self, last: int, history: str = "taken") -> tuple[Histories, np.ndarray]:
        """What training rows saw and then took, the last items before each and the item; of the catalog.

        Within the lists of rows, each of their events has those before it.
        """
        log, rows = self.train.log, self.training_rows()
        if log.untimed is None:
            seen = self.histories(self.train, rows, last, history)
            return seen, log.item[self.train.candidates.event[rows]] - FIRST
        own = np.zeros(len(log), dtype=bool)
        own[self.train.candidates.event[rows]] = True
        event, known = sequences(log, own), log.item >= FIRST
        event = event[known[event]]
        before = np.concatenate([[0], np.cumsum(known)])
        end = before[event]
        begin = np.maximum(before[log.offsets[log.user[event]]], end - last)
        return Histories(begin, end, log.item[known] - FIRST), log.item[event] - FIRST

    def countable(self, dataset: SequenceDataset, positives: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Times, ascending, and items of the events that examples of a data set may count, once they are over.

        Args:
            positives: only those with a positive label.
        """
        log = dataset.log
        counts = log.item >= FIRST
        if positives:
            counts &= self.labels(dataset) > 0
        if dataset.source is not None:
            counts &= dataset.source
        if log.untimed is not None:
            counts &= ~log.untimed
        event = np.flatnonzero(counts)
        event = event[np.argsort(log.time[event], kind="stable")]
        return log.time[event], log.item[event] - FIRST

    @staticmethod
    def request_times(dataset: SequenceDataset, rows: np.ndarray) -> np.ndarray:
        """The time strictly before which an example's counts end, float64 seconds [R]."""
        return np.minimum(dataset.log.time[dataset.candidates.event[rows]], dataset.known_until)


NO_ORDER = "the log has no times (columns.time: null), so that nothing comes before anything"


class CatalogBaseline(ABC):
    """A recommender with settings to be chosen.

    Attributes:
        name: in tables.
        defaults: the settings without validation rows.
        stages: grids {setting: values}, searched one after the other, each from the best settings before it.
    """

    name: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}
    stages: ClassVar[Sequence[Mapping[str, Sequence[Any]]]] = ()

    def __init__(self, task: CatalogTask) -> None:
        self.task = task

    @classmethod
    def misfit(cls, task: CatalogTask) -> str | None:
        """Why it cannot be fitted to a task, in one line; None: it can."""
        return None

    def grids(self) -> Sequence[Mapping[str, Sequence[Any]]]:
        """The stages for this task."""
        return self.stages

    @abstractmethod
    def scorer(self, dataset: SequenceDataset, **settings: Any) -> Scorer:
        """Scores of the catalog for candidates of a data set, with some settings."""
