"""Events of a server as a table for the next training."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from polyrec.core.files import replacing
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.serving.events import EventFormat
from polyrec.serving.loading import COVERS, covered_run
from polyrec.serving.places import open_store, state_folder
from polyrec.serving.records import Kind

_PIECE = 100_000  # events at a time


def export_events(run: str, output: str, state: str | None = None, database: str | None = None) -> int:
    """Write the events that the run was not trained on, with the log's columns; how many they are.

    The table says which store and up to which record it holds, by which a server knows what a model that was trained on
    it has seen.

    Raises:
        ValueError: there are none.
    """
    processor = PolyRecProcessor.from_pretrained(run)
    form = EventFormat(processor)
    folder = state_folder(run, state)
    if database is None and not folder.exists():
        raise ValueError(f"{folder} does not exist: name the folder of the server with --state")
    store = open_store(folder, database)
    try:
        last, known = store.last, covered_run(run, store.store_id)
        records = store.read(after=known, before=last + 1, kinds=[Kind.EVENT])
        tables = []
        while some := list(islice(records, _PIECE)):
            tables.append(form.table([form.read(record) for record in some]))
    finally:
        store.close()
    if not tables:
        raise ValueError(f"the store holds no events after those that {run} was trained on")
    whole = pa.concat_tables(tables, promote_options="permissive")
    whole = whole.select([name for name in whole.column_names if whole[name].null_count < len(whole)])
    whole = whole.replace_schema_metadata({COVERS: f"{store.store_id} {last}"})
    with replacing(Path(output)) as draft:
        pq.write_table(whole, draft)
    print(f"{len(whole):,} events written to {output}")
    return len(whole)
