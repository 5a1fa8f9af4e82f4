"""The best items for a query vector: exact by default, by an inverted file where a catalog is large.

A score is q . v_j + b_j. What is not allowed is left out *before* the best are chosen, so that a search finds k items
whenever k are allowed.

Letters: B queries, N items, K best items, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from polyrec.core.extras import check_extra

# Items from which on an inverted file is worth its recall below 1: scripts/benchmarks/index.py measures it.
LARGE = 300_000
SELECTIVE = 0.2  # share of allowed items below which these alone are scored, which is quicker then than any search
NONE = -1  # in the place of a row where there are fewer than K
_CELL = 256  # items of a cell of the inverted file, about
_SAMPLE = 128  # queries by which the number of cells to visit is chosen
_TRAINED_ON = 64  # items per cell
_SPARE = 2  # times k items are scored exactly
_BLOCK = 1 << 24  # scores held at a time
_MOST_BESIDE = 0.01  # share of items that are scored in each search, as they are no part of the file


class Found(NamedTuple):
    """The best items.

    Args:
        rows: int64 [B, K], best first; NONE: no more are allowed.
        scores: float32 [B, K], -inf there.
    """

    rows: np.ndarray
    scores: np.ndarray


class Raised(NamedTuple):
    """What is added to the scores of a few items for one query, e.g. by retrieval terms.

    Args:
        rows: int64 [R].
        added: float32 [R].
    """

    rows: np.ndarray
    added: np.ndarray


class ExactIndex:
    """Scores every allowed item.

    Args:
        vectors: float32 [N, D].
        bias: float32 [N]; -inf: never listed (padding, the unknown item). None: zeros.

    Example:
        >>> index = ExactIndex(np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.0]]))
        >>> index.search(np.array([[1.0, 0.2]]), 2, allowed=np.array([False, True, True])).rows.tolist()
        [[2, 1]]
    """

    def __init__(self, vectors: np.ndarray, bias: np.ndarray | None = None) -> None:
        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self.bias = np.zeros(len(vectors), np.float32) if bias is None else np.asarray(bias, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.vectors)

    def search(
        self,
        queries: np.ndarray,
        k: int,
        allowed: np.ndarray | None = None,
        raised: Sequence[Raised | None] | None = None,
    ) -> Found:
        """The k best allowed items of each query; of equal ones the first.

        Args:
            queries: [B, D].
            allowed: bool [N], or [B, N] of each query; None: all.
            raised: of each query, what is added to the scores of some items.
        """
        queries, k = np.asarray(queries, dtype=np.float32), min(k, len(self))
        found, filters = _empty(len(queries), k), _filters(allowed, len(queries))
        own = [None] * len(queries) if raised is None else raised
        whole = [at for at, wanted in enumerate(filters) if wanted is None or wanted.share >= SELECTIVE]
        step = max(_BLOCK // max(len(self), 1), 1)
        for begin in range(0, len(whole), step):
            some = whole[begin : begin + step]
            for at, scores_N in zip(some, queries[some] @ self.vectors.T + self.bias, strict=True):
                self._put(found, at, scores_N, filters[at], own[at])
        for at in {*range(len(queries))}.difference(whole):
            one = self.search_among(queries[at], filters[at].rows, k, own[at])
            found.rows[at], found.scores[at] = one.rows[0], one.scores[0]
        return found

    def _put(self, found: Found, at: int, scores_N: np.ndarray, wanted: _Filter | None, raised: Raised | None) -> None:
        """Put the best of all items into a line."""
        if raised is not None:
            np.add.at(scores_N, raised.rows, raised.added)
        if wanted is not None:
            scores_N[~wanted.mask] = -np.inf
        _put(found, at, np.arange(len(self)), scores_N)

    def search_among(self, query: np.ndarray, rows: np.ndarray, k: int, raised: Raised | None = None) -> Found:
        """The k best of some items for one query [D].

        Args:
            rows: int64 [R], ascending, each once.
        """
        scores_R = self.vectors[rows] @ np.asarray(query, dtype=np.float32) + self.bias[rows]
        if raised is not None:
            place = np.searchsorted(rows, raised.rows).clip(max=max(len(rows) - 1, 0))
            here = rows[place] == raised.rows if len(rows) else np.zeros(len(raised.rows), dtype=bool)
            np.add.at(scores_R, place[here], raised.added[here])
        found = _empty(1, min(k, len(self)))
        _put(found, 0, rows, scores_R)
        return found


@dataclass(frozen=True)
class _Visits:
    """How many cells are visited where at least this share of the items is allowed."""

    share: float
    cells: int


class InvertedIndex:
    """Visits the cells of an inverted file that lie nearest to a query (faiss), and scores what it finds there exactly.

    Inner products become distances, which cells are made for, by one more coordinate that gives all items one length
    (Bachrach et al., 2014, "Speeding Up the Xbox Recommender System Using a Euclidean Transformation for Inner-Product
    Spaces"). How many cells a search visits is chosen when the index is built: the fewest by which sample queries have
    the wanted recall, of all items and of random halves and fifths. Where fewer than a fifth is allowed, or a search
    finds fewer than k, all allowed items are scored.

    Args:
        vectors, bias: as of `ExactIndex`.
        queries: sample of queries, [S, D]; None: item embeddings.
        recall: of the 100 best items, wanted of the sample.
        threads: of faiss, which are of the whole process; None: as they are.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        bias: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        recall: float = 0.99,
        threads: int | None = None,
    ) -> None:
        check_extra("faiss", "faiss", "inverted files")
        import faiss

        if threads is not None:
            faiss.omp_set_num_threads(threads)
        self.exact = ExactIndex(vectors, bias)
        self._listed = np.flatnonzero(np.isfinite(self.exact.bias))
        self._beside = np.zeros(0, dtype=np.int64)  # rows that the file does not hold as they are now
        points = _points(self.exact, self._listed)
        cells = max(len(points) // _CELL, 1)
        self._file = faiss.IndexIVFFlat(faiss.IndexFlatL2(points.shape[1]), points.shape[1], cells)
        self._file.cp.max_points_per_centroid = _TRAINED_ON
        self._file.cp.seed = 0
        self._file.train(points)
        self._file.add_with_ids(points, self._listed)
        random = np.random.default_rng(0)
        if queries is None:
            queries = self.exact.vectors[random.choice(self._listed, min(_SAMPLE, len(self._listed)), replace=False)]
        self._visits = self._chosen(np.asarray(queries, dtype=np.float32)[:_SAMPLE], recall, random)

    def __len__(self) -> int:
        return len(self.exact)

    def changed(self, vectors: np.ndarray, bias: np.ndarray) -> InvertedIndex | None:
        """The index of a catalog some of whose items are new or have changed: they are scored in each search.

        Returns:
            None: there are so many that a new index should be built.
        """
        before, known = self.exact, min(len(self), len(vectors))
        other = (before.vectors[:known] != vectors[:known]).any(1) | (before.bias[:known] != bias[:known])
        beside = np.union1d(np.concatenate([np.flatnonzero(other), np.arange(known, len(vectors))]), self._beside)
        if len(vectors) < len(self) or len(beside) > _MOST_BESIDE * len(vectors):
            return None
        found = copy(self)
        found.exact, found._beside = ExactIndex(vectors, bias), beside.astype(np.int64)
        found._listed = np.flatnonzero(np.isfinite(found.exact.bias))
        return found

    def search(
        self,
        queries: np.ndarray,
        k: int,
        allowed: np.ndarray | None = None,
        raised: Sequence[Raised | None] | None = None,
    ) -> Found:
        """The k best allowed items of each query, as far as visited cells have them; arguments as of `ExactIndex`."""
        queries, k = np.asarray(queries, dtype=np.float32), min(k, len(self))
        found = _empty(len(queries), k)
        shared = None if allowed is None or allowed.ndim > 1 else _Filter(allowed)
        for at, query in enumerate(queries):
            wanted = shared if allowed is None or allowed.ndim == 1 else _Filter(allowed[at])
            own = None if raised is None else raised[at]
            rows = self._candidates(query, k, wanted, own)
            best = self.exact.search_among(query, rows, k, own)
            if best.rows[0, -1] == NONE:  # too few in the cells: as many as there are
                everywhere = self._listed if wanted is None else wanted.rows
                best = self.exact.search_among(query, everywhere, k, own)
            found.rows[at], found.scores[at] = best.rows[0], best.scores[0]
        return found

    def _candidates(self, query: np.ndarray, k: int, wanted: _Filter | None, raised: Raised | None) -> np.ndarray:
        """Rows that are scored exactly, ascending."""
        share = 1.0 if wanted is None else wanted.share
        if wanted is not None and share < SELECTIVE:
            return wanted.rows
        # What is lowered leaves its place to others.
        most = _SPARE * k + (0 if raised is None else int((raised.added < 0).sum()))
        cells = next(own.cells for own in self._visits if share >= own.share)
        rows = self._visited(query[None], min(most, len(self)), cells, None if wanted is None else wanted.selector)[0]
        rows = rows[rows >= 0]
        for more in (self._beside, None if raised is None else raised.rows):
            if more is not None:
                rows = np.concatenate([rows, more if wanted is None else more[wanted.mask[more]]])
        return np.unique(rows)

    def _visited(self, queries: np.ndarray, count: int, cells: int, selector: Any = None) -> np.ndarray:
        """Rows found in the nearest cells, [S, count], -1 = none."""
        import faiss

        ones, zeros = np.ones((len(queries), 1), np.float32), np.zeros((len(queries), 1), np.float32)
        made: Any = faiss.SearchParametersIVF
        parameters = made(nprobe=cells, **({} if selector is None else {"sel": selector}))
        return self._file.search(np.concatenate([queries, ones, zeros], axis=1), count, params=parameters)[1]

    def _chosen(self, queries: np.ndarray, recall: float, random: np.random.Generator) -> list[_Visits]:
        """The fewest cells that give the wanted recall, the largest share of allowed items first."""
        found: list[_Visits] = []
        k = min(100, len(self._listed))
        for share in (1.0, 0.5, SELECTIVE):
            allowed = random.random(len(self)) < share
            wanted = _Filter(allowed & np.isfinite(self.exact.bias))
            best = self.exact.search(queries, k, wanted.mask).rows
            cells = found[-1].cells if found else 1
            while cells < self._file.nlist and self._recall(queries, best, cells, wanted) < recall:
                cells = min(cells + max(cells // 3, 1), self._file.nlist)
            found.append(_Visits(share if share < 1 else 0.999, cells))
        return found

    def _recall(self, queries: np.ndarray, best: np.ndarray, cells: int, wanted: _Filter) -> float:
        rows = self._visited(queries, best.shape[1], cells, wanted.selector)
        listed = best != NONE
        hits = [np.isin(own[real], got).sum() for own, got, real in zip(best, rows, listed, strict=True)]
        return float(sum(hits) / max(listed.sum(), 1))


class _Filter:
    """Allowed items, bool [N], as an inverted file reads them."""

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = mask
        self.share = np.count_nonzero(mask) / max(len(mask), 1)
        self._bits: np.ndarray | None = None

    @cached_property
    def rows(self) -> np.ndarray:
        """Allowed rows, int64, ascending."""
        return np.flatnonzero(self.mask)

    @property
    def selector(self) -> Any:
        """Of faiss, which reads the bits where they lie."""
        import faiss

        if self._bits is None:
            self._bits = np.packbits(self.mask, bitorder="little")
        selector: Any = faiss.IDSelectorBitmap  # whose Python form takes an array alone
        return selector(self._bits)


AnyIndex = ExactIndex | InvertedIndex


def build_index(
    vectors: np.ndarray, bias: np.ndarray | None = None, queries: np.ndarray | None = None, large: int = LARGE
) -> AnyIndex:
    """The index that fits a catalog; arguments as of the classes.

    Args:
        large: items from which on it is an inverted file.
    """
    return ExactIndex(vectors, bias) if len(vectors) < large else InvertedIndex(vectors, bias, queries)


def _points(exact: ExactIndex, rows: np.ndarray) -> np.ndarray:
    """Vectors with their bias, and one coordinate more by which all have one length."""
    points = np.concatenate([exact.vectors[rows], exact.bias[rows, None]], axis=1)
    squares = np.square(points, dtype=np.float64).sum(1)
    rest = np.sqrt(np.maximum(squares.max(initial=0.0) - squares, 0.0)).astype(np.float32)
    return np.ascontiguousarray(np.concatenate([points, rest[:, None]], axis=1))


def _filters(allowed: np.ndarray | None, queries: int) -> list[Any]:
    """The `_Filter` of each query, None = all items."""
    if allowed is None:
        return [None] * queries
    return [_Filter(allowed)] * queries if allowed.ndim == 1 else [_Filter(mask) for mask in allowed]


def _empty(queries: int, k: int) -> Found:
    return Found(np.full((queries, k), NONE, dtype=np.int64), np.full((queries, k), -np.inf, dtype=np.float32))


def _put(found: Found, at: int, rows: np.ndarray, scores: np.ndarray) -> None:
    """Put the best of some rows into a line; of equal scores the first rows."""
    k = found.rows.shape[1]
    if len(scores) > k:
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        kept = np.flatnonzero(scores >= least)
        rows, scores = rows[kept], scores[kept]
    order = np.argsort(-scores, kind="stable")[:k]
    order = order[scores[order] > -np.inf]
    found.rows[at, : len(order)], found.scores[at, : len(order)] = rows[order], scores[order]
