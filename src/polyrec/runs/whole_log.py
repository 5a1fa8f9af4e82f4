"""A run whose statistics, trends and histories stand at the end of its log: what batch jobs predict from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.core.swap import recover
from polyrec.data.tables import read_table
from polyrec.data.times import seconds
from polyrec.inference.catalog_index import IndexKind
from polyrec.inference.recommender import Recommender
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.prepare import joined_table, read_run, tables_of
from polyrec.tracking.run_files import RECIPE_NAME


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


def keeps_events(processor: PolyRecProcessor) -> bool:
    """Whether events can be added to the log of a model: it has times, and rows bring no lists of their own."""
    return processor.columns.time is not None and processor.columns.history is None


def see_log(run: str | Path, processor: PolyRecProcessor) -> str | None:
    """Let the processor of a run, which was saved at the end of the training rows, know the log to its end.

    Returns:
        the table that is not where the recipe says, so that the processor stays as it is; None: it knows the log.
    """
    place, columns = recover(run), processor.columns
    if not (place / RECIPE_NAME).exists():
        return RECIPE_NAME
    recipe = read_run(place, tables=False)
    paths = [*tables_of(recipe, "interactions"), *([recipe.prior_history] if recipe.prior_history else [])]
    if gone := [path for path in paths if not Path(path).exists()]:
        return gone[0]
    table = read_table(joined_table(recipe, "interactions"), "interactions")
    assert columns.time is not None  # without times nothing tells what is new
    times = seconds(table[columns.time], columns.time_unit, f"column {columns.time!r}", columns.time_format)
    counted, stored = processor.log_state.counted, processor.stored_events
    known = 0 if stored is None else stored.count
    if int((times <= counted).sum()) < known:  # another log in its place would take the events from the state
        return f"{paths[0]} with the {known:,} events that {place.name} has counted"
    if np.nanmax(times, initial=-np.inf) > counted:
        processor.resume(table, recipe.prior_history)
    return None


def distinct(table: pa.Table, column: str) -> list[Any]:
    """The values of a column, each once."""
    return pc.unique(table[column]).to_pylist()
