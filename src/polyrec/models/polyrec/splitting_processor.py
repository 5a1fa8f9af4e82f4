"""Cutting logs into training, validation and test sets, and making examples of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polyrec.core.older_files import renamed_argument
from polyrec.data import splits
from polyrec.data.derived import derived_names
from polyrec.data.event_log import EventLog
from polyrec.data.examples import ExampleBuilder
from polyrec.data.processor_checks import check_split
from polyrec.data.sequences import SequenceDataset
from polyrec.data.settings import UNTIMED_SHARE, SplitSettings
from polyrec.data.splitter import Splits, cut_log
from polyrec.data.storage import MEMORY, Engine, Folder, Storage
from polyrec.data.stored_events import StoredEvents
from polyrec.data.stored_split import LOG_FOLDER, CountedSplit, load_split, not_stored, save_split
from polyrec.data.task_summary import TaskSummaries
from polyrec.data.training_evidence import TrainingEvidence
from polyrec.data.training_rows import TrainingSetSketch
from polyrec.data.trees import MOST, PairTrees
from polyrec.data.trends import Trends
from polyrec.models.polyrec.request_processor import RequestProcessor

TRAINING_OPTIONS = ("shuffle_ties", "max_delay", "delayed_share", "untimed_share", "keep_negatives", "seed")


class SplittingProcessor(RequestProcessor):
    """A processor that cuts logs."""

    def split(
        self,
        interactions: Any,
        by: str | None = None,
        fractions: Sequence[float] = (0.8, 0.1, 0.1),
        cuts: Sequence[Any] | None = None,
        shuffle_ties: bool = True,
        max_delay: float = 0.0,
        prior_history: Any = None,
        delayed_share: float | None = None,
        keep_negatives: Mapping[str, float] | None = None,
        seed: int = 0,
        untimed_share: float = UNTIMED_SHARE,
        past: Any = None,
        cache_dir: str | Path | None = None,
        engine: Engine | None = None,
    ) -> Splits:
        """Cut the log into training, validation and test examples; scales and statistics are fitted on training rows.

        Args:
            interactions: the event log, see [`fit`].
            by: "time" (shares of all events in time order, or `cuts`), "leave_one_out" (each user's last event tests,
                the one before validates) or "random" (shares of each user's events, for a log without times). None:
                "time", or "random" if `columns.time` is None.
            fractions: shares of training, validation and test set.
            cuts: times at which validation and test begin, as seconds, ISO text, dates or timestamps.
            shuffle_ties: training draws the order of events of one time anew in every epoch, see [`SequenceDataset`].
            max_delay: seconds. Each training row is also read as it looks when what happened in the last
                U(0, max_delay) seconds is not known, so that one model predicts with and without fresh events. Give it
                the time for which a deployed model will not be fed.
            prior_history: what users did before the log, a table as `columns.prior_history` describes it.
            delayed_share: with `max_delay`, an epoch reads each training row in one of its two views: the delayed one
                with this chance. None: in both, which takes about twice the time.
            keep_negatives: {binary task: share of its training negatives that an epoch asks, drawn anew in each}.
                [`model_config`] tells the head (`sampling_rate`), so that probabilities are those of all rows.
            seed: of the delays, and of what "random" holds out; commands give that of the training. All else that is
                drawn has the trainer's seed.
            untimed_share: share of the training windows that are shown as if nobody knew when their events happened,
                drawn anew in every epoch, so that the model can read histories without times.
            past: old name of `prior_history`; goes with the next release.
            cache_dir: a folder for a log that memory does not hold: its arrays and statistics are mapped from files
                there, which must stay as long as the split is used. None: into memory.
            engine: shares the counting of statistics among processes that see `cache_dir`, as
                `polyrec.runs.ray_prepare.ray_engine` does. None: this process counts.

        In a log without times (`columns.time` None) a user's events are a set. What is held out sees all of the user's
        training events, and statistics of all training events; nothing that is held out is seen. A training row sees a
        random part of its user's other training events, drawn anew in every epoch, and never itself; its statistics
        count the training events before it in an order drawn once (`polyrec.data.sets` says why not all others).

        Otherwise validation and test are *prequential*: every event strictly before a row is visible as history and in
        the running statistics. [`without_updates`] hides what happened after a time.

        Raises:
            polyrec.data.splits.LeakageError: a training row lies later than what the evaluation may know.
        """
        prior_history = renamed_argument("past", past, "prior_history", prior_history)
        drawn: dict[str, Any] = {"keep_negatives": keep_negatives, "untimed_share": untimed_share, "seed": seed}
        by = ("random" if self.columns.time is None else "time") if by is None else by
        settings = SplitSettings(by, fractions, cuts, shuffle_ties, max_delay, delayed_share, **drawn)  # type: ignore[arg-type]
        check_split(self.columns, by)
        if engine is not None and cache_dir is None:
            raise ValueError("processes share a log in files: give cache_dir, a folder that all of them see")
        why = not_stored(self.columns, prior_history is not None)
        if engine is not None and why:
            raise ValueError(f"processes cannot share this log: it has {why}. Leave out the engine")
        storage = MEMORY if cache_dir is None else Folder(Path(cache_dir) / LOG_FOLDER, engine=engine)
        if isinstance(storage, Folder):
            storage.clear()
        table = self._pipeline.read(interactions, cache_dir)
        found = self._counted(table, prior_history, settings, storage)
        if isinstance(storage, Folder) and not why:
            save_split(found, storage)
        return self._sets(found, storage)

    def load_split(self, cache_dir: str | Path) -> Splits:
        """What [`split`] with this `cache_dir` gave, by mapping its files: nothing is read, encoded or counted again.

        The processor must be the one that was saved after that split.

        Raises:
            ValueError: the folder holds no finished split.
        """
        folder = Path(cache_dir) / LOG_FOLDER
        found, storage = load_split(folder), Folder(folder, complete=True)
        names = [] if self.statistics is None else self.statistics.names
        if found.num_items != self.num_items or (found.values is not None and found.values.shape[1] != len(names)):
            raise ValueError(
                f"{folder} is of another processor, with {found.num_items:,} rows of items where this one has "
                f"{self.num_items:,}: load the one that was saved after that split"
            )
        self.evidence = TrainingEvidence.of(found.cut.log, found.cut.train, self._ordered, storage)
        return self._sets(found, storage)

    def _counted(self, table: pa.Table, prior_history: Any, settings: SplitSettings, storage: Storage) -> CountedSplit:
        """Encode, cut and count a log; the processor's scales, summaries and state are then those of its training
        rows."""
        cut = cut_log(self._pipeline, table, prior_history, settings, self.data_report, storage)
        log, train = cut.log, cut.train
        self._summarise(log, train, storage)
        self.training_rows = TrainingSetSketch.of(log, train, self.items.ids)
        for name, share in (settings.keep_negatives or {}).items():
            if self._task(name).head != "binary":
                raise ValueError(f"keep_negatives: {name!r} is not a binary task, whose head corrects the sampling")
            self.label_summary[name]["sampling_rate"] = share
        source, known = cut.counted
        values = tested = None
        if self.statistics is not None:
            values = tested = self.statistics.fit(log, train, source, storage)
            if known is not source:
                rows = cut.part == splits.TEST
                tested = self.statistics.compute(log, source=known, rows=rows, storage=storage)
        return CountedSplit(cut, values, tested, settings, self.num_items)

    def _sets(self, found: CountedSplit, storage: Storage) -> Splits:
        """The examples of a log that was counted."""
        log, train, settings = found.cut.log, found.cut.train, found.settings
        source, known = found.cut.counted
        self._store(log, train)
        options = {name: getattr(settings, name) for name in TRAINING_OPTIONS}
        parts = Splits(
            self.training_set(log, train, found.values, source=source, **options),
            self.evaluation_set(log, found.cut.part == splits.VALIDATION, found.values, source),
            self.evaluation_set(log, found.cut.part == splits.TEST, found.tested, known),
        )
        for name, dataset in parts._asdict().items():
            dataset.keep(storage, name)
        self._allow_trees(parts.train)
        return parts

    def _allow_trees(self, train: SequenceDataset) -> None:
        """Let the heads of pair tasks have trees beside them, where the training rows allow it."""
        self._pair_trees = PairTrees(train, self.tasks)
        for name in self._pair_trees.tasks:
            self.label_summary[name]["trees"] = MOST
        if self._pair_trees.missing and self.data_report is not None:
            self.data_report.trees = (
                f"none of {', '.join(self._pair_trees.missing)}, which could have them beside the network: "
                "pip install 'polyrec[classical]'"
            )

    def _summarise(self, log: EventLog, train: np.ndarray, storage: Storage) -> None:
        """Count items and summarise labels over the training rows."""
        self.evidence = TrainingEvidence.of(log, train, self._ordered, storage)
        self.item_counts = np.bincount(self.evidence.item, minlength=len(self.items))
        self.first_event = np.full(len(self.items), np.inf)
        self._state.see(log)
        timed = self.columns.time is not None
        own = log, train, self.evidence, len(self.items), self.max_history, timed, self.item_times
        summaries, saved = TaskSummaries(*own), self._saved_mixtures
        for j, task in enumerate(self.tasks):
            mixture = None if saved is None else saved.get(task.name, ())
            self.label_summary[task.name], trend = summaries.of(task, log.labels[:, j], mixture)
            if trend is not None and self.data_report is not None:
                self.data_report.trending[task.name] = trend

    def _store(self, log: EventLog, rows: np.ndarray | None = None) -> None:
        """Keep what users did, and count what was popular, in some rows, bool [R]; None: in all."""
        if self.columns.history is None:
            self.stored_events = StoredEvents()
            self.stored_events.add(log, rows)
        self.trends = Trends(self.mixtures, self.num_items)
        self.trends.count(log, rows)

    @property
    def _examples(self) -> ExampleBuilder:
        return ExampleBuilder(self.tasks, self.max_history, self.ties, self.statistics, derived_names(self.columns))

    def evaluation_set(
        self, log: EventLog, rows: np.ndarray, statistics: np.ndarray | None, source: np.ndarray | None = None
    ) -> SequenceDataset:
        """Examples of some events of a log (bool [R]), each with at least half a window of history.

        Args:
            source: bool [R], events that `statistics` count; None: all.
        """
        return self._examples.evaluation(log, rows, statistics, source, self.trends.of_log(log, source))

    def training_set(
        self, log: EventLog, rows: np.ndarray, statistics: np.ndarray | None, **options: Any
    ) -> SequenceDataset:
        """Training examples of some events of a log (bool [R]).

        Args:
            statistics: of the log, [R, F].
            options: `source` (bool [R], events that statistics may count) and, as in [`split`], `shuffle_ties`,
                `max_delay`, `delayed_share`, `keep_negatives`, `untimed_share` and `seed`.
        """
        trending = self.trends.of_log(log, options.get("source"))
        return self._examples.training(log, rows, statistics, trending=trending, **options)
