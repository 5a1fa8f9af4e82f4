"""The best items of a large catalog for some users, without a score of every item in memory.

Letters: B users, N rows of the item table, P (user, item) pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from polyrec.data.batch import Batch
from polyrec.inference.ranked import best_items
from polyrec.inference.scorer import Scorer, TorchScorer
from polyrec.inference.user_requests import UserRequest
from polyrec.modules.heads._catalog_scan import LARGE, can_scan, scan_catalog


def scans(scorer: Scorer, task: str, requests: Sequence[UserRequest]) -> bool:
    """Whether lists come from a scan: in a large catalog, where all items but a few may be listed."""
    if not isinstance(scorer, TorchScorer) or len(scorer.items.vectors_MD) <= LARGE:
        return False
    return can_scan(scorer.model.heads[task]) and all(own.allowed is None for own in requests)


def scan_lists(
    scorer: Scorer,
    task: str,
    batch: Batch,
    read: Any,
    k: int,
    requests: Sequence[UserRequest],
    seen: Sequence[np.ndarray],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The k best items of each user, rows and scores, as [`best_items`][polyrec.inference.ranked.best_items] has them.

    Args:
        scorer, task, requests: see [`scans`].
        batch: with one candidate per user, who sees all events.
        read: what `scorer` read of it.
        seen: rows of the item table that each user does not get.
    """
    assert isinstance(scorer, TorchScorer)
    model = scorer.model
    head, states_BD = model.heads[task], model.states_of(batch, read)[:, 0]
    assert can_scan(head)
    context = model.request_context(batch).at((slice(None), 0))
    hidden = [np.concatenate([own.excluded, rows]) for own, rows in zip(requests, seen, strict=True)]
    users_P = np.repeat(np.arange(len(hidden)), [len(rows) for rows in hidden])
    pairs = [torch.from_numpy(own.astype(np.int64)).to(states_BD.device) for own in (users_P, np.concatenate(hidden))]
    query_BD = head.query_state(states_BD, None)
    found = scan_catalog(head, query_BD, scorer.items, context, k + 1, excluded=(pairs[0], pairs[1]))
    for number, (rows, scores) in enumerate(zip(found.ids.cpu().numpy(), found.scores.cpu().numpy(), strict=True)):
        if np.isfinite(scores[k]) and scores[k] == scores[k - 1]:  # the list ends among equals: the first ones stay
            at = torch.tensor([number], device=states_BD.device)
            every_N = head(query_BD[at], scorer.items, context.at(at))[0].float().cpu().numpy()
            requests[number].mask(every_N, seen[number])
            rows = best_items(every_N, k)
            yield rows, every_N[rows]
            continue
        rows, scores = rows[:k][np.isfinite(scores[:k])], scores[:k][np.isfinite(scores[:k])]
        order = np.lexsort((rows, -scores))
        yield rows[order], scores[order]
