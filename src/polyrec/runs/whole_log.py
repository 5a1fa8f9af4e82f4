"""A run whose statistics, trends and histories stand at the end of its log: what batch jobs predict from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from polyrec.core.swap import recover
from polyrec.data.tables import read_table
from polyrec.inference.catalog_index import IndexKind
from polyrec.inference.recommender import Recommender
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.prepare import joined_table, read_run, tables_of


def recommender_of_run(
    run: str | Path, events: Any = None, batch_size: int = 64, index: IndexKind = "exact"
) -> tuple[Recommender, list[Any]]:
    """A recommender that knows the whole log, and the ids of the log's users in the order in which they first occur.

    Args:
        events: the whole log up to now, a table with the columns of the first one; None: the tables that the run was
            trained on.
        batch_size, index: of the recommender.

    Raises:
        ValueError: the log has no times, so that nothing tells what is new; or a table is not where it was.
    """
    place, recipe = recover(run), read_run(run, tables=events is None)
    processor = PolyRecProcessor.from_pretrained(place)
    model = PolyRecForRecommendation.from_pretrained(place)
    if tables_of(recipe, "users") and not len(processor.users.ids):
        processor.extend(users=read_table(joined_table(recipe, "users"), "users"))  # they are not saved with a run
    table = read_table(joined_table(recipe, "interactions") if events is None else events, "interactions")
    processor.resume(table, recipe.prior_history)
    model.load_times(processor)
    return Recommender(model, processor, batch_size, index=index), distinct(table, processor.columns.user)


def distinct(table: pa.Table, column: str) -> list[Any]:
    """The values of a column, each once."""
    return pc.unique(table[column]).to_pylist()
