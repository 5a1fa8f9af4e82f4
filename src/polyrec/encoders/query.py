"""What people typed, placed among the items.

Letters: B people, C candidates, Q queries of a batch, S tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polyrec.data.texts import TokenTable
from polyrec.encoders.item_text import ItemText


@dataclass
class CandidateQueries:
    """What was typed before each candidate was found.

    Args:
        vectors_BCD: 0 where nobody searched.
        own_items_BC: the item that the query is the text of, which is never a result; 0 = none.
    """

    vectors_BCD: Tensor
    own_items_BC: Tensor


def encode_queries(
    text: ItemText, tokens_QS: Tensor, mask_QS: Tensor, candidate_query_BC: Tensor, own_items_BC: Tensor | None = None
) -> CandidateQueries:
    r"""q = P e(query), by the items' own text encoder e and projection P: a query lies where an item of its text would.

    Each query of a batch is encoded once, whoever typed it.

    Args:
        tokens_QS: 0 = padding on the right, where `mask_QS` is False.
        candidate_query_BC: row of the candidate's query, -1 = none.
    """
    mask = mask_QS.cpu().numpy()
    offsets = np.concatenate([[0], np.cumsum(mask.sum(1))])
    table = TokenTable(tokens_QS.cpu().numpy()[mask].astype(np.int32), offsets)
    vectors_QD = text.project(text.encoder(table, device=text.vectors.device))
    # The row before the first stands for "no query". F.embedding: its backward is fast on CPU, unlike that of indexing.
    with_none = torch.cat([vectors_QD.new_zeros(1, vectors_QD.shape[1]), vectors_QD])
    own_items_BC = torch.zeros_like(candidate_query_BC) if own_items_BC is None else own_items_BC
    return CandidateQueries(F.embedding(candidate_query_BC + 1, with_none), own_items_BC)
