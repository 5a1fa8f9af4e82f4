"""How often items that came later are shown: biases of items without events."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from polyrec.models.batches import as_batch
from polyrec.models.multitask import MultiTaskModel
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import FIRST_ITEM

_USERS, _EVENTS = 256, 10  # longer and shorter histories are further from how real users' states score


@torch.no_grad()
def calibrate_new_items(model: MultiTaskModel, processor: PolyRecProcessor, new_N: torch.Tensor) -> None:
    """Let new items get as much of a retrieval task's softmax, each, as items that have been taken, see `level`.

    An extension knows no users. It makes some whose events have items by chance, as often as these occur.

    Args:
        new_N: bool [N], items whose embeddings come from their texts (`ItemEncoder.extend`).
    """
    heads = [model.heads[name] for name in model.history_tasks]
    counts = model.item_encoder.counts.cpu().double().numpy()
    if not heads or not new_N.any() or not counts.any():
        return
    drawn = np.random.default_rng(0).choice(len(counts), (_USERS, _EVENTS), p=counts / counts.sum())
    with model.eval_mode() as model:
        windows = windows_of(processor, drawn)
        items = model.item_encoder.table()
        batch = as_batch(windows, model)
        states, context = model(**batch, items=items).states[:, 0], model.request_context(**batch).at((slice(None), 0))
        for head in heads:
            head.calibrate_new_items(states, items, model.item_encoder.counts > 0, new_N, context)


def windows_of(processor: PolyRecProcessor, histories_VL: np.ndarray) -> list[dict[str, Any]]:
    """Requests of new users, each about the catalog's first item.

    Args:
        histories_VL: int64 [V, L], rows of items, oldest first, without times.
    """
    ids = processor.items.ids
    histories = [ids.take(pa.array(own - FIRST_ITEM)).to_pylist() for own in histories_VL]
    return processor.open_requests([{"history": own} for own in histories]).histories()
