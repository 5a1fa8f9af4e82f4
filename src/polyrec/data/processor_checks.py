"""What a processor refuses: columns, catalogs and texts that contradict each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from polyrec.core.backbones import TextConfig
from polyrec.core.registry import nearest
from polyrec.core.schema import Columns, TaskConfig
from polyrec.data.catalog import EntityTable
from polyrec.data.columns import FIRST, ColumnEncoder
from polyrec.data.event_log import EventLog
from polyrec.data.tables import first_bad_row


def check_text_changes(text: TextConfig, changes: Mapping[str, Any]) -> None:
    """Refuse a model that reads other tokens than the processor makes."""
    for name in ("model", "revision", "template", "max_length", "prompt", "query_prompt"):
        if name in changes and changes[name] != asdict(text)[name]:
            raise ValueError(f"text.{name} is the processor's: give it to PolyRecProcessor.fit(text=...)")


def check_queries(columns: Columns, tasks: Sequence[TaskConfig], text: TextConfig | None) -> None:
    """Refuse queries that nothing can read, and search without queries."""
    searches = [t.name for t in tasks if t.head == "search"]
    if columns.query is not None and text is None:
        raise ValueError(
            f"columns.query={columns.query!r} needs a text encoder: PolyRecProcessor.fit(text={{'model': ...}})"
        )
    if columns.query is None and searches:
        raise ValueError(
            f"task {searches[0]!r} is a search, but columns.query does not say which column holds the queries"
        )


def check_untimed(columns: Columns, tasks: Sequence[TaskConfig]) -> None:
    """Refuse what compares with a time in a log without times."""
    for task in tasks if columns.time is None else []:
        if task.options.get("item_age") is not None:
            raise ValueError(
                f"task {task.name!r}: item_age={task.options['item_age']!r} is the age of items at the time of an "
                "example, but the log has no times (columns.time: null): leave it out"
            )


def check_split(columns: Columns, by: str) -> None:
    """Refuse a split by times that are not there, and one that would train on what comes later."""
    if columns.history is not None and by == "leave_one_out":
        fix = "random" if columns.time is None else "time"
        raise ValueError(
            'the split by "leave_one_out" needs the events of each user one by one, and here each row is a sequence of '
            f'its own (columns.history): leave `by` out, or by="{fix}"'
        )
    if columns.time is None and by != "random":
        raise ValueError(
            f'the split by {by!r} needs times and the log has none (columns.time: null): leave `by` out, or by="random"'
        )
    if columns.time is not None and by == "random":
        raise ValueError(
            'the split by "random" would train on events after those it is evaluated on: it is for logs without times '
            '(columns.time: null); use by="time" or by="leave_one_out"'
        )


def refuse_continuation(columns: Columns) -> None:
    """Refuse to go on with a log of which nobody knows what is new."""
    if columns.time is None:
        raise ValueError(
            "a log without times (columns.time: null) cannot go on: nothing tells which events are later than those "
            "counted; train again on all of them"
        )


def check_searches(log: EventLog, tasks: Sequence[int], columns: Columns, what: str) -> None:
    """Refuse a search whose positive is the item that its query is the text of, which no search returns.

    Args:
        tasks: columns of `log.labels` that are searches.
    """
    assert log.queries is not None
    labelled = ~np.isnan(log.labels[:, tasks]).all(axis=1) & (log.item >= FIRST)
    itself = first_bad_row(labelled & (log.queries.own_item == log.item))
    if itself is not None:
        raise ValueError(
            f"{what}: row {log.row[itself]} has a query with the text of its own item, which no search "
            f"returns: leave {columns.query_item!r} empty there, or remove the row"
        )


def check_statistics_only(
    columns: Columns, items: EntityTable, users: EntityTable, context: Mapping[str, ColumnEncoder]
) -> None:
    """Refuse columns that are to be keys of statistics only but are no attributes at all."""
    known = [f"item.{n}" for n in items.encoders] + [f"user.{n}" for n in users.encoders]
    known += [f"context.{n}" for n in context]
    for name in columns.statistics_only:
        if name not in known:
            raise ValueError(f"columns.statistics_only: unknown {name!r}; {nearest(name, known)}")
