"""How often items that came later are shown: biases of what nobody has taken yet."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from polyrec.encoders.item import FIRST_ITEM
from polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.processing_polyrec import PolyRecProcessor
from polyrec.recommendation import as_batch

_PEOPLE, _EVENTS = 256, 10  # longer and shorter histories are further from how real people's states answer


@torch.no_grad()
def level_new_items(model: PolyRecForRecommendation, processor: PolyRecProcessor, new_N: torch.Tensor) -> None:
    """Let new items get as much of a retrieval task's softmax, each, as items that have been taken, see `level`.

    An extension knows no people. It asks about some whose events took items by chance, as often as these are taken.

    Args:
        new_N: bool [N], items whose vectors were told by their texts (`ItemEncoder.extend`).
    """
    heads = [model.heads[name] for name in model.state_tasks if model.heads[name].excludes == "history"]
    counts = model.item_encoder.counts.cpu().double().numpy()
    if not heads or not new_N.any() or not counts.any():
        return
    drawn = np.random.default_rng(0).choice(len(counts), (_PEOPLE, _EVENTS), p=counts / counts.sum())
    histories = [processor.items.ids.take(pa.array(rows - FIRST_ITEM)).to_pylist() for rows in drawn]
    with model.eval_mode() as model:
        windows = [processor.request(history, np.array([FIRST_ITEM])) for history in histories]
        items = model.item_encoder.table()
        batch = as_batch(windows, model)
        states, moment = model(**batch, items=items).states[:, 0], model.moment(**batch).at((slice(None), 0))
        for head in heads:
            head.level(states, items, model.item_encoder.counts > 0, new_N, moment)
