"""Item embeddings from co-occurrence in users' histories: an informed start for id tables with few events."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

DENSE = 500  # items up to which the whole decomposition is quick
FIRST = 2  # rows 0 and 1 of an item table are padding and the unknown item


def cooccurrence_vectors(
    user: np.ndarray, item: np.ndarray, num_items: int, size: int, window: int = 8, smoothing: float = 0.75
) -> np.ndarray:
    r"""Vectors by singular value decomposition of the shifted PMI of items (Levy and Goldberg, 2014, "Neural Word
    Embedding as Implicit Matrix Factorization").

    c_ij counts how often i and j lie within `window` events of one user, and

        M_ij = max(0, log(c_ij sum_k f_k^a / (f_i f_j^a))),   M ~ U S V^T,   vectors = U S^{1/2},

    with f_i = sum_j c_ij and a the `smoothing` of context frequencies (Levy, Goldberg and Dagan, 2015). Exact up to
    rounding, without a step of training.

    Args:
        user, item: int64 [R], events in order within each user; item rows below 2 are skipped.
        num_items: N, rows of the item table.
        size: D.

    Returns:
        float32 [N, D] with root mean square 1 over the rows of items that co-occur; 0 for all others.

    Example:
        >>> item = np.array([2, 3, 2, 4, 5, 4])
        >>> vectors = cooccurrence_vectors(np.zeros(6, int), item, num_items=7, size=2, window=1)
        >>> vectors.shape, bool(vectors[6].any())
        ((7, 2), False)
    """
    known = item >= FIRST
    user, item = user[known], item[known]
    pairs = pair_counts(user, item, num_items, window)
    counts = (pairs + pairs.T).tocoo()
    vectors = np.zeros((num_items, size), dtype=np.float32)
    if not counts.nnz:
        return vectors
    frequency = np.bincount(counts.row, counts.data, num_items)
    context = frequency**smoothing / (frequency**smoothing).sum()
    information = np.log(counts.data / (frequency[counts.row] * context[counts.col]))
    positive = sparse.csr_matrix((np.maximum(information, 0), (counts.row, counts.col)), shape=pairs.shape)
    met = np.flatnonzero(frequency)
    left_vectors, strength = _leading(positive[met][:, met], size)
    # The sign of a singular vector is chance; fixed, so that the same log gives the same vectors. Rounded, because of
    # equally large entries the largest would be chance, too.
    largest = left_vectors[np.abs(left_vectors).round(4).argmax(axis=0), np.arange(len(strength))]
    found = left_vectors * np.where(largest < 0, -1.0, 1.0) * np.sqrt(strength)
    vectors[met, : len(strength)] = found / np.sqrt(np.square(found).mean())
    return vectors


def pair_counts(
    user: np.ndarray, item: np.ndarray, num_items: int, steps: int, fade: float = 1.0, dtype: type = np.float64
) -> sparse.csr_matrix:
    """How often j came after i within some steps of one user, [N, N]; an item is not its own neighbour.

    Args:
        user, item: int64 [R], events in order within each user.
        fade: what a pair counts less for each further step.
        dtype: of the counts.

    Example:
        >>> pair_counts(np.zeros(3, int), np.array([2, 3, 4]), num_items=5, steps=2, fade=0.5).toarray()[2].tolist()
        [0.0, 0.0, 0.0, 1.0, 0.5]
    """
    total = sparse.csr_matrix((num_items, num_items), dtype=dtype)
    for step in range(1, steps + 1):
        same = (user[step:] == user[:-step]) & (item[step:] != item[:-step])
        weight: np.ndarray = np.full(int(same.sum()), fade ** (step - 1), dtype=dtype)
        total = total + sparse.csr_matrix((weight, (item[:-step][same], item[step:][same])), shape=total.shape)
    return total


def _leading(matrix: sparse.csr_matrix, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors [M, K] and singular values [K] of a square matrix, largest first, K = min(size, M)."""
    if size < matrix.shape[0] and matrix.shape[0] > DENSE:
        left, strength, _ = svds(matrix, k=size, random_state=0)
        order = np.argsort(-strength)
        return left[:, order], np.maximum(strength[order], 0)
    # On small matrices ARPACK runs out of directions and begins anew at random, which no seed of ours reaches.
    left, strength, _ = np.linalg.svd(matrix.toarray())
    return left[:, :size], strength[:size]
