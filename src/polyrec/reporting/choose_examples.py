"""Example users of a run: their history without its last event, and what the model predicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.data.row_lists import row_events, with_lists
from polyrec.data.tables import read_table, times
from polyrec.inference.explanation.explain import explain
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.reporting.examples import Example, title_of
from polyrec.runs.prepare import read_run, tables_of

_RECOMMENDED = 5


def example_users(run: Path, users: int) -> list[Example]:
    """Users with short, middling and long histories, chosen by their number of events alone, so always the same ones.

    Those with one event are left out: nothing would be left to guess from. Rows with lists are as many users.
    """
    model, processor = PolyRecForRecommendation.from_pretrained(run).eval(), PolyRecProcessor.from_pretrained(run)
    columns = processor.columns
    table = with_lists(read_table(tables_of(read_run(run), "interactions")[0], "interactions"), columns)
    table = table.take(pa.array(np.argsort(times(table, columns, "interactions"), kind="stable")))
    if columns.history is not None:
        events = np.asarray(pc.list_value_length(table[columns.history])) + 1
        return [_example(model, processor, row_events(table, columns, int(i))) for i in _chosen(events, users)]
    counts = pc.value_counts(table[columns.user].combine_chunks())
    events, ids = np.asarray(counts.field("counts")), counts.field("values")
    chosen = _chosen(events, users)
    return [_example(model, processor, table.filter(pc.equal(table[columns.user], ids[i]))) for i in chosen]


def _chosen(events: np.ndarray, users: int) -> np.ndarray:
    """Some users by their number of events."""
    eligible = np.flatnonzero(events > 1)
    eligible = eligible[np.argsort(events[eligible], kind="stable")]
    shares = (np.arange(users) + 0.5) / users  # of the way from the least to the most active
    return eligible[np.unique((shares * len(eligible)).astype(np.int64))] if len(eligible) else eligible


def _example(model: PolyRecForRecommendation, processor: PolyRecProcessor, events: pa.Table) -> Example:
    columns = processor.columns
    rows = processor.items.rows(events[columns.item].combine_chunks())
    titles = [title_of(processor.describe(int(row))) if row > 1 else "an item outside the catalog" for row in rows]
    read = [c for c in events.column_names if c != columns.user]
    found = explain(model, processor, history=events.select(read).slice(0, events.num_rows - 1), k=_RECOMMENDED)
    return Example(len(titles) - 1, titles[:-1], titles[-1], found)
