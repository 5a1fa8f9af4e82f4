"""The best items of a large catalog, and the ranks of given ones, without ever holding all scores.

Letters: M requests, N rows of the item table, T of them in a tile, K length of lists, P (request, item) pairs, D width.
"""

from __future__ import annotations

from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional as F

from polyrec.modules.encoders.item import FIRST_ITEM, ItemRows
from polyrec.modules.encoders.request_context import RequestContext
from polyrec.modules.heads.base import TaskHead
from polyrec.modules.heads.retrieval import RetrievalHead

# Items whose scores are made at a time. Always as many, so that scores do not depend on where an item lies, as last
# bits of a matrix product depend on its shape; few enough for the cache.
TILE = 4096
LARGE = 65_536  # items from which on a scan is worth it
ROWS = 256  # requests that are worth a pass over the table
_NONE = float("-inf")


class Scan(NamedTuple):
    """What a scan has found.

    Args:
        ids: int64 [M, K], rows of the item table, best first, -1 = none.
        scores: [M, K], -inf = none.
        greater, ties: int64 [M], items that score higher than the target, and others that score the same.
        target_M: scores of the targets, -inf where one is no candidate.
    """

    ids: Tensor
    scores: Tensor
    greater: Tensor
    ties: Tensor
    target_M: Tensor


def can_scan(head: TaskHead) -> TypeGuard[RetrievalHead]:
    """Whether scores are an inner product, a bias and what terms say of few items."""
    own = isinstance(head, RetrievalHead) and type(head).forward is RetrievalHead.forward
    return own and not any(term.dense for term in head.named_terms.values())


@torch.no_grad()
def scan_catalog(
    head: RetrievalHead,
    query_state_MD: Tensor,
    items: ItemRows,
    context: RequestContext,
    size: int,
    targets_M: Tensor | None = None,
    excluded: tuple[Tensor, Tensor] | None = None,
) -> Scan:
    """Score the catalog in tiles that stay in the cache, and keep the best items and counts of each request.

    A pass over all scores after they were written to memory costs as much as the matrix product itself; here hardly
    more than the product is left. Memory: M x `TILE` scores.

    Args:
        head: see [`can_scan`].
        query_state_MD: of `head.query_state`.
        items: the whole table.
        context: of the requests.
        size: K; 0: no lists.
        targets_M: rows of the item table; below 2: none.
        excluded: requests [P] and items [P] of pairs that are no candidates.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    scores = _Scores(head, query_state_MD, items, context, excluded)
    best = _Best(scores.rows, size, scores.device)
    counts = None if targets_M is None else _Counts(scores, targets_M)
    highest = torch.full((scores.rows,), _NONE, device=scores.device)
    for begin in range(0, scores.num_items, TILE):
        tile = scores.tile(begin)
        top_M = tile.amax(1)
        highest = torch.maximum(highest, top_M)
        best.take(tile, top_M, begin)
        if counts is not None:
            counts.take(tile, begin)
    if bool((torch.isnan(highest) | (highest == float("inf"))).any()):
        raise ValueError("scores are not finite: the model has diverged; lower its learning rate and train it anew")
    nothing = torch.zeros(scores.rows, dtype=torch.int64, device=scores.device)
    if counts is None:
        return Scan(best.ids, best.scores, nothing, nothing, torch.full_like(highest, _NONE))
    return Scan(best.ids, best.scores, counts.greater.long(), counts.ties.long(), counts.target_M)


@torch.no_grad()
def log_sum_exp_of_others(
    head: RetrievalHead,
    query_state_MD: Tensor,
    items: ItemRows,
    context: RequestContext,
    excluded: tuple[Tensor, Tensor],
    temperature: float = 1.0,
) -> Tensor:
    """log sum exp(z / T) over all items that are not excluded, [M], tile by tile; arguments as of [`scan_catalog`]."""
    scores = _Scores(head, query_state_MD, items, context, excluded)
    top_M = torch.full((scores.rows,), torch.finfo(torch.float32).min, device=scores.device)
    total_M = torch.zeros_like(top_M, dtype=torch.float64)
    for begin in range(0, scores.num_items, TILE):
        tile = scores.tile(begin)
        if temperature != 1:
            tile.div_(temperature)
        higher_M = torch.maximum(top_M, tile.amax(1))
        total_M.mul_((top_M - higher_M).exp()).add_(tile.sub_(higher_M.unsqueeze(1)).exp_().sum(1))
        top_M = higher_M
    return torch.where(total_M > 0, total_M.log() + top_M, _NONE).float()


class _Pairs:
    """Some (request, item) pairs, by item."""

    def __init__(self, rows_P: Tensor, items_P: Tensor, num_items: int, values_P: Tensor | None = None) -> None:
        order = items_P.argsort(stable=True)
        self.rows, self.items = rows_P[order], items_P[order]
        self.values = None if values_P is None else values_P[order]
        begins = torch.arange(0, num_items + TILE, TILE, device=items_P.device)
        self.bounds = torch.searchsorted(self.items, begins).tolist()

    def within(self, begin: int) -> tuple[Tensor, Tensor, slice] | None:
        """Requests and columns of the pairs in a tile, and where they stand."""
        low, high = self.bounds[begin // TILE], self.bounds[begin // TILE + 1]
        if low == high:
            return None
        return self.rows[low:high], self.items[low:high] - begin, slice(low, high)


class _Scores:
    """Tiles of scores; -inf = no candidate."""

    def __init__(
        self,
        head: RetrievalHead,
        query_state_MD: Tensor,
        items: ItemRows,
        context: RequestContext,
        excluded: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.rows, self.num_items, self.device = len(query_state_MD), len(items.vectors_MD), query_state_MD.device
        ids_N, bias_N = head.all_biases(items)
        self.query_MD = head.project(query_state_MD)
        self.vectors_ND, self.bias_N = items.vectors_MD, bias_N.float()
        self.product_MT = self.query_MD.new_empty(self.rows, TILE)  # of the tile there is
        self.added = self.excluded = None
        if terms := head.terms:
            found = terms.entries(query_state_MD, context, ids_N)
            assert not isinstance(found, str), f"the term {found} is dense"
            items_P, values_P = (own.flatten() for own in found)
            rows_P = torch.arange(self.rows, device=self.device).repeat_interleave(found[0].shape[1])
            said_P = values_P != 0
            self.added = _Pairs(rows_P[said_P], items_P[said_P], self.num_items, values_P[said_P])
        if excluded is not None:
            self.excluded = _Pairs(*excluded, self.num_items)

    def _product(self, vectors_TD: Tensor, bias_T: Tensor) -> Tensor:
        short = TILE - len(vectors_TD)
        if short:
            vectors_TD, bias_T = F.pad(vectors_TD, (0, 0, 0, short)), F.pad(bias_T, (0, short), value=_NONE)
        vectors_TD = vectors_TD.to(self.query_MD.dtype)
        if self.query_MD.dtype == torch.float32:
            return torch.addmm(bias_T, self.query_MD, vectors_TD.T, out=self.product_MT)
        return torch.mm(self.query_MD, vectors_TD.T, out=self.product_MT).float().add_(bias_T)

    def tile(self, begin: int) -> Tensor:
        """Scores of `TILE` items from `begin` on, [M, TILE], until the next call."""
        rows = slice(begin, begin + TILE)
        found = self._product(self.vectors_ND[rows], self.bias_N[rows])
        if self.added is not None and (pairs := self.added.within(begin)) is not None:
            assert self.added.values is not None
            found.index_put_(pairs[:2], self.added.values[pairs[2]], accumulate=True)
        if self.excluded is not None and (pairs := self.excluded.within(begin)) is not None:
            found[pairs[:2]] = _NONE
        return found

    def of_targets(self, targets_M: Tensor) -> Tensor:
        """Scores of one item of each request, bit by bit those of the tiles."""
        found = []
        for at in torch.arange(self.rows, device=self.device).split(TILE):
            own = targets_M[at].clamp(min=0)
            found.append(self._product(self.vectors_ND[own], self.bias_N[own])[at, at - at[0]])
        target_M = torch.cat(found)
        if self.added is not None:
            assert self.added.values is not None
            own_P = self.added.items == targets_M[self.added.rows]
            target_M.index_put_((self.added.rows[own_P],), self.added.values[own_P], accumulate=True)
        target_M.masked_fill_(targets_M < FIRST_ITEM, _NONE)
        if self.excluded is not None:
            target_M[self.excluded.rows[self.excluded.items == targets_M[self.excluded.rows]]] = _NONE
        return target_M


class _Best:
    """The best items so far."""

    def __init__(self, rows: int, size: int, device: torch.device) -> None:
        self.size = size
        self.scores = torch.full((rows, size), _NONE, device=device)
        self.ids = torch.full((rows, size), -1, dtype=torch.int64, device=device)

    def take(self, tile: Tensor, top_M: Tensor, begin: int) -> None:
        """Look at a tile; most tiles have nothing for most requests."""
        if not self.size:
            return
        some = (top_M > self.scores[:, -1]).nonzero().squeeze(1)
        if not len(some):
            return
        scores, ids = self.scores[some], self.ids[some]
        tile = tile[some]
        row, column = (tile > scores[:, -1:]).nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=len(some))
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        more = scores.new_full((len(some), int(counts.max())), _NONE)
        more[row, place] = tile[row, column]
        their = ids.new_full(more.shape, -1)
        their[row, place] = column + begin
        self.scores[some], at = torch.cat([scores, more], dim=1).topk(self.size, dim=1)
        self.ids[some] = torch.cat([ids, their], dim=1).gather(1, at)


class _Counts:
    """How many items score higher than each request's target, and how many the same."""

    def __init__(self, scores: _Scores, targets_M: Tensor) -> None:
        self.target_M = scores.of_targets(targets_M)
        # An infinite difference has no sign: where the target is no candidate, nothing is counted.
        self.compared_M1 = self.target_M.masked_fill(self.target_M == _NONE, torch.finfo(torch.float32).max).unsqueeze(
            1
        )
        rows_M = torch.arange(scores.rows, device=scores.device)
        self.own = _Pairs(rows_M, targets_M.clamp(min=0), scores.num_items)
        self.greater = torch.zeros(scores.rows, device=scores.device, dtype=torch.float64)
        self.ties = torch.zeros_like(self.greater)
        self.ones = torch.ones(TILE, device=scores.device)

    def take(self, tile: Tensor, begin: int) -> None:
        """Count a tile, which is overwritten."""
        if (own := self.own.within(begin)) is not None:
            tile[own[:2]] = _NONE
        # Signs are added up by products, which is several times as fast on CPU as comparing and counting.
        sign = tile.sub_(self.compared_M1).sign_()
        more_M = sign.mv(self.ones)
        unequal_M = sign.abs_().mv(self.ones)
        self.greater += (more_M + unequal_M) / 2
        self.ties += TILE - unequal_M
