"""A teacher's lists of a large catalog, whose scores are never held.

Letters: M rows, D width, K items of a list.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyrec.distillation.lists import NO_ITEM
from polyrec.modules.encoders.item import ItemRows
from polyrec.modules.encoders.request_context import RequestContext
from polyrec.modules.heads._catalog_scan import ROWS, log_sum_exp_of_others, scan_catalog
from polyrec.modules.heads.retrieval import RetrievalHead


def scanned_lists(
    head: RetrievalHead,
    query_state_MD: Tensor,
    items: ItemRows,
    context: RequestContext,
    k: int,
    temperature: float,
    own_M: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What [`~polyrec.distillation.lists.top_list`] says of the scores of the whole catalog, without making them: the
    catalog is scored once for the lists, and once for what is left.

    Args:
        head, query_state_MD, items, context: as of [`~polyrec.modules.heads._catalog_scan.scan_catalog`].
        own_M: int64, an item of each row that is no candidate.
    """
    found = []
    for at in torch.arange(len(query_state_MD), device=query_state_MD.device).split(ROWS):
        scored = head, query_state_MD[at], items, context.at(at)
        request_M = torch.arange(len(at), device=at.device)
        own = None if own_M is None else (request_M, own_M[at])
        best = scan_catalog(*scored, min(k, len(items.vectors_MD)), excluded=own)
        listed_MK = best.ids >= 0
        rows_P, ids_P = request_M.unsqueeze(1).expand_as(best.ids)[listed_MK], best.ids[listed_MK]
        if own is not None:
            rows_P, ids_P = torch.cat([rows_P, own[0]]), torch.cat([ids_P, own[1]])
        others_M = log_sum_exp_of_others(*scored, (rows_P, ids_P), temperature)
        found.append((best.ids.clamp(min=NO_ITEM), torch.cat([best.scores, others_M.unsqueeze(1)], dim=1)))
    ids, scores = zip(*found, strict=True)
    return torch.cat(ids), torch.cat(scores)
