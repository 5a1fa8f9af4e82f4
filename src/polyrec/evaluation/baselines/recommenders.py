"""Classical recommenders: seconds to fit, hard to beat, and teachers for distillation.

Popularity, ItemKNN and EASE rank the catalog for any history, also of users who were not there at fitting; BiasModel
predicts explicit feedback. Items are numbered 0..N-1. Reading only the LAST few events of a user often beats reading
all of them, because what comes next depends on now. Histories are ragged and in time order: user r took
history_items[history_offsets[r]:history_offsets[r + 1]]. Items already taken keep their scores: exclude them when
ranking (`ranking.top_k`). Letters: E events, R histories, N items.
"""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
import scipy.sparse as sp

from polyrec.data.ridge import interaction_matrix, ridge_weights

_BLOCK = 1 << 22  # item pairs that ItemKNN.fit compares at a time: bounds its memory to a few 100 MB


class Popularity:
    """All users get the most frequent items: score(i) = number of events of item i. The lower bound for any
    recommender.

    Example:
        >>> model = Popularity().fit(np.array([0, 0, 1]), np.array([2, 1, 2]), n_items=3)
        >>> model.score(np.array([0, 0, 1]), np.array([2])).tolist()
        [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]
    """

    def fit(self, users: np.ndarray, items: np.ndarray, n_items: int) -> Self:
        """Count. users, items: int [E], one entry per event."""
        _check_events(users, items, n_items)
        self.counts_N = np.bincount(items, minlength=n_items).astype(np.float32)
        return self

    def score(self, history_offsets: np.ndarray, history_items: np.ndarray) -> np.ndarray:
        """Scores, float32 [R, N], the same for every history."""
        return np.tile(self.counts_N, (len(history_offsets) - 1, 1))


class ItemKNN:
    r"""Items like the ones taken last: score(j) = sum_{i in last events} sim(i, j), over the K neighbours j of each i.

    sim is the cosine of the items' columns of the user x item matrix (Sarwar et al., 2001). With "tfidf" user u's
    row weighs sqrt(events) log((1 + N) / (1 + items of u)): who took everything says little about what belongs
    together (as in the library `implicit`). An item is not its own neighbour.

    Args:
        weighting: "tfidf" or "cosine".
        neighbours: K, kept per item; fewer is sharper and smaller.
        last: number of most recent events that vote, each with the same weight; None = all.

    Example:
        >>> users, items = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 2, 1])
        >>> model = ItemKNN("cosine", neighbours=1).fit(users, items, n_items=3)
        >>> print(model.score(np.array([0, 1]), np.array([0])).round(3))
        [[0.    0.816 0.   ]]
    """

    def __init__(
        self, weighting: Literal["tfidf", "cosine"] = "tfidf", neighbours: int = 200, last: int | None = 5
    ) -> None:
        if weighting not in ("tfidf", "cosine"):
            raise ValueError(f"unknown weighting {weighting!r}: known are 'tfidf' and 'cosine'")
        if neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, not {neighbours}")
        self.weighting, self.neighbours, self.last = weighting, neighbours, _check_last(last)

    def fit(self, users: np.ndarray, items: np.ndarray, n_items: int) -> Self:
        """Find the neighbours. users, items: int [E], one entry per event; repeated pairs count."""
        _check_events(users, items, n_items)
        user_E = np.unique(users, return_inverse=True)[1]
        matrix = sp.csr_array((np.ones(len(items)), (user_E, items)), shape=(user_E.max(initial=-1) + 1, n_items))
        distinct = np.diff(matrix.indptr)  # distinct items per user
        if self.weighting == "tfidf":
            matrix.data = np.sqrt(matrix.data) * np.repeat(np.log((1 + n_items) / (1 + distinct)), distinct)
        norm_N = np.sqrt(np.bincount(matrix.indices, weights=np.square(matrix.data), minlength=n_items))
        matrix.data /= np.where(norm_N > 0, norm_N, 1.0)[matrix.indices]
        by_item = matrix.T.tocsr()
        # An item is compared with all that its users consumed; neighbouring items share a block until it is full.
        pairs_N = np.bincount(matrix.indices, weights=np.repeat(distinct, distinct), minlength=n_items)
        blocks = np.split(np.arange(n_items), np.flatnonzero(np.diff(np.cumsum(pairs_N) // _BLOCK)) + 1)
        parts = [_nearest(by_item[block] @ matrix, block, self.neighbours) for block in blocks]
        self.similarity_NN = sp.vstack(parts, format="csr").astype(np.float32)
        return self

    def score(self, history_offsets: np.ndarray, history_items: np.ndarray) -> np.ndarray:
        """Scores, float32 [R, N]."""
        rows = history_matrix(history_offsets, history_items, self.similarity_NN.shape[0], self.last)
        return (rows @ self.similarity_NN).toarray()


class EASE:
    r"""Embarrassingly shallow autoencoder: a linear item-item model in closed form (Steck, 2019, arXiv:1905.03375).

    min_B |X - X B|^2 + ridge |B|^2 with diag(B) = 0, X the binary user x item matrix. With P = (X'X + ridge I)^-1 the
    solution is B_ij = -P_ij / P_jj, B_jj = 0; the score of a history x is x B. Unlike ItemKNN it discounts neighbours
    that say the same. Needs a dense N x N matrix: 20,000 items take 1.6 GB a copy and minutes. With fewer users than
    items P comes from an inverse of users x users (Woodbury): (X'X + r I)^-1 = (I - X'(XX' + r I)^-1 X) / r.

    Args:
        ridge: weight of the penalty; grows with the number of users.
        last: number of most recent events read; None = all.
        max_items: refuse larger catalogs instead of running out of memory.

    Example:
        >>> users, items = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 2])
        >>> print(EASE(ridge=1.0).fit(users, items, n_items=3).score(np.array([0, 1]), np.array([0])).round(3))
        [[0.    0.667 0.   ]]
    """

    def __init__(self, ridge: float = 500.0, last: int | None = 10, max_items: int = 20_000) -> None:
        if ridge <= 0:
            raise ValueError(f"ridge must be positive, not {ridge}: items without events would make X'X singular")
        self.ridge, self.last, self.max_items = ridge, _check_last(last), max_items

    def fit(self, users: np.ndarray, items: np.ndarray, n_items: int) -> Self:
        """Solve. users, items: int [E], one entry per event; repeated pairs count once."""
        _check_events(users, items, n_items)
        if n_items > self.max_items:
            raise ValueError(
                f"EASE needs a dense {n_items} x {n_items} matrix ({4 * n_items**2 / 1e9:.1f} GB): use ItemKNN, "
                f"or raise max_items={self.max_items} if the memory is there"
            )
        matrix = interaction_matrix(users, items, n_items)
        self.weights_NN = np.concatenate([b.astype(np.float32, copy=False) for b in ridge_weights(matrix, self.ridge)])
        return self

    def score(self, history_offsets: np.ndarray, history_items: np.ndarray) -> np.ndarray:
        """Scores, float32 [R, N]; an item taken repeatedly is read once, as in fitting."""
        rows = history_matrix(history_offsets, history_items, len(self.weights_NN), self.last)
        rows.data[:] = 1.0
        return rows @ self.weights_NN


class BiasModel:
    r"""Explicit feedback without interaction: y = mu + b_i + b_u, each bias shrunk towards 0 (Koren, 2009).

    b_i = sum_{rows of i} (y - mu - b_u) / (rows of i + k_i), b_u = sum_{rows of u} (y - mu - b_i) / (rows of u + k_u),
    in turns. k is a prior count: so many imagined rows of residual 0. Unknown users and items have bias 0.
    Predictions are clipped: to [0.01, 0.99] if all labels are 0 or 1 (log loss does not forgive being sure and wrong),
    else to the range of the training labels.

    Args:
        item_prior: k_i.
        user_prior: k_u.
        iterations: turns; 5 are enough.

    Example:
        >>> users, items, stars = np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([5, 3, 1])
        >>> model = BiasModel(item_prior=1, user_prior=1, iterations=1).fit(users, items, stars)
        >>> model.predict(np.array([0, 1, 7]), np.array([0, 1, 1])).round(2).tolist()  # user 7 is unknown
        [4.56, 1.67, 2.33]
    """

    def __init__(self, item_prior: float = 5.0, user_prior: float = 10.0, iterations: int = 5) -> None:
        if min(item_prior, user_prior) < 0 or iterations < 1:
            raise ValueError("priors are counts >= 0, and at least one iteration is needed")
        self.item_prior, self.user_prior, self.iterations = item_prior, user_prior, iterations

    def fit(self, users: np.ndarray, items: np.ndarray, labels: np.ndarray) -> Self:
        """Learn the biases. users, items: int [E], >= 0; labels: [E], NaN = unknown, dropped."""
        labels_E = np.asarray(labels).astype(np.float64)
        users, items = np.asarray(users), np.asarray(items)
        _check_events(users, items, None)
        if labels_E.shape != users.shape:
            raise ValueError(f"labels must hold one label per event, {users.shape}, not {labels_E.shape}")
        known_E = ~np.isnan(labels_E)
        users, items, labels_E = users[known_E], items[known_E], labels_E[known_E]
        if not len(labels_E):
            raise ValueError("no label is known: BiasModel needs at least one")
        self.mean = float(labels_E.mean())
        binary = bool(np.isin(labels_E, (0, 1)).all())
        self.range = (0.01, 0.99) if binary else (float(labels_E.min()), float(labels_E.max()))
        # One entry more than there are numbers, for ever 0: the bias of what is unknown, see `predict`.
        self.user_bias = np.zeros(users.max() + 2)
        self.item_bias = np.zeros(items.max() + 2)
        for _ in range(self.iterations):
            rest_E = labels_E - self.mean - self.user_bias[users]
            self.item_bias = _shrunk_means(items, rest_E, self.item_prior, len(self.item_bias))
            rest_E = labels_E - self.mean - self.item_bias[items]
            self.user_bias = _shrunk_means(users, rest_E, self.user_prior, len(self.user_bias))
        return self

    def predict(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Predictions, float64 [R]. Numbers never seen in fitting, and negative ones, are unknown: bias 0."""
        user_bias_R = self.user_bias[_or_unknown(users, len(self.user_bias))]
        item_bias_R = self.item_bias[_or_unknown(items, len(self.item_bias))]
        return (self.mean + user_bias_R + item_bias_R).clip(*self.range)


def _shrunk_means(code_E: np.ndarray, values_E: np.ndarray, prior: float, size: int) -> np.ndarray:
    """Sum / (count + prior) per code; 0 where there is no row."""
    count = np.bincount(code_E, minlength=size) + prior
    return np.bincount(code_E, weights=values_E, minlength=size) / np.where(count > 0, count, 1.0)


def _or_unknown(code_R: np.ndarray, size: int) -> np.ndarray:
    """The code, or the last entry of a table of `size` for codes outside of it."""
    code_R = np.asarray(code_R)
    return np.where((code_R >= 0) & (code_R < size), code_R, size - 1)


def _nearest(products: sp.csr_array, block: np.ndarray, neighbours: int) -> sp.csr_array:
    """The `neighbours` largest cosines of each row, without the item itself (row r is item block[r])."""
    products.sort_indices()  # ties go by item number: the fit is reproducible
    row, column, value = np.repeat(np.arange(len(block)), np.diff(products.indptr)), products.indices, products.data
    other = (column != block[row]) & (value > 0)
    row, column, value = row[other], column[other], value[other]
    order = np.argsort(2.0 * row - value, kind="stable")  # cosines are below 2; 7 times faster than lexsort
    row, column, value = row[order], column[order], value[order]
    count = np.bincount(row, minlength=len(block))
    rank = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    keep = rank < neighbours
    return sp.csr_array((value[keep], (row[keep], column[keep])), shape=products.shape)


def history_matrix(
    offsets: np.ndarray, items: np.ndarray, n_items: int, last: int | None, decay: float = 1.0
) -> sp.csr_array:
    """Events of each history, float32 [R, N], counting only the last few of each; the n-th last weighs decay^(n - 1).

    Example:
        >>> history_matrix(np.array([0, 3]), np.array([0, 1, 0]), 2, last=None, decay=0.5).toarray().tolist()
        [[1.25, 0.5]]
    """
    offsets, items = np.asarray(offsets), np.asarray(items)
    length_R = np.diff(offsets)
    if not len(offsets) or (length_R < 0).any() or offsets[0] < 0 or offsets[-1] > len(items):
        raise ValueError(f"history_offsets must be non-decreasing and end within the {len(items)} history_items")
    end_R = offsets[1:]
    if last is not None:
        length_R = np.minimum(length_R, last)
    within = np.arange(length_R.sum()) - np.repeat(np.cumsum(length_R) - length_R, length_R)
    chosen = items[np.repeat(end_R - length_R, length_R) + within]
    _check_items("history_items", chosen, n_items)
    row = np.repeat(np.arange(len(length_R)), length_R)
    weight = np.power(decay, length_R[row] - 1 - within).astype(np.float32)
    return sp.csr_array((weight, (row, chosen)), shape=(len(length_R), n_items))


def _check_last(last: int | None) -> int | None:
    if last is not None and last < 1:
        raise ValueError(f"last must be at least 1 event, or None for the whole history, not {last}")
    return last


def _check_events(users: np.ndarray, items: np.ndarray, n_items: int | None) -> None:
    if np.ndim(users) != 1 or np.shape(users) != np.shape(items):
        raise ValueError(f"users and items must be equally long vectors, not {np.shape(users)} and {np.shape(items)}")
    _check_items("users", users, None)
    _check_items("items", items, n_items)


def _check_items(name: str, codes: np.ndarray, size: int | None) -> None:
    if not np.size(codes):
        return
    if np.asarray(codes).dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, not {np.asarray(codes).dtype}: map ids to 0, 1, 2, ... first")
    low, high = np.min(codes), np.max(codes)
    if low < 0 or (size is not None and high >= size):
        raise ValueError(f"{name} must lie in 0..{'' if size is None else size - 1}, not {low}..{high}")
