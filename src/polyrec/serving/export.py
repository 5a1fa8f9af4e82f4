"""Events of a server as a table for the next training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from polyrec.core.files import replacing
from polyrec.core.swap import recover
from polyrec.data.tables import read_table
from polyrec.data.times import times
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.serving.events import VARIANT, EventFormat
from polyrec.serving.loading import Covered, covered_run, tables_of_run
from polyrec.serving.places import open_store, state_folder
from polyrec.serving.records import EventStore, Kind

_PIECE = 100_000  # events at a time


@dataclass(frozen=True)
class Collected:
    """What a server has collected since a run was trained.

    Args:
        events: with the log's columns; metadata say which store and which of its records they are. None: no events.
        items: with the catalog's columns, new ones with attributes. None: no new items.
        first, last: the records.
        early: events that are not in the table, as they are not later than the run's log.
    """

    events: pa.Table | None
    items: pa.Table | None
    first: int
    last: int
    early: int


def export_events(run: str, output: str, state: str | None = None, database: str | None = None) -> int:
    """Write the events that the run was not trained on, with the log's columns; how many they are.

    Where the server had variants, the column `served_variant` says which one the user of an event saw.

    The table says which store and up to which record it holds, by which a server knows what a model that was trained on
    it has seen. Events that are not later than the run's log are left out: no training can add them to it, and the
    server keeps them in the histories of their users.

    Raises:
        ValueError: there are none.
    """
    with store_of(run, state, database) as store:
        found = collected(run, store)
    if found.early:
        print(f"{found.early:,} events came too late: they are not later than the log of {run}, and are left out")
    if found.events is None:
        raise ValueError(f"the store holds no events after those that {run} was trained on")
    write(found.events, Path(output))
    print(f"{len(found.events):,} events written to {output}")
    return len(found.events)


def write(table: pa.Table, path: Path) -> None:
    """Write a table whole."""
    with replacing(path) as draft:
        pq.write_table(table, draft)


@contextmanager
def store_of(run: str, state: str | None, database: str | None) -> Iterator[EventStore]:
    """The store of a run's server, beside which it may be running."""
    folder = state_folder(run, state)
    if database is None and not folder.exists():
        raise ValueError(f"{folder} does not exist: name the folder of the server with --state")
    store = open_store(folder, database)
    try:
        yield store
    finally:
        store.close()


def collected(run: str, store: EventStore) -> Collected:
    """What a store holds that a run was not trained on."""
    processor = PolyRecProcessor.from_pretrained(run)
    form, known, last = EventFormat(processor), covered_run(run, store.store_id).upto, store.last
    latest = _latest(run, processor)
    records = store.read(after=known, before=last + 1, kinds=[Kind.EVENT])
    tables: list[pa.Table] = []
    early: set[int] = set()
    while some := form.read_all(list(islice(records, _PIECE))):
        early.update(event.seq for event in some if event.time <= latest)
        if later := [event for event in some if event.time > latest]:
            shown = pa.array([event.columns.get(VARIANT) for event in later], pa.string())
            tables.append(form.table(later).append_column(VARIANT, shown))
    items: dict[Any, dict[str, Any]] = {}
    for record in store.read(before=last + 1, kinds=[Kind.ITEM]):
        body = json.loads(record.body)
        if "attributes" in body and form.item_row(item := body["item_id"]) is None:
            before = items.get(item, {"attributes": {}})["attributes"]
            items[item] = {"item_id": item, "attributes": before | body["attributes"]}
    events = None
    if tables:
        events = pa.concat_tables(tables, promote_options="permissive")
        events = events.select([name for name in events.column_names if events[name].null_count < len(events)])
        events = events.replace_schema_metadata(Covered(last, frozenset(early)).metadata(store.store_id))
    return Collected(events, form.items_table([*items.values()]) if items else None, known + 1, last, len(early))


def _latest(run: str, processor: PolyRecProcessor) -> float:
    """The time of the latest event of a run's log, seconds; its processor may have counted the training set alone."""
    found = processor.log_state.counted
    for path in tables_of_run(recover(run), "interactions"):
        found = max(found, float(times(read_table(path, "interactions"), processor.columns, path).max()))
    return found
