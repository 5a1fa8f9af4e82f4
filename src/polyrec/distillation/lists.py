"""Lists of a retrieval task as teachers give them: the best items, and what is left for all others.

Letters: M rows, N items of the catalog, K items of a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polyrec.data.columns import FIRST

NO_ITEM = 0  # row of the padding item: an empty place in a list
_BLOCK = 1 << 24  # logits that are looked at at a time
_NONE = float("-inf")


def top_list(logits_MN: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""The K best items of each row, their logits, and what all other items weigh together.

        others = log \sum_{j not listed} exp(z_j / T)

    The two give the teacher's probability of every listed item, and that of "any other", at the temperature T exactly.

    Args:
        logits_MN: of every row of the item table; -inf = no candidate (padding, the unknown item).
        k: items to list; a row with fewer candidates has empty places at its end.
        temperature: T, of the others alone: listed logits are given as they are.

    Returns:
        items, int64 [M, K] rows of the item table, 0 = none, and scores, float [M, K + 1], the others last.

    Example:
        >>> items, scores = top_list(torch.tensor([[float("-inf"), float("-inf"), 1.0, 3.0, 1.0]]), k=1)
        >>> items.tolist(), [round(s, 4) for s in scores[0].tolist()]  # 3, and log(2 e)
        ([[3]], [3.0, 1.6931])
    """
    logits_MN = logits_MN.float()
    scores_MK, items_MK = logits_MN.topk(min(k, logits_MN.shape[1]), dim=1)
    others_M = torch.logsumexp(logits_MN.scatter(1, items_MK, _NONE) / temperature, dim=1)
    return items_MK.masked_fill(scores_MK == _NONE, NO_ITEM), torch.cat([scores_MK, others_M.unsqueeze(1)], dim=1)


def wants_list(batch: Mapping[str, Any], task: str) -> Tensor:
    """Which candidates of a batch get a list, bool [B, C]: the positives, as the task's labels say.

    A list belongs to the state before an event, the same for all that could have come; made where the
    labels need it, too, it costs no more than they do. In a batch without labels of the task it is every candidate.
    """
    real = batch["candidate_ids"] > NO_ITEM
    labels = (batch.get("labels") or {}).get(task)
    return real if labels is None else (labels > 0) & (batch["candidate_ids"] >= FIRST)


def spread(rows_M: Tensor, found: tuple[Tensor, Tensor], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Lists of some candidates in the batch's shape: [M, K] and [M, K + 1] -> [B, C, K] and [B, C, K + 1], NaN = none.

    Args:
        rows_M: int64, which of the B * C candidates they belong to.
        shape: (B, C).
    """
    items_MK, scores_MK = found
    items = items_MK.new_zeros((shape[0] * shape[1], items_MK.shape[1]))
    scores = scores_MK.new_full((shape[0] * shape[1], scores_MK.shape[1]), float("nan"))
    items[rows_M], scores[rows_M] = items_MK, scores_MK
    return items.view(*shape, -1), scores.view(*shape, -1)


def rows_at_once(num_items: int) -> int:
    """How many rows of logits are looked at together, so that memory is bounded."""
    return max(_BLOCK // max(num_items, 1), 1)
