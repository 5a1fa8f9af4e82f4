"""Learning vocabularies and scales from tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from polyrec.core.backbones import resolve
from polyrec.core.schema import Columns, TaskConfig, from_dict, label_columns, parse_tasks
from polyrec.data.catalog import EntityTable
from polyrec.data.derived import fit_derived
from polyrec.data.encoding import fit_event_columns
from polyrec.data.leaks import refuse_labels_as_inputs
from polyrec.data.log_statistics import LogStatistics
from polyrec.data.mapped_tables import mapped_table
from polyrec.data.pipeline import LogPipeline
from polyrec.data.prior_history import check_marks
from polyrec.data.report import DataReport
from polyrec.data.report_facts import TableIds, fit_report, list_matches, table_matches
from polyrec.data.row_lists import check_targets, item_events, with_lists, with_row_users
from polyrec.data.settings import FitSettings
from polyrec.data.statistic_config import StatisticsConfig
from polyrec.data.storage import Storage, scratch
from polyrec.data.tables import check_words, labels, read_table, times


def fit_pipeline(
    interactions: Any,
    items: Any,
    users: Any,
    tasks: Sequence[TaskConfig | Mapping[str, Any]],
    columns: Columns | Mapping[str, Any] | None,
    settings: FitSettings,
    cache_dir: str | Path | None = None,
) -> tuple[LogPipeline, DataReport, list[str]]:
    """What reads logs like this one, what was found, and the columns of the log; arguments as of
    `PolyRecProcessor.fit`.

    Raises:
        ValueError: names the table, the column, the first bad row and the fix.
    """
    with scratch(cache_dir) as storage:
        return _fit(
            mapped_table(interactions, "interactions", cache_dir), items, users, tasks, columns, settings, storage
        )


def _fit(
    log: pa.Table,
    items: Any,
    users: Any,
    tasks: Sequence[TaskConfig | Mapping[str, Any]],
    columns: Columns | Mapping[str, Any] | None,
    settings: FitSettings,
    storage: Storage,
) -> tuple[LogPipeline, DataReport, list[str]]:
    tasks = parse_tasks(tasks)
    known: Columns = from_dict(Columns, {} if columns is None else columns)
    refuse_labels_as_inputs(known, tasks)
    columns = with_row_users(known, log)
    columns = columns if columns.feedback else replace(columns, feedback=label_columns(tasks))
    log = with_lists(log, columns)
    check_targets(log, columns)
    seconds = storage.keep("seconds", times(log, columns, "interactions"))
    known_labels = storage.keep("labels", labels(log, tasks, "interactions"))
    check_words(log, tasks, "interactions")
    catalog = None if items is None else read_table(items, "items")
    item_table = EntityTable.fit(catalog, item_events(log, columns), columns, "items")
    user_table = EntityTable.fit(None if users is None else read_table(users, "users"), log, columns, "users")
    found = (
        TableIds.of(log, columns.item, "item", item_table, storage),
        TableIds.of(log, columns.user, "user", user_table, storage),
    )
    # Without an items table the catalog is what the log holds: nothing is looked up.
    matches = [*table_matches(found if items is not None else found[1:]), *list_matches(log, columns, item_table)]
    for match in matches:
        match.check(columns.max_unmatched)
    check_marks(columns, columns.feedback)
    encoders = {
        "event": fit_event_columns(log, columns.feedback),
        "candidate": fit_event_columns(log, columns.context) | fit_derived(log, columns, item_table),
    }
    counted = None
    if settings.statistics:
        wanted = StatisticsConfig() if isinstance(settings.statistics, bool) else settings.statistics
        keyed = {"user": user_table.encoders, "candidate": encoders["candidate"]}
        counted = LogStatistics.of(wanted, columns, tasks, item_table, keyed)
    text = None if settings.text is None else resolve(settings.text)
    report = fit_report(log, columns, tasks, seconds, known_labels, found, matches, encoders, settings.ties)
    return LogPipeline(columns, tasks, item_table, user_table, encoders, counted, text, None), report, log.column_names
