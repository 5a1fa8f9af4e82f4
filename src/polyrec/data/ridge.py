"""Linear item-item models in closed form: weights by ridge regression of each item on all others.

Letters: U users, N items.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
from scipy.linalg import get_lapack_funcs

DENSE = 4000  # users or items, whichever are fewer, up to which an inverse takes seconds
_BLOCK = 1 << 24  # weights computed at a time


def ridge_inverse(gram: sp.csr_array, ridge: float) -> np.ndarray:
    """(gram + ridge I)^-1 of a positive semidefinite matrix, dense, by Cholesky: half the work of a general inverse."""
    dense = gram.toarray()
    if not len(dense):
        return dense
    dense.flat[:: len(dense) + 1] += ridge
    factor, inverse = get_lapack_funcs(("potrf", "potri"), (dense,))
    found, failed = factor(dense.T, lower=1, overwrite_a=1)  # symmetric: its transpose is the same in LAPACK's order
    if not failed:
        found, failed = inverse(found, lower=1, overwrite_c=1)
    if failed:
        raise ValueError(f"EASE cannot be solved with ridge={ridge}: give it a larger one")
    found = np.tril(found)
    return found + np.tril(found, -1).T


def interaction_matrix(user: np.ndarray, item: np.ndarray, num_items: int) -> sp.csr_array:
    """1 where a user interacted with an item, [U, N], of events; in single precision from `DENSE` items on: half the
    memory."""
    number = np.unique(user, return_inverse=True)[1]
    # The condition of what is inverted is at most 1 + events of an item / ridge.
    ones = np.ones(len(item), np.float64 if num_items < DENSE else np.float32)
    interacted_UN = sp.csr_array((ones, (number, item)), shape=(number.max(initial=-1) + 1, num_items))
    interacted_UN.data[:] = 1.0
    return interacted_UN


def ridge_weights(interacted_UN: sp.csr_array, ridge: float) -> Iterator[np.ndarray]:
    """Blocks of rows of EASE's weights (Steck, 2019), one after the other, see
    [`polyrec.evaluation.baselines.recommenders.EASE`].

    Args:
        interacted_UN: 1 where a user interacted with an item.

    Example:
        >>> interactions = sp.csr_array(np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        >>> (np.concatenate(list(ridge_weights(interactions, ridge=1.0))).round(3) + 0.0).tolist()  # no -0.0
        [[0.0, 0.667, 0.0], [0.667, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    users, items = interacted_UN.shape
    if users < items:  # the inverse of users x users (Woodbury)
        half_UN = ridge_inverse(interacted_UN @ interacted_UN.T, ridge) @ interacted_UN
        left = 1.0 - np.asarray((interacted_UN * half_UN).sum(axis=0)).ravel()
    else:
        inverse_NN = ridge_inverse(interacted_UN.T @ interacted_UN, ridge)
        left = -inverse_NN.diagonal()
    by_item = interacted_UN.T.tocsr()
    for rows in np.array_split(np.arange(items), max(items * items // _BLOCK, 1)):
        block = by_item[rows] @ half_UN if users < items else inverse_NN[rows]
        block = block / left
        block[np.arange(len(rows)), rows] = 0.0
        yield block
