"""Files of a processor: processor_config.json, items.parquet, statistics/, item_vectors/ and those of a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file, save_file

from polyrec.core.backbones import TextConfig
from polyrec.core.older_files import saved_files
from polyrec.core.schema import Columns, TaskConfig, from_dict, parse_tasks
from polyrec.data.catalog import COUNTS_COLUMN, FIRST_EVENT_COLUMN, RECENT_COLUMN, EntityTable, read_files, save_files
from polyrec.data.columns import FIRST, ColumnEncoder
from polyrec.data.log_statistics import LogStatistics
from polyrec.data.saved_tables import read_saved, write_saved
from polyrec.data.stored_events import StoredEvents
from polyrec.data.tables import column, ids, read_json
from polyrec.data.texts import load_tokenizer
from polyrec.data.trending import RecentCounts

FORMAT_VERSION = 2  # 1: other names of some columns, see `polyrec.core.older_files`
CONFIG_NAME, ITEMS_NAME, STATISTICS_NAME, VECTORS_NAME, ROWS_NAME, USERS_NAME, EVENTS_NAME = (
    "processor_config.json", "items.parquet", "statistics", "item_vectors", "training_rows.safetensors",
    "users.parquet", "stored_events.parquet",
)  # fmt: skip
_CONFIG_KEYS = (
    "format_version", "columns", "tasks", "item_encoders", "user_encoders", "event_encoders", "max_history", "ties",
    "label_summary", "statistics",
)  # fmt: skip


def save(
    folder: Path,
    *,
    columns: Columns,
    tasks: list[TaskConfig],
    items: EntityTable,
    users: EntityTable,
    event_encoders: Mapping[str, Mapping[str, ColumnEncoder]],
    item_counts: np.ndarray,
    first_event: np.ndarray,
    statistics: LogStatistics | None,
    text: TextConfig | None,
    tokenizer: Any,
    training_rows: Mapping[str, np.ndarray] | None,
    stored_events: StoredEvents | None,
    recent: Mapping[str, RecentCounts],
    include_users: bool,
    **plain: Any,
) -> None:
    """Write what a processor knows; of users only what never leaves the machine.

    Args:
        users: its encoders are kept, its rows are not.
        include_users: keep its rows, too, in users.parquet.
        training_rows: what `TrainingSetSketch.arrays` gives; None: unknown.
        stored_events: what users did; None: unknown.
        recent: {task: how often items were taken lately}.
        plain: further values of JSON's types.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format_version": FORMAT_VERSION,
        "columns": asdict(columns),
        "tasks": [asdict(t) for t in tasks],
        "item_encoders": {n: asdict(e) for n, e in items.encoders.items()},
        "user_encoders": {n: asdict(e) for n, e in users.encoders.items()},
        "event_encoders": {s: {n: asdict(e) for n, e in es.items()} for s, es in event_encoders.items()},
        "statistics": statistics is not None,
        "text": None if text is None else asdict(text),
        "recent": {
            task: {"mixture": own.mixture, "time": own.time if np.isfinite(own.time) else None}
            for task, own in recent.items()
        },
        **plain,
    }
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    known = {COUNTS_COLUMN: item_counts, FIRST_EVENT_COLUMN: first_event}
    table = items.table
    for name, values in known.items():
        table = table.append_column(name, pa.array(values[FIRST:]))
    if recent:
        counts = np.concatenate([own.counts[:, FIRST:] for own in recent.values()])
        lists = pa.FixedSizeListArray.from_arrays(pa.array(counts.T.ravel()), len(counts))
        table = table.append_column(RECENT_COLUMN, lists)
    write_saved(table, folder / ITEMS_NAME)
    save_files(items, folder / VECTORS_NAME)
    if training_rows is None:
        (folder / ROWS_NAME).unlink(missing_ok=True)
    else:
        save_file(dict(training_rows), folder / ROWS_NAME)
    if stored_events is None or stored_events.is_empty:
        (folder / EVENTS_NAME).unlink(missing_ok=True)
    else:
        stored_events.save(folder / EVENTS_NAME)
    if include_users:
        write_saved(users.table, folder / USERS_NAME)
    else:
        (folder / USERS_NAME).unlink(missing_ok=True)  # an earlier save may have included users
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if statistics is not None:
        (folder / STATISTICS_NAME).mkdir(exist_ok=True)
        statistics.save(folder / STATISTICS_NAME)


def load(folder: Path) -> dict[str, Any]:
    """Read what [`save`] wrote, under the same names; `users` has no rows unless they were included.

    Raises:
        ValueError: a file is missing, truncated or newer than this version, with its name and the fix.
    """
    config = read_json(folder / CONFIG_NAME)
    _check_config(config, folder / CONFIG_NAME)
    with saved_files():
        columns = from_dict(Columns, config["columns"])
    table = read_saved(folder / ITEMS_NAME, "items")
    counts = np.asarray(column(table, COUNTS_COLUMN, ITEMS_NAME, "training counts"))
    first_event = np.full(len(counts), np.inf)
    if FIRST_EVENT_COLUMN in table.column_names:  # not in folders of before there were ages of items
        first_event = np.asarray(table[FIRST_EVENT_COLUMN])
        table = table.drop_columns([FIRST_EVENT_COLUMN])
    recent, table = _recent(config.get("recent", {}), table)
    table = table.drop_columns([COUNTS_COLUMN])
    encoders = _encoders(config["item_encoders"])
    vectors = read_files(encoders, table, folder / VECTORS_NAME)
    items = EntityTable(ids(table, columns.item, "items", "item id"), table, encoders, vectors)
    if (folder / USERS_NAME).exists():
        user_table = read_saved(folder / USERS_NAME, "users")
        user_ids = ids(user_table, columns.user, "users", "user id")
    else:
        user_ids = pa.array([], pa.int64())
        user_table = pa.table({columns.user: user_ids} | {n: _no_values(e) for n, e in config["user_encoders"].items()})
    users = EntityTable(user_ids, user_table, _encoders(config["user_encoders"]))
    with saved_files():
        tasks = parse_tasks(config["tasks"])
    event_encoders = {source: _encoders(found) for source, found in config["event_encoders"].items()}
    statistics = None
    if config["statistics"]:
        keyed = {"user": users.encoders, "candidate": event_encoders["candidate"]}
        ordered = columns.time is not None
        statistics = LogStatistics.load(folder / STATISTICS_NAME, items, keyed, tasks, ordered)
    text = None if config.get("text") is None else from_dict(TextConfig, config["text"])
    return {
        "columns": columns,
        "tasks": tasks,
        "items": items,
        "users": users,
        "event_encoders": event_encoders,
        "item_counts": np.concatenate([np.zeros(FIRST, dtype=np.int64), counts]),
        "first_event": np.concatenate([np.full(FIRST, np.inf), first_event]),
        "statistics": statistics,
        "recent": recent,
        "text": text,
        "tokenizer": None if text is None else load_tokenizer(text, str(folder)),
        "training_rows": load_file(folder / ROWS_NAME) if (folder / ROWS_NAME).exists() else None,
        "log_columns": config.get("log_columns", []),  # not in folders of before they were known
        "data_report": config.get("data_report"),  # not in folders of before there were reports
        "stored_events": StoredEvents.load(folder / EVENTS_NAME) if (folder / EVENTS_NAME).exists() else None,
        **{name: config[name] for name in ("max_history", "ties", "label_summary")},
    }


def _recent(about: Mapping[str, Any], table: pa.Table) -> tuple[dict[str, RecentCounts], pa.Table]:
    """Recent counts of each task, none in folders of before there were any, and the table without them."""
    if RECENT_COLUMN not in table.column_names:
        return {}, table
    lists = table[RECENT_COLUMN].combine_chunks()
    counts_TN = np.pad(np.asarray(lists.flatten()).reshape(len(lists), -1).T, ((0, 0), (FIRST, 0)))
    found, begin = {}, 0
    for task, own in about.items():
        end = begin + len(own["mixture"])
        time = -np.inf if own["time"] is None else own["time"]
        found[task] = RecentCounts(own["mixture"], counts_TN.shape[1], counts_TN[begin:end], time)
        begin = end
    return found, table.drop_columns([RECENT_COLUMN])


def _encoders(values: Mapping[str, Any]) -> dict[str, ColumnEncoder]:
    return {name: from_dict(ColumnEncoder, v) for name, v in values.items()}


def _no_values(encoder: Mapping[str, Any]) -> pa.Array:
    """A column without rows, of a type that fits the encoder."""
    kinds = {"multi": pa.list_(pa.string()), "numeric": pa.float64(), "embedding": pa.list_(pa.float64())}
    return pa.array([], kinds.get(encoder["kind"], pa.string()))


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    version = config.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ValueError(f"{path} has format {version}, newer than {FORMAT_VERSION}: update polyrec")
    for key in _CONFIG_KEYS:
        if key not in config:
            raise ValueError(f"{path} has no {key!r}: the file is damaged or was not written by save_pretrained")
