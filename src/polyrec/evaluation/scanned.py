"""Ranked lists of a model in a large catalog, whose scores are never held.

Letters: R rows, D width, K length of lists.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polyrec.data.candidates import LeftOut, excluded_items
from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation import ranking
from polyrec.evaluation.scored import Ranking, rows_at_once
from polyrec.modules.encoders.item import FIRST_ITEM, ItemRows
from polyrec.modules.encoders.request_context import RequestContext
from polyrec.modules.heads._catalog_scan import scan_catalog
from polyrec.modules.heads.retrieval import RetrievalHead


def scan_ranks(
    head: RetrievalHead,
    query_state_RD: Tensor,
    items: ItemRows,
    context: RequestContext,
    dataset: SequenceDataset,
    rows: np.ndarray,
    what: LeftOut,
    k: int,
) -> Ranking:
    """What [`~polyrec.evaluation.scored.rank_scores`] says of the scores of the whole catalog, without making them.

    Args:
        head, query_state_RD, items, context: as of [`~polyrec.modules.heads._catalog_scan.scan_catalog`].
        dataset, rows, what, k: as of `rank_scores`; k >= 1.
    """
    device = query_state_RD.device
    targets_R = torch.from_numpy(dataset.log.item[dataset.candidates.event[rows]]).to(device)
    pairs = [(torch.from_numpy(index), torch.from_numpy(item)) for index, item in excluded_items(what, dataset, rows)]
    nothing = torch.zeros(0, dtype=torch.int64)
    columns = zip(*pairs, strict=True) if pairs else ([nothing], [nothing])
    rows_P, items_P = (torch.cat(list(column)).to(device) for column in columns)
    found = scan_catalog(head, query_state_RD, items, context, k + 1, targets_R, (rows_P, items_P))
    missed_R = found.target_M == float("-inf")
    excluded_R = torch.zeros_like(missed_R)
    excluded_R[rows_P[items_P == targets_R[rows_P]]] = True
    top_RK = found.ids[:, :k] - FIRST_ITEM
    tied_R = ((found.scores[:, 1:] == found.scores[:, :-1]) & found.scores[:, 1:].isfinite()).any(1)
    for some in tied_R.nonzero().squeeze(1).split(rows_at_once(len(items.vectors_MD))):
        # Chance decides among items of equal scores, in the order that `top_k` draws of all of them.
        scores_RN = head(query_state_RD[some], items, context.at(some)).float()
        place_P = torch.full_like(targets_R, -1).index_copy_(0, some, torch.arange(len(some), device=device))[rows_P]
        scores_RN[place_P[place_P >= 0], items_P[place_P >= 0]] = float("-inf")
        top_RK[some] = ranking.top_k(scores_RN[:, FIRST_ITEM:], k)
    greater_R = found.greater.masked_fill(missed_R, ranking.NEVER_LISTED)
    ties_R = found.ties.masked_fill(missed_R, 0)
    top_RK = top_RK.clamp(min=ranking.NO_ITEM)
    return Ranking(rows, *(own.cpu().numpy() for own in (greater_R, ties_R, top_RK, excluded_R)))
