"""What users typed, in the space of the items.

Letters: B users, C candidates, Q queries of a batch, S tokens, W width of text vectors, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyrec.data.texts import TokenTable
from polyrec.modules.encoders.item_text import ItemText
from polyrec.modules.encoders.text import TextEncoder

_REMEMBERED = 100_000  # queries whose vectors are kept: 150 MB at width 384


@dataclass
class CandidateQueries:
    """What was typed before each candidate was found.

    Args:
        vectors_BCD: 0 where nobody searched.
        own_items_BC: the item that the query is the text of, which is never a result; 0 = none.
    """

    vectors_BCD: Tensor
    own_items_BC: Tensor


class QueryEncoder(nn.Module):
    r"""q = P e(query), by the items' own text encoder e and projection P: a query lies where an item of its text would.

    Each query of a batch is encoded once, whoever typed it. What a frozen encoder says is remembered, so that a query
    is encoded once in all epochs. There is nothing to learn here: encoder and projection belong to the items.

    Shapes: tokens and mask [Q, S], candidate_query [B, C] -> [B, C, D].
    """

    def __init__(self) -> None:
        super().__init__()
        self._remembered: dict[bytes, Tensor] = {}

    def forward(
        self,
        text: ItemText,
        tokens_QS: Tensor,
        mask_QS: Tensor,
        candidate_query_BC: Tensor,
        own_items_BC: Tensor | None = None,
    ) -> CandidateQueries:
        """Encode a batch's queries.

        Args:
            tokens_QS: 0 = padding on the right, where `mask_QS` is False.
            candidate_query_BC: row of the candidate's query, -1 = none.
        """
        mask = mask_QS.cpu().numpy()
        offsets = np.concatenate([[0], np.cumsum(mask.sum(1))])
        table = TokenTable(tokens_QS.cpu().numpy()[mask].astype(np.int32), offsets)
        device = text.vectors.device
        vectors_QW = (
            text.encoder(table, device=device) if text.encoder.tuned else self._frozen(text.encoder, table, device)
        )
        vectors_QD = text.project(vectors_QW.to(text.vectors.dtype))  # a backbone may have a type of its own
        # The row before the first stands for "no query". F.embedding: its backward is fast on CPU, unlike indexing's.
        with_none = torch.cat([vectors_QD.new_zeros(1, vectors_QD.shape[1]), vectors_QD])
        own_items_BC = torch.zeros_like(candidate_query_BC) if own_items_BC is None else own_items_BC
        return CandidateQueries(F.embedding(candidate_query_BC + 1, with_none), own_items_BC)

    @torch.no_grad()
    def _frozen(self, encoder: TextEncoder, table: TokenTable, device: torch.device) -> Tensor:
        """Vectors of a frozen encoder, [Q, W]."""
        keys = table.contents()
        if len(self._remembered) + len(keys) > _REMEMBERED:
            self._remembered.clear()
        known = {key: found for key in keys if (found := self._remembered.get(key)) is not None}
        new = np.array([q for q, key in enumerate(keys) if key not in known], dtype=np.int64)
        said = {keys[q]: vector for q, vector in zip(new, encoder(table, new, device).cpu(), strict=True)}
        self._remembered.update(said)  # other threads may clear it at any time: this call reads what it has seen
        known |= said
        return torch.stack([known[key] for key in keys]).to(device)
