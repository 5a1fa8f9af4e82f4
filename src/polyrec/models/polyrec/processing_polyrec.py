"""`PolyRecProcessor`: raw tables in, sequences and batches out; saved beside the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polyrec.core.backbones import TextConfig
from polyrec.core.older_files import deprecated
from polyrec.core.schema import Columns, TaskConfig
from polyrec.data.event_log import EventLog
from polyrec.data.fitting import fit_pipeline
from polyrec.data.log_state import LogState
from polyrec.data.processor_checks import refuse_continuation
from polyrec.data.sequences import SequenceDataset
from polyrec.data.settings import FitSettings
from polyrec.data.statistic_config import StatisticsConfig
from polyrec.data.stored_events import StoredEvents
from polyrec.data.tables import normalise_ids, read_table
from polyrec.data.texts import check_template
from polyrec.models.polyrec.splitting_processor import SplittingProcessor


class PolyRecProcessor(SplittingProcessor):
    """Knows the tables: which column means what, the item catalog, vocabularies, scales and running statistics.

    Build one with [`fit`], cut the log with [`split`], save it beside the model (the Trainer does) and load both with
    `from_pretrained`.

    Args:
        columns: which column means what.
        tasks: what to learn.
        items, users: the fitted entity tables.
        max_history: events per window.
        ties: "strict" (a candidate sees earlier times only) or "order" (it sees the rows before it).
        statistics: running statistics, or None.
        text: how items (and queries) are read as text, or None.
        tokenizer: of the text encoder; default: the one of its model.

    Attributes:
        data_report: [`DataReport`], what `fit` and `split` found in the tables; None of a folder saved without one.

    Example:
        >>> interactions = {"user_id": [1, 1, 1, 2], "item_id": ["a", "b", "a", "b"], "rating": [5, 2, 4, 1],
        ...                 "timestamp": [10, 20, 30, 15]}
        >>> processor = PolyRecProcessor.fit(
        ...     interactions, tasks=[TaskConfig("next_item", "retrieval"), TaskConfig("rating", "regression")])
        >>> processor.num_items  # padding, unknown item, a, b
        4
    """

    # ------------------------------------------------------------------ fit
    @classmethod
    def fit(
        cls,
        interactions: Any,
        items: Any = None,
        users: Any = None,
        *,
        tasks: Sequence[TaskConfig | Mapping[str, Any]],
        columns: Columns | Mapping[str, Any] | None = None,
        max_history: int = 200,
        ties: str = "strict",
        statistics: bool | StatisticsConfig | Mapping[str, Any] = True,
        text: TextConfig | Mapping[str, Any] | None = None,
        verbose: bool = True,
        cache_dir: str | Path | None = None,
    ) -> PolyRecProcessor:
        """Learn vocabularies and scales.

        Args:
            interactions: the event log: a path (.parquet, .csv), pandas, `datasets.Dataset`, Arrow table or dict.
            items, users: attribute tables; None: ids only.
            tasks: [`TaskConfig`]s or dicts.
            columns: [`Columns`] or a dict of its arguments; default: user_id, item_id, timestamp, and every label
                column as feedback.
            max_history: events per window.
            ties: see the class.
            statistics: count running statistics (strictly-before rates, residuals, time since last): the default set,
                or which ones as a [`StatisticsConfig`] or a dict of its arguments.
            text: a pretrained encoder of item texts as a [`TextConfig`] or a dict of its arguments, e.g.
                {"model": "sentence-transformers/all-MiniLM-L6-v2", "template": "{title}. {genres}"}. How it is tuned
                is up to the model: `model_config(text={"tuning": "lora"})`.
            verbose: print the [`DataReport`] to stderr; False: only what it warns of, as Python warnings.
            cache_dir: a folder for a log that memory does not hold: parquet files are mapped from a file there. None:
                into memory.

        Raises:
            ValueError: names the table, the column, the first bad row and the fix.
        """
        settings = FitSettings(max_history, ties, statistics, text)  # type: ignore[arg-type]
        own, report, names = fit_pipeline(interactions, items, users, tasks, columns, settings, cache_dir)
        entities, ways = (own.items, own.users, own.event_encoders), (settings.max_history, settings.ties)
        processor = cls(own.columns, own.tasks, *entities, *ways, own.statistics, own.text)
        processor.log_columns, processor.data_report = names, report
        report.show(verbose)
        processor.stored_events = StoredEvents() if own.columns.history is None else None
        return processor

    def without_updates(self, dataset: SequenceDataset, cutoff: float) -> SequenceDataset:
        """The same examples when nothing at or after `cutoff` (seconds) is known: no history, no statistics.

        Only the row's own context stays. This is how a model predicts that is not fed new events.
        """
        return self._examples.without_updates(dataset, cutoff)

    def frozen(self, dataset: SequenceDataset, cutoff: float) -> SequenceDataset:
        """Old name of [`without_updates`]; goes with the next release."""
        deprecated("processor.frozen is now processor.without_updates; the old name will be removed")
        return self.without_updates(dataset, cutoff)

    def encode_events(self, interactions: Any, prior_history: Any = None) -> EventLog:
        """Check and encode an event log, sorted by (user, time, order). Unknown items and users are cold starts."""
        pipeline = self._pipeline
        return pipeline.encode_events(pipeline.read(interactions), prior_history)

    def resume(self, interactions: Any, prior_history: Any = None) -> tuple[EventLog, np.ndarray | None]:
        """A log that went on after it was split: its events and running statistics, with nothing fitted anew.

        The statistics then stand after its last event. Make examples of it with [`training_set`] and
        [`evaluation_set`].

        Args:
            interactions: all events, the earlier ones included.
            prior_history: as in [`split`].

        Raises:
            ValueError: the log has no times, so that nothing tells what is new.
        """
        refuse_continuation(self.columns)
        pipeline = self._pipeline
        table = pipeline.read(interactions)
        log = pipeline.encode_events(table, prior_history)
        self._state.see(log)
        pipeline.weigh(log, table)
        counted = None if self.statistics is None else self.statistics.resume(log)
        self._store(log)
        return log, counted

    def extend(self, items: Any = None, users: Any = None) -> None:
        """Add items to the catalog, or users whose attributes are known; what is fitted and counted stays as it is.

        Attributes are encoded with the vocabularies and scales fitted in [`fit`], as inputs and as keys of the running
        statistics; a value that none of them knows is an unknown one. Then give the processor to `model.extend(...)`.

        Args:
            items, users: tables of new rows, with the columns the first ones had. Vectors come as a column of lists,
                also those of an attribute that was declared as a file.

        Raises:
            ValueError: an id is known already, a column is missing or of another type; nothing of that table is
                added then.
        """
        if items is not None:
            shown = (self.columns.item_time, self.columns.title)
            needed = [name for name in shown if name is not None and name in self.items.table.column_names]
            if self.text is not None:
                needed += check_template(self.text.template, self.items.table.column_names)
            self.items.extend(read_table(items, "items"), "items", self.columns.item, needed)
            new = len(self.items) - len(self.item_counts)
            self.item_counts = np.concatenate([self.item_counts, np.zeros(new, dtype=np.int64)])
            self.first_event = np.concatenate([self.first_event, np.full(new, np.inf)])
            self.trends.extend(len(self.items))
        if users is not None:
            self.users.extend(read_table(users, "users"), "users", self.columns.user)

    def update(self, interactions: Any) -> None:
        """Advance running statistics, recent popularity and stored events by new ones, later than all known so far.

        Events of one time belong in one call. Late ones are refused: give them to [`resume`] with all others, or as the
        history of a request. Items that occur for the first time have been seen then (`model.load_times` tells a model
        that reads their ages); [`extend`] the catalog first, or events of new items stay those of the unknown item.
        What was fitted (`item_counts`, scales, label summaries) stays as it is.

        Raises:
            ValueError: an event is not later than all known so far, or the log has no times; nothing is counted then.
        """
        refuse_continuation(self.columns)
        self._state.advance(self.encode_events(interactions))

    def encode(self, interactions: Any) -> EventLog:
        """Encode events as [`encode_events`] does, without a look at how many of the ids are known."""
        return self._pipeline.encode(read_table(interactions, "interactions"))

    @property
    def log_state(self) -> LogState:
        """What is known of the log so far, which [`update`] advances; it shares its parts with the processor."""
        return self._state

    def forget(self, user_ids: Sequence[Any]) -> None:
        """Remove the stored events of some users. What was counted of items and attributes stays."""
        if self.stored_events is not None:
            given = normalise_ids(pa.array(list(user_ids)), "user_ids")
            if self.statistics is not None:
                self.statistics.forget(self.stored_events.hashes(given))
            self.stored_events = self.stored_events.without(given)

    def forget_events(self, user_id: Any, row: int) -> None:
        """Remove the stored events of a user with one item, a row of the item table; what stays is as of [`forget`]."""
        before, given = self.stored_events, normalise_ids(pa.array([user_id]), "user_ids")
        if before is None:
            return
        self.stored_events = left = before.without_item(given, row)
        if self.statistics is not None:  # which counts what is left of the user anew
            self.statistics.warm(before)
            self.statistics.forget(before.hashes(given))
            if left.has_events(given).any():
                self.statistics.prepared_late(left.of(given), left)()
