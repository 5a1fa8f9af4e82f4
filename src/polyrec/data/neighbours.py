"""Which items go with which, counted in a log: the evidence that item-to-item recommenders rank by.

Letters: R events, N items, K neighbours, T kinds of evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from polyrec.data.cooccurrence import FIRST, pair_counts
from polyrec.data.ridge import DENSE, interaction_matrix, ridge_weights
from polyrec.data.sampling import uniform

KINDS = ("together", "similar", "next")
TABLES = ("linear", "transitions")  # tables of one kind each, whose weight validation chooses
SET_KINDS = ("together", "similar", "linear")  # of users whose events have no order
RIDGE = 400.0  # of "linear" of sets
RIDGE_OF_LATEST = 200.0  # of "linear" where it is read for the latest items alone
WINDOW, FADE = 10, 0.9  # of "together": events to both sides, and what one step further counts
POWER = 0.4  # by which frequent items are damped on both sides of "together"
REACH = 50  # latest items that tables of `TABLES` are read for: of made-up orders, old ones say as much as new ones
STEPS, STEP_FADE = 5, 0.7  # of "next"
SHRINKAGE = 5.0  # events that are added to those of an item: few say little about what follows it
LONGEST = 500  # latest items of one user that "similar" compares: bounds its memory
FOLDS = 4
SMALL = 50_000  # items whose tables are small whatever they hold
_BLOCK = 1 << 22  # pairs of items compared at a time


def fold_of(user: np.ndarray) -> np.ndarray:
    """The fold of each user (int64, numbers of a log), 1..FOLDS."""
    return 1 + (uniform(user, 0, 0, "neighbours") * FOLDS).astype(np.int64)


def worthwhile(num_items: int, hidden_size: int = 64, ordered: bool = True) -> int:
    """How many neighbours to keep: 128, or as many as make a table of two fifths of the item table's memory.

    Training holds 1 + FOLDS more, of the items that have neighbours; below 50,000 items they are small whatever they
    hold. Linear models of sets lose more by each weight that is left out: there it is 256 in small catalogs.
    """
    if not ordered and num_items <= 10_000:
        return 256
    if num_items <= SMALL:
        return 128
    return max(2 * 4 * hidden_size // ((1 + FOLDS) * (4 + 2 * len(KINDS))), 8)


def weighed_sizes(user: np.ndarray, num_items: int, max_history: int) -> dict[str, int]:
    """How many numbers of each item to keep of `TABLES` tables of events in order, 128, and "reach", of how many
    latest items to read them: 50, or half a window, as much as evaluations see at least.

    "linear" keeps none of a log too large for an inverse, "transitions" of catalogs of which `worthwhile` keeps fewer
    neighbours.
    """
    linear = min(len(np.unique(user)), num_items) <= DENSE and num_items <= 5 * DENSE
    reach = max(min(REACH, max_history // 2), 1)
    return {"linear": 128 * linear, "transitions": 128 * (num_items <= SMALL), "reach": reach}


class Neighbours(NamedTuple):
    """The strongest neighbours of each item.

    Args:
        items: int32 [N, K], ascending, 0 = none.
        values: float16 [N, T, K], how strongly each kind of evidence speaks for the neighbour; 0 where it says nothing.
            Those of "linear" may be negative.
    """

    items: np.ndarray
    values: np.ndarray


def neighbours(user: np.ndarray, item: np.ndarray, num_items: int, size: int, ordered: bool = True) -> Neighbours:
    r"""Count the evidence of a log.

    Three kinds, each divided by the mean of the largest value of each item; logits read the square roots, whose spread
    is more even:

    * together: c_ij / (d_i d_j)^{0.4}, c_ij = sum over pairs of events within 10 steps of one user of 0.9^{steps - 1},
      d_i = sum_j c_ij (between counts, power 0, and cosine-like lifts, power 1);
    * similar: cosine of the items' columns of the user x item matrix, rows weighted by log((1 + N) / (1 + items)) (the
      tf-idf item-kNN of the library `implicit`; Sarwar et al., 2001);
    * next: n_ij / (n_i + 5), n_ij = sum over pairs of events where j follows i within 5 steps of 0.7^{steps - 1} (a
      Markov chain with skips; He and McAuley, 2016).

    Where events have no order, "together" counts all pairs of a user's items alike, and in the place of "next" stands

    * linear: the weights of EASE (Steck, 2019; [`polyrec.data.ridge`]), as they are: their sums, not those of roots,
      are what was fitted. Of catalogs of which neither items nor users are few enough for an inverse: nothing.

    Args:
        user, item: int64 [R], events in order within each user, users one after the other; item rows below 2 are
            skipped.
        num_items: N, rows of the item table.
        size: K; of each item, those neighbours are kept whose kinds of evidence have the largest sum; whose linear
            weights are largest, if there are any.
        ordered: whether the order of a user's events says anything.

    Example:
        >>> item = np.array([2, 3, 2, 4])
        >>> found = neighbours(np.array([0, 0, 1, 1]), item, num_items=5, size=2)
        >>> found.items[2].tolist(), found.values[3, :, 1].tolist()
        ([3, 4], [1.0, 1.0, 0.0])
    """
    known = item >= FIRST
    user, item = user[known], item[known]
    counts = (_together, _similar, _next) if ordered else (_jointly, _similar, _linear(size))  # as KINDS says
    kinds = [_scaled(count(user, item, num_items)) for count in counts]
    linear = None if ordered or not kinds[-1].nnz else kinds[-1]
    row, column = _strongest(sum(kinds[1:], kinds[0]).tocsr() if linear is None else abs(linear), size)
    return _table(row, column, [kind if kind is linear else kind.sqrt() for kind in kinds], num_items, size)


def _table(
    row: np.ndarray, column: np.ndarray, kinds: Sequence[sparse.csr_matrix], num_items: int, size: int
) -> Neighbours:
    """Neighbours of items, at most `size` of each, with what each kind of evidence says of them."""
    order = np.lexsort((column, row))
    row, column = row[order], column[order]
    # Ascending, and on the right: what is missing is item 0.
    slot = size - np.bincount(row, minlength=num_items)[row] + np.arange(len(row)) - np.searchsorted(row, row)
    items = np.zeros((num_items, size), dtype=np.int32)
    values = np.zeros((num_items, len(kinds), size), dtype=np.float16)
    items[row, slot] = column
    for at, kind in enumerate(kinds):
        values[row, at, slot] = np.asarray(kind[row, column]).ravel()
    return Neighbours(items, values)


def weighed_neighbours(kind: str, user: np.ndarray, item: np.ndarray, num_items: int, size: int) -> Neighbours | None:
    """The largest scores of each item of one of `TABLES`, in units of the mean largest one: weights of EASE (Steck,
    2019; [`polyrec.data.ridge`]), or chances of what comes next ("next" of [`neighbours`], without the roots).

    Args:
        user, item: int64 [R], events in order within each user; item rows below 2 are skipped.
        size: K.

    Returns:
        Values [N, 1, K]; None where a log has too many users and items for an inverse, or no pair of items.

    Example:
        >>> user, item = np.array([0, 0, 1]), np.array([2, 3, 4])
        >>> found = weighed_neighbours("linear", user, item, num_items=5, size=1)
        >>> found.items.ravel().tolist(), found.values.ravel().tolist()
        ([0, 0, 3, 2, 0], [0.0, 0.0, 1.0, 1.0, 0.0])
        >>> weighed_neighbours("transitions", user, item, num_items=5, size=1).items.ravel().tolist()
        [0, 0, 3, 0, 0]
    """
    known = item >= FIRST
    user, item = user[known], item[known]
    if kind == "linear":
        scores = _linear_weights(user, item, num_items, size, RIDGE_OF_LATEST, np.negative)
        scores.data[scores.data < 0] = 0  # of items with fewer neighbours than `size`
        scores.eliminate_zeros()
    else:
        scores = _next(user, item, num_items).tocsr()
    if not scores.nnz:
        return None
    return _table(*_strongest(scores, size), [_scaled(scores)], num_items, size)


def _together(user: np.ndarray, item: np.ndarray, num_items: int) -> sparse.csr_matrix:
    counts = pair_counts(user, item, num_items, WINDOW, FADE, np.float32)
    counts = (counts + counts.T).tocsr()
    damp = sparse.diags(np.maximum(np.asarray(counts.sum(1)).ravel(), 1e-9) ** -POWER)
    return (damp @ counts @ damp).tocsr()


def _jointly(user: np.ndarray, item: np.ndarray, num_items: int) -> sparse.csr_matrix:
    user, item = _once(user, item, num_items)
    counts = _products(user, item, np.ones(len(user), dtype=np.float32), num_items)
    damp = sparse.diags(np.maximum(np.asarray(counts.sum(1)).ravel(), 1e-9) ** -POWER)
    return (damp @ counts @ damp).tocsr()


def _linear(size: int) -> Callable[[np.ndarray, np.ndarray, int], sparse.csr_matrix]:
    """The `size` largest weights of each item."""

    return lambda user, item, num_items: _linear_weights(
        user, item, num_items, size, RIDGE, lambda block: -np.abs(block)
    )


def _linear_weights(
    user: np.ndarray,
    item: np.ndarray,
    num_items: int,
    size: int,
    ridge: float,
    order: Callable[[np.ndarray], np.ndarray],
) -> sparse.csr_matrix:
    """The `size` weights of each item that come first in an order; none of a log too large for an inverse."""
    interactions = interaction_matrix(user, item, num_items)
    if not len(user) or min(interactions.shape) > DENSE:
        return sparse.csr_matrix((num_items, num_items), dtype=np.float32)
    blocks = []
    for block in ridge_weights(interactions, ridge):
        kept = np.argpartition(order(block), min(size, num_items - 1), axis=1)[:, :size]
        row = np.repeat(np.arange(len(block)), kept.shape[1])
        weights = block[row, kept.ravel()].astype(np.float32)
        blocks.append(sparse.csr_matrix((weights, (row, kept.ravel())), shape=block.shape))
    found = sparse.vstack(blocks).tocsr()
    found.eliminate_zeros()
    return found


def _next(user: np.ndarray, item: np.ndarray, num_items: int) -> sparse.csr_matrix:
    counts = pair_counts(user, item, num_items, STEPS, STEP_FADE, np.float32)
    return (sparse.diags(1 / (np.asarray(counts.sum(1)).ravel() + SHRINKAGE)) @ counts).tocsr()


def _similar(user: np.ndarray, item: np.ndarray, num_items: int) -> sparse.csr_matrix:
    user, item = _once(user, item, num_items)
    per_user = np.bincount(user)
    weight = np.log((1 + num_items) / (1 + per_user))[user]
    length = np.sqrt(np.bincount(item, weight**2, num_items))
    return _products(user, item, (weight / length[item]).astype(np.float32), num_items)


def _once(user: np.ndarray, item: np.ndarray, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """The latest items of each user, each once; users are numbered from 0."""
    pair = np.unique(user[::-1] * num_items + item[::-1], return_index=True)[1]  # of each pair, the latest event
    kept = np.sort(len(user) - 1 - pair)
    user, item = user[kept], item[kept]
    ends = np.searchsorted(user, user, side="right")
    late = ends - np.arange(len(user)) <= LONGEST
    return np.unique(user[late], return_inverse=True)[1], item[late]


def _products(user: np.ndarray, item: np.ndarray, values: np.ndarray, num_items: int) -> sparse.csr_matrix:
    """X'X of a user x item matrix without its diagonal."""
    per_user = np.bincount(user)
    matrix = sparse.csr_matrix((values, (user, item)), shape=(len(per_user), num_items))
    columns, blocks = matrix.T.tocsr(), []
    work = np.asarray(columns.astype(bool) @ per_user).ravel()  # pairs that each item's row of the product takes
    for rows in _blocks(work):
        block = (columns[rows] @ matrix).tocoo()
        other = block.col != rows[block.row]
        blocks.append(
            sparse.csr_matrix((block.data[other], (block.row[other], block.col[other])), shape=(len(rows), num_items))
        )
    return sparse.vstack(blocks).tocsr()


def _blocks(work: np.ndarray) -> Iterator[np.ndarray]:
    """Rows one after the other, as many at a time as make _BLOCK pairs."""
    block = np.cumsum(work) // _BLOCK
    yield from np.split(np.arange(len(work)), np.flatnonzero(np.diff(block)) + 1)


def _scaled(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """So that the strongest neighbour of an item has 1 in the mean."""
    if not matrix.nnz:
        return matrix
    largest = matrix.max(axis=1).toarray().ravel()
    matrix.data /= largest[largest > 0].mean()
    return matrix


def _strongest(matrix: sparse.csr_matrix, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of the `size` largest entries of each row."""
    begins, kept = matrix.indptr, np.ones(matrix.nnz, dtype=bool)
    for long in np.flatnonzero(np.diff(begins) > size):  # many times faster than to sort all of them
        weak = np.argpartition(-matrix.data[begins[long] : begins[long + 1]], size)[size:]
        kept[begins[long] + weak] = False
    row = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
    return row[kept], matrix.indices[kept]
