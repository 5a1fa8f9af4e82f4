"""Embeddings of users and items for other systems, and which items are alike, as tables.

Letters: N items, D width, B users.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F

from polyrec.inference.recommender import Recommender
from polyrec.models.batches import as_batch
from polyrec.modules.encoders.item import FIRST_ITEM

_SCORES = 1 << 24  # similarities in memory at a time


@torch.no_grad()
def similar_items(recommender: Recommender, k: int = 10, items: Sequence[Any] | None = None) -> pa.Table:
    """The k items most like each item, by the cosine of their embeddings (id, attributes and text together).

    Args:
        items: ids; None: the whole catalog.

    Returns:
        a row per item and rank: the item column, `rank`, `similar` (an id) and `similarity`.
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be >= 1")
    processor, number = recommender.processor, recommender.processor.num_items
    rows = np.arange(FIRST_ITEM, number) if items is None else recommender.rows(items, "items")
    unit_ND = F.normalize(recommender.items.vectors_MD.float(), dim=-1)
    k, size = min(k, number - FIRST_ITEM - 1), max(_SCORES // number, 1)
    similar, similarity = [], []
    for first in range(0, len(rows), size):
        own = torch.from_numpy(rows[first : first + size]).to(unit_ND.device)
        scores_MN = unit_ND[own] @ unit_ND.T
        scores_MN[:, :FIRST_ITEM] = -torch.inf
        scores_MN[torch.arange(len(own)), own] = -torch.inf
        found = scores_MN.topk(k)
        similar.append(found.indices.cpu().numpy().ravel())
        similarity.append(found.values.cpu().numpy().ravel())
    ids = processor.items.ids
    return pa.table(
        {
            processor.columns.item: ids.take(pa.array(np.repeat(rows, k) - FIRST_ITEM)),
            "rank": pa.array(np.tile(np.arange(1, k + 1, dtype=np.int32), len(rows))),
            "similar": ids.take(pa.array(np.concatenate(similar) - FIRST_ITEM)),
            "similarity": pa.array(np.concatenate(similarity)),
        }
    )


@torch.no_grad()
def item_embeddings(recommender: Recommender, task: str | None = None) -> pa.Table:
    """A row per item: its id and `embedding`, float32 [D + 1], the item's vector and its bias.

    The dot product with a user's embedding is what the network adds to the score of a retrieval task; what terms add
    beside it (repeats, neighbours, trends) is not in it.

    Args:
        task: default: the one that ranks.
    """
    head, items = recommender.model.heads[recommender.retrieval_task(task)], recommender.items
    rows_N = torch.arange(FIRST_ITEM, recommender.processor.num_items, device=items.vectors_MD.device)
    bias_N1 = head.item_bias(rows_N, items).float()[:, None]
    vectors = torch.cat([items.vectors_MD[FIRST_ITEM:].float(), bias_N1], dim=1)
    return pa.table({recommender.processor.columns.item: recommender.processor.items.ids, "embedding": _lists(vectors)})


@torch.no_grad()
def user_embeddings(
    recommender: Recommender, users: Sequence[Any], task: str | None = None, batch_size: int = 256
) -> pa.Table:
    """A row per user with stored events: the id and `embedding`, float32 [D + 1], see [`item_embeddings`]."""
    head, processor = recommender.model.heads[recommender.retrieval_task(task)], recommender.processor
    found = []
    for first in range(0, len(users), batch_size):
        own = users[first : first + batch_size]
        windows = processor.open_requests([{"user_id": i} for i in own]).histories()
        with recommender.model.eval_mode() as model:
            batch = as_batch(windows, model)
            states_BD = model.states_of(batch, model.read_users(batch, recommender.items))[:, 0]
            found.append(F.pad(head.project(head.query_state(states_BD, None)).float(), (0, 1), value=1.0))
    return pa.table({processor.columns.user: pa.array(list(users)), "embedding": _lists(torch.cat(found))})


def _lists(vectors: torch.Tensor) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.cpu().numpy().ravel()), vectors.shape[1])
