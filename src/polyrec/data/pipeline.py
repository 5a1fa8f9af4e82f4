"""From a table of events to an encoded log: one way for fitting, splitting, going on, and requests."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polyrec.core.backbones import TextConfig
from polyrec.core.schema import Columns, TaskConfig
from polyrec.core.stack import caller_level
from polyrec.data.catalog import EntityTable
from polyrec.data.columns import ColumnEncoder
from polyrec.data.derived import with_derived
from polyrec.data.encoding import encode_columns, encode_log, encode_prior_history
from polyrec.data.event_log import EventLog
from polyrec.data.log_statistics import LogStatistics
from polyrec.data.mapped_tables import mapped_table
from polyrec.data.prior_history import read_prior_history
from polyrec.data.processor_checks import check_searches
from polyrec.data.queries import NO_QUERY, Queries
from polyrec.data.report import DataReport, DataWarning, main_process
from polyrec.data.report_facts import match_log
from polyrec.data.row_lists import after_lists, hide_lists, with_lists
from polyrec.data.sets import as_sets
from polyrec.data.storage import MEMORY, Storage
from polyrec.data.tables import column, numbers, read_table
from polyrec.data.weights import row_weights


@dataclass(frozen=True)
class LogPipeline:
    """Reads, checks and encodes event logs.

    Args:
        columns: which column means what.
        tasks: whose labels are read.
        items, users: the fitted entity tables.
        event_encoders: {"event": encoders of feedback, "candidate": encoders of context}.
        statistics: whose targets are read, or None.
        text, tokenizer: how queries are read, or None.
    """

    columns: Columns
    tasks: list[TaskConfig]
    items: EntityTable
    users: EntityTable
    event_encoders: dict[str, dict[str, ColumnEncoder]]
    statistics: LogStatistics | None
    text: TextConfig | None
    tokenizer: Any

    def read(self, interactions: Any, cache_dir: str | Path | None = None) -> pa.Table:
        """The table, with the lists of its rows where the log has such.

        Args:
            cache_dir: see [`~polyrec.data.mapped_tables.mapped_table`].
        """
        return with_lists(mapped_table(interactions, "interactions", cache_dir), self.columns)

    def encode(self, table: pa.Table, prior_history: Any = None, storage: Storage = MEMORY) -> EventLog:
        """The log of a table, sorted by (user, time, order), whatever of it is known: requests are of new users and
        items, too.

        Args:
            prior_history: what users did before, a table as `columns.prior_history` describes it.
            storage: where the arrays of the log go.
        """
        columns, what = self.columns, "interactions"
        table = with_derived(table, columns, self.items)
        log = encode_log(table, columns, self.tasks, self.items, self.users, self.event_encoders, storage)
        if self.statistics is not None:
            for name in self.statistics.measures:
                values = numbers(column(table, name, what, "statistics target"), f"{what}: {name!r}")
                log.measures[name] = storage.keep(f"measures.{name}", values[log.row])
        if columns.query is not None:
            assert self.text is not None  # checked when a processor is made
            log.queries = Queries.read(table, columns, self.items, self.tokenizer, self.text).of_rows(log.row)
            searches = [j for j, t in enumerate(self.tasks) if t.head == "search"]
            log.labels[np.ix_(log.queries.index == NO_QUERY, searches)] = np.nan
            check_searches(log, searches, columns, what)
        if prior_history is not None:
            if columns.prior_history is None:
                raise ValueError(
                    "prior_history is given, but columns.prior_history does not say which of its columns to read"
                )
            log.prior_history = read_prior_history(
                read_table(prior_history, "prior_history"), columns, self.items, log.user_ids
            )
            encode_prior_history(log.prior_history, self.event_encoders)
        return log

    def encode_events(
        self,
        table: pa.Table,
        prior_history: Any = None,
        report: DataReport | None = None,
        storage: Storage = MEMORY,
    ) -> EventLog:
        """The log of a table of which next to nothing unknown is accepted, with the lists of its rows, or as sets where
        it has no times.

        Args:
            prior_history, storage: as of [`encode`].
            report: where warnings of unknown ids are to stand, too.
        """
        log = self.encode(table, prior_history, storage)
        if self.columns.history is not None:
            log = after_lists(log, table, self.columns, self.tasks, self.items, self.event_encoders)
        elif self.columns.time is None:
            log = as_sets(log, table, self.columns)
        self._check_ids(table, log, report)
        return log

    def _check_ids(self, table: pa.Table, log: EventLog, report: DataReport | None) -> None:
        matches = match_log(table, log, self.columns, self.items, self.users)
        for match in matches:
            match.check(self.columns.max_unmatched, later=True)
        texts = [match.text() for match in matches if match.suspicious(later=True)]
        if report is not None:
            report.matches += [match for match in matches if match not in report.matches]
            report.warn(texts)
        elif main_process():
            for text in texts:
                warnings.warn(text, DataWarning, stacklevel=caller_level())

    def rescale(self, log: EventLog, table: pa.Table, train: np.ndarray, storage: Storage = MEMORY) -> None:
        """Put feedback and context on the scales of the training rows, bool [R]; the encoders keep them.

        Fitting saw the whole log; how feedback of the test rows is distributed must not reach the model.
        """
        whole, rows = with_derived(table, self.columns, self.items), log.row[train]
        # Sets are in no file's order.
        training = pa.array(rows if self.columns.time is None else np.sort(rows))
        for encoders in self.event_encoders.values():
            for name, encoder in encoders.items():
                values = column(whole, name, "interactions", "feedback or context").take(training)
                encoders[name] = encoder.refit(values, f"interactions: column {name!r}")
        encoded = encode_columns(whole, self.event_encoders, log.row, storage)
        log.event_features |= encoded["event"]
        log.candidate_features = encoded["candidate"]
        hide_lists(log, self.event_encoders)
        if log.prior_history is not None:
            encode_prior_history(log.prior_history, self.event_encoders)

    def weigh(self, log: EventLog, table: pa.Table, storage: Storage = MEMORY) -> None:
        """Give the log the sample weights of its rows."""
        own = log.own_rows
        labels = log.labels[own[np.argsort(log.row[own])]]
        weights = row_weights(table, self.columns, self.tasks, labels, "interactions")
        log.sample_weight = {t: storage.keep(f"sample_weight.{t}", v[log.row]) for t, v in weights.items()}
