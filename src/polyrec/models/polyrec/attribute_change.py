"""Items of the catalog whose attributes change while a model serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import torch

from polyrec.data.texts import check_template
from polyrec.models.polyrec.extension import calibrate_new_items
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import FIRST_ITEM


def prepared_change(
    model: PolyRecForRecommendation, processor: PolyRecProcessor, rows: np.ndarray, values: Mapping[str, pa.Array]
) -> Callable[[], None]:
    """What other attributes of some items have to compute, beside readers; the call of the result is short.

    Events that were counted stay counted under the attributes that their item had then; requests read those of now,
    also of a history's items.

    Args:
        rows: int64 [K], ascending, rows of the item table.
        values: {column of the catalog: K values}.

    Raises:
        ValueError: a column has another type.
    """
    columns, items = processor.columns, processor.items
    change_table = items.prepared_change(rows - FIRST_ITEM, values, "items")
    change_model = prepared_model_change(model, processor, rows, values)
    dated = columns.item_time is not None and columns.item_time in values

    def apply() -> None:
        change_table()
        change_model()
        if dated:
            model.load_times(processor)

    return apply


def prepared_model_change(
    model: PolyRecForRecommendation, processor: PolyRecProcessor, rows: np.ndarray, values: Mapping[str, pa.Array]
) -> Callable[[], None]:
    """The same of the model alone: the processor may have changed already."""
    items, encoder, rows_K = processor.items, model.item_encoder, torch.from_numpy(rows).to(model.device)
    read = {f.name for f in encoder.attributes.features}
    encoded = {
        name: items.encoders[name].encode(pa.array(own), f"items: column {name!r}")
        for name, own in values.items()
        if name in read
    }
    texts_KW, placed_N = None, torch.zeros_like(encoder.known)
    if encoder.text is not None and processor.text is not None and {*_template(processor)} & values.keys():
        table = items.table.take(pa.array(rows - FIRST_ITEM))
        for name, own in values.items():
            table = table.set_column(table.column_names.index(name), name, own)
        texts_KW = encoder.text.read(processor.tokens_of(table))
        if encoder.text.fallback:
            placed_N[rows_K] = encoder.known[rows_K] & (encoder.counts[rows_K] == 0)
    change = encoder.prepared_change(rows_K, encoded, texts_KW)
    if not placed_N.any():
        return change
    model.refuse_int8("other texts of items that `extend` has placed")

    def apply() -> None:
        change()
        encoder.place(placed_N)
        calibrate_new_items(model, processor, placed_N)

    return apply


def _template(processor: PolyRecProcessor) -> list[str]:
    assert processor.text is not None
    return check_template(processor.text.template, processor.items.table.column_names)
