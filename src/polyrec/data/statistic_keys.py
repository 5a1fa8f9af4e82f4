"""The keys by which running statistics count the rows of a log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from polyrec.data.catalog import EntityTable
from polyrec.data.columns import ColumnEncoder
from polyrec.data.event_log import EventLog
from polyrec.data.event_table import Codes, EventTable
from polyrec.data.prior_history import PriorHistory
from polyrec.data.statistics import RunningStatistics


def key_names(statistics: RunningStatistics) -> set[str]:
    """Names of the keys that statistics need."""
    return {k for s in statistics.statistics for k in s.keys} | {k for keys in statistics.context for k in keys}


def statistic_keys(
    statistics: RunningStatistics,
    items: EntityTable,
    encoders: Mapping[str, Mapping[str, ColumnEncoder]],
    item: np.ndarray,
    user: np.ndarray,
    user_features: Mapping[str, np.ndarray],
    context: Mapping[str, np.ndarray],
) -> dict[str, Codes]:
    """The keys that statistics need, {name: codes of each row}.

    Args:
        items: the catalog.
        encoders: {"user": {...}, "candidate": {...}}, encoders of the attributes that may be keys.
        item, user: int64 [R], of each row.
        user_features: {name: [P] or [P, K]}, encoded attributes of the users.
        context: {name: [R] or [R, K]}, encoded context of the rows.
    """
    keys: dict[str, Codes] = {"item": item, "user": user + 1}  # 0 would be a missing one
    wanted = key_names(statistics)
    for name, values in items.encoded.items():
        if f"item.{name}" in wanted:
            keys[f"item.{name}"] = _of_rows(items.encoders[name], values, item)
    for name, encoder in encoders["user"].items():
        if f"user.{name}" in wanted:
            keys[f"user.{name}"] = _of_rows(encoder, user_features[name], user)
    for name, encoder in encoders["candidate"].items():
        if f"context.{name}" in wanted:
            keys[f"context.{name}"] = encoder.keys(context[name])
    return keys


def past_table(
    statistics: RunningStatistics,
    items: EntityTable,
    encoders: Mapping[str, Mapping[str, ColumnEncoder]],
    log: EventLog,
) -> EventTable:
    """What statistics of the time before a log read of its `prior_history`."""
    past: PriorHistory | None = log.prior_history
    assert past is not None
    unknown = {name: encoder.missing(len(past.item)) for name, encoder in encoders["candidate"].items()}
    keys = statistic_keys(statistics, items, encoders, past.item, past.user, log.user_features, unknown)
    targets = np.column_stack([past.marks[mark] for mark in statistics.targets])
    return EventTable(time=np.zeros(len(past.item)), keys=keys, targets=targets)


def _of_rows(encoder: ColumnEncoder, values: Any, rows: np.ndarray) -> Codes:
    """Keys of some rows of a table; they are made of whichever are fewer."""
    if len(rows) < len(values):
        return encoder.keys(values[rows])
    found: Codes = encoder.keys(values)[rows]
    return found
