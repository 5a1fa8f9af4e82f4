"""Ranking the full catalog, exactly, with ties counted honestly; accuracy and what lies beyond it.

Nothing is sampled: metrics over a few sampled negatives rank models differently from the full catalog (Krichene and
Rendle, 2020). A target that ties with others gets its EXPECTED metric over a random order of the tied items, so a model
that scores everything alike measures as chance, not as perfect or as "popular items first" by catalog order.

`rank_targets` and `top_k` work on a chunk of scores in torch, wherever it lies; the rest is numpy. Accuracy comes with
ONE VALUE PER LIST, so that `bootstrap` can resample users: average it with `np.nanmean`. Lists of item numbers may be
padded with a negative number, which means "no item". Letters: R rows (lists), N items of the catalog, K list length, P
(row, item) pairs, D width of item embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

_BLOCK = 1 << 22  # scores compared at a time: bounds the temporary masks to 4 MiB, which also keeps them in cache
NO_ITEM = -1  # fills a list that has fewer than K items
NEVER_LISTED = 1 << 40  # `greater` of a target that no list can hold, however long: beyond any cut-off


@torch.no_grad()
def rank_targets(
    scores_RN: Tensor, targets_R: Tensor, excluded: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """How many other items score strictly higher than, and how many tie with, each row's target.

    The target's rank is uniform on greater + 1 .. greater + ties + 1 when ties are broken at random (McSherry and
    Najork, 2008). Needs no sort and no copy of the scores: excluded items are subtracted from the counts.

    Args:
        scores_RN: [R, N], any floating dtype. -inf = not a candidate (padding); NaN and +inf are refused.
        targets_R: [R], column of the target; `NO_ITEM` (-1) = not in the catalog.
        excluded: rows [P] and items [P] of pairs that are not candidates, e.g. the user's history, in any order;
            repeated pairs count once.

    Returns:
        greater [R] and ties [R], int64. A target that no list can hold is a miss whatever the list's length: one that
        is excluded, not in the catalog, or of score -inf has greater = `NEVER_LISTED`, ties = 0.

    Example:
        >>> scores = torch.tensor([[0.9, 0.5, 0.5, 0.1], [0.9, 0.5, 0.5, 0.1]])
        >>> history = (torch.tensor([1, 1]), torch.tensor([0, 2]))  # row 1 has seen items 0 and 2
        >>> rank_targets(scores, torch.tensor([1, 1]), history)
        (tensor([1, 0]), tensor([1, 0]))
        >>> rank_targets(scores, torch.tensor([1, 2]), history)[0][1].item() == NEVER_LISTED
        True
    """
    num_rows, num_items = _check_scores(scores_RN)
    if targets_R.shape != (num_rows,):
        raise ValueError(f"targets_R must hold one item per row, [{num_rows}], not {list(targets_R.shape)}")
    missed_R = targets_R == NO_ITEM
    _check_range("targets_R", targets_R[~missed_R], num_items, "items")
    target_R1 = scores_RN.gather(1, targets_R.clamp(min=0)[:, None])
    missed_R |= target_R1[:, 0] == float("-inf")
    greater_R = torch.empty(num_rows, dtype=torch.int64, device=scores_RN.device)
    equal_R = torch.empty_like(greater_R)
    step = max(1, _BLOCK // num_items)
    for begin in range(0, num_rows, step):
        rows = slice(begin, begin + step)
        # As int32: four times as fast as count_nonzero on a CPU, and without the copy in int64 that sum() would make.
        greater_R[rows] = (scores_RN[rows] > target_R1[rows]).sum(1, dtype=torch.int32).long()
        equal_R[rows] = (scores_RN[rows] == target_R1[rows]).sum(1, dtype=torch.int32).long()
    if excluded is not None:
        rows_P, items_P = _distinct_pairs(excluded, num_rows, num_items)
        missed_R[rows_P[items_P == targets_R[rows_P]]] = True
        scores_P, target_P = scores_RN[rows_P, items_P], target_R1[rows_P, 0]
        greater_R -= torch.bincount(rows_P[scores_P > target_P], minlength=num_rows)
        equal_R -= torch.bincount(rows_P[scores_P == target_P], minlength=num_rows)
    return greater_R.masked_fill(missed_R, NEVER_LISTED), (equal_R - 1).masked_fill(missed_R, 0)


@torch.no_grad()
def top_k(scores_RN: Tensor, k: int, excluded: tuple[Tensor, Tensor] | None = None, seed: int = 0) -> Tensor:
    """The K best items of each row, best first.

    Ties are broken without favour for early item numbers (catalogs often begin with the popular ones): a row with ties
    is read in a random order of the catalog drawn from `seed`, repeatable on one device. Copies the chunk to mask it.

    Args:
        scores_RN: [R, N]; -inf = not a candidate; NaN and +inf are refused.
        k: list length K, at most N.
        excluded: rows [P] and items [P] of pairs that are not candidates.
        seed: of the tie-breaking order.

    Returns:
        Item numbers, int64 [R, K]; `NO_ITEM` (-1) at the end of lists that have fewer than K candidates.

    Example:
        >>> top_k(torch.tensor([[0.1, 0.9, 0.5]]), 3, excluded=(torch.tensor([0]), torch.tensor([1])))
        tensor([[ 2,  0, -1]])
    """
    num_rows, num_items = _check_scores(scores_RN)
    if not 1 <= k <= num_items:
        raise ValueError(f"k must be between 1 and the {num_items} items of the catalog, not {k}")
    if excluded is not None:
        minus_inf = scores_RN.new_tensor(float("-inf"))
        scores_RN = scores_RN.index_put(_distinct_pairs(excluded, num_rows, num_items), minus_inf)  # not in place
    # One place more than asked for shows whether a tie decides who is in. Only such rows pay for the shuffle.
    best_RK, items_RK = scores_RN.topk(min(k + 1, num_items), dim=1)
    tied_R = ((best_RK[:, 1:] == best_RK[:, :-1]) & best_RK[:, 1:].isfinite()).any(1)
    best_RK, items_RK = best_RK[:, :k], items_RK[:, :k]
    if tied_R.any():
        order_N = torch.randperm(num_items, generator=torch.Generator().manual_seed(seed)).to(scores_RN.device)
        best_RK[tied_R], column_TK = scores_RN[tied_R].index_select(1, order_N).topk(k, dim=1)
        items_RK[tied_R] = order_N[column_TK]
    return items_RK.masked_fill(best_RK == float("-inf"), NO_ITEM)


def single_target_metrics(
    greater_R: np.ndarray, ties_R: np.ndarray, ks: Sequence[int] = (10,)
) -> dict[str, np.ndarray]:
    r"""Accuracy of rankings with one relevant item each (next item), as expected over the random order of ties.

    With r the target's rank, each metric is m(r) if r <= k, else 0: ndcg 1 / log2(r + 1), mrr and map 1 / r, recall and
    hit 1, precision 1 / k. Over a rank uniform on g + 1 .. g + t + 1,
    E[m] = (M(min(g + t + 1, k)) - M(min(g, k))) / (t + 1), M the cumulative sum of m: exact and without a loop.

    Args:
        greater_R, ties_R: int [R], from `rank_targets` (numpy, or a CPU tensor).
        ks: cut-offs.

    Returns:
        {"ndcg@10": float64 [R], "recall@10": ..., "hit@10", "precision@10", "map@10", "mrr@10"} for each k. With one
        relevant item hit = recall and map = mrr; all names are there so that callers need not know how many there are.

    Example:
        >>> metrics = single_target_metrics(np.array([0, 1]), np.array([0, 1]), ks=[2])
        >>> metrics["recall@2"].tolist(), metrics["mrr@2"].tolist()
        ([1.0, 0.5], [1.0, 0.25])
    """
    greater_R, ties_R = np.asarray(greater_R).astype(np.int64), np.asarray(ties_R).astype(np.int64)
    if greater_R.ndim != 1 or greater_R.shape != ties_R.shape or (greater_R < 0).any() or (ties_R < 0).any():
        raise ValueError("greater_R and ties_R must be two counts >= 0 per row, as rank_targets returns them")
    metrics: dict[str, np.ndarray] = {}
    for k in _check_ks(ks):
        rank_K = np.arange(1, k + 1)
        first_R, last_R = np.minimum(greater_R, k), np.minimum(greater_R + ties_R + 1, k)

        def expected(gain_K: np.ndarray, first_R: np.ndarray = first_R, last_R: np.ndarray = last_R) -> np.ndarray:
            total = np.append(0.0, np.cumsum(gain_K))
            return (total[last_R] - total[first_R]) / (ties_R + 1)

        recall_R, mrr_R = expected(np.ones(k)), expected(1 / rank_K)
        metrics |= {
            f"ndcg@{k}": expected(1 / np.log2(rank_K + 1)),
            f"recall@{k}": recall_R,
            f"hit@{k}": recall_R,
            f"precision@{k}": recall_R / k,
            f"map@{k}": mrr_R,
            f"mrr@{k}": mrr_R,
        }
    return metrics


def list_metrics(
    top_ids_RK: np.ndarray, relevant: tuple[np.ndarray, np.ndarray], ks: Sequence[int] = (10,)
) -> dict[str, np.ndarray]:
    r"""Accuracy of lists with any number n of relevant items each.

    With h_r = 1 if the item at rank r is relevant, n the number of distinct relevant items of the list:

    - ndcg@k = sum_{r<=k} h_r / log2(r + 1), over the best possible, sum_{r<=min(k, n)} 1 / log2(r + 1)
    - recall@k = sum_{r<=k} h_r / n;  precision@k = sum_{r<=k} h_r / k;  hit@k = 1 if any h_r, r <= k
    - map@k = sum_{r<=k} h_r precision@r / min(k, n): a perfect list scores 1. Dividing by k, by n or by the number of
      hits is a common mistake.
    - mrr@k = 1 / (the first r <= k with h_r = 1)

    Args:
        top_ids_RK: [R, K], best first, each item at most once per list; negative = no item.
        relevant: (values, offsets); row r's relevant items are values[offsets[r]:offsets[r + 1]]. Repeats count once.
        ks: cut-offs, each at most K.

    Returns:
        {"ndcg@10": float64 [R], ...} with the names of `single_target_metrics`; NaN where a row has no relevant item.

    Example:
        >>> lists, relevant = np.array([[3, 1, 4]]), (np.array([1, 4, 9]), np.array([0, 3]))
        >>> {name: round(float(v[0]), 3) for name, v in list_metrics(lists, relevant, ks=[3]).items()}
        {'ndcg@3': 0.531, 'recall@3': 0.667, 'hit@3': 1.0, 'precision@3': 0.667, 'map@3': 0.389, 'mrr@3': 0.5}
    """
    top_ids_RK = _check_lists(top_ids_RK)
    length = top_ids_RK.shape[1]
    ks = _check_ks(ks)
    if max(ks) > length:
        raise ValueError(f"cut-off {max(ks)} needs longer lists than K = {length}: call top_k with k={max(ks)}")
    hit_RK, num_relevant_R = _hits(top_ids_RK, relevant)
    rank_K = np.arange(1, length + 1)
    gain_K = 1 / np.log2(rank_K + 1)
    found_RK = hit_RK.cumsum(1)  # relevant items among the first r
    dcg_RK = (hit_RK * gain_K).cumsum(1)
    precisions_RK = (hit_RK * found_RK / rank_K).cumsum(1)
    first_R = np.where(hit_RK.any(1), hit_RK.argmax(1) + 1, np.inf)
    metrics: dict[str, np.ndarray] = {}
    for k in ks:
        best_R = np.minimum(num_relevant_R, k)
        found_R = found_RK[:, k - 1]
        ideal_R = np.append(0.0, gain_K.cumsum())[best_R]
        at_k = {
            "ndcg": _ratio(dcg_RK[:, k - 1], ideal_R),
            "recall": _ratio(found_R, num_relevant_R),
            "hit": (found_R > 0).astype(np.float64),
            "precision": found_R / k,
            "map": _ratio(precisions_RK[:, k - 1], best_R),
            "mrr": np.where(first_R <= k, 1 / first_R, 0.0),
        }
        metrics |= {f"{name}@{k}": np.where(num_relevant_R > 0, value_R, np.nan) for name, value_R in at_k.items()}
    return metrics


def coverage(top_ids_RK: np.ndarray, n_items: int) -> float:
    """Share of the catalog that is in at least one list (aggregate diversity).

    Example:
        >>> coverage(np.array([[0, 1], [1, -1]]), n_items=4)
        0.5
    """
    top_ids_RK = _check_lists(top_ids_RK, n_items)
    return len(np.unique(top_ids_RK[top_ids_RK >= 0])) / n_items


def novelty(top_ids_RK: np.ndarray, item_counts_N: np.ndarray) -> float:
    """Mean self-information of the listed items, -log2(count_i / sum of counts), in bits (Zhou et al., 2010).

    An item never seen counts as seen once: the most surprising that the counts can vouch for, and finite.

    Args:
        top_ids_RK: [R, K]; negative = no item.
        item_counts_N: [N], events of each item in the training data.

    Returns:
        Mean over the non-empty lists of the mean over a list; NaN if all lists are empty or all counts 0.

    Example:
        >>> round(novelty(np.array([[0, 1], [2, -1]]), np.array([6, 2, 0])), 3)
        2.104
    """
    counts_N = np.asarray(item_counts_N).astype(np.float64)
    top_ids_RK = _check_lists(top_ids_RK, len(counts_N))
    if not (counts_N >= 0).all():
        raise ValueError("item_counts_N must be counts >= 0 of the training events")
    if not counts_N.any():
        return float("nan")
    bits_N = np.log2(counts_N.sum()) - np.log2(counts_N.clip(1))
    filled_RK = top_ids_RK >= 0
    return _mean(_ratio(np.where(filled_RK, bits_N[top_ids_RK], 0.0).sum(1), filled_RK.sum(1)))


def diversity(top_ids_RK: np.ndarray, item_vectors_ND: np.ndarray) -> float:
    """Intra-list diversity, 1 - mean cosine over the pairs of items in a list (after Ziegler et al., 2005).

    The pairs are never formed: sum_{i != j} v_i . v_j = |sum_i v_i|^2 - sum_i |v_i|^2 for unit vectors. An item with a
    zero vector (no attribute known) has cosine 0 with all others.

    Args:
        top_ids_RK: [R, K]; negative = no item.
        item_vectors_ND: [N, D], e.g. genres, text embeddings or the model's item embeddings.

    Returns:
        In [0, 2], mean over the lists of at least two items; NaN if there is none.

    Example:
        >>> diversity(np.array([[0, 1], [0, 2], [0, -1]]), np.array([[1.0, 0], [3, 0], [0, 2]]))
        0.5
    """
    vectors_ND = np.asarray(item_vectors_ND).astype(np.float64)
    top_ids_RK = _check_lists(top_ids_RK, len(vectors_ND))
    norm_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND = np.divide(vectors_ND, norm_N1, out=np.zeros_like(vectors_ND), where=norm_N1 > 0)
    row_P, rank_P = np.nonzero(top_ids_RK >= 0)
    item_P = top_ids_RK[row_P, rank_P]
    in_list_RN = sp.csr_array((np.ones(len(row_P)), (row_P, item_P)), shape=(len(top_ids_RK), len(vectors_ND)))
    square_R = in_list_RN @ np.square(unit_ND).sum(1)
    cosines_R = np.square(in_list_RN @ unit_ND).sum(1) - square_R
    length_R = np.bincount(row_P, minlength=len(top_ids_RK))
    return 1 - _mean(_ratio(cosines_R, length_R * (length_R - 1)))


def _mean(values_R: np.ndarray) -> float:
    """Mean of the values that are not NaN, without numpy's warning if there is none."""
    known_R = values_R[~np.isnan(values_R)]
    return float(known_R.mean()) if len(known_R) else float("nan")


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


def _hits(top_ids_RK: np.ndarray, relevant: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Which listed items are relevant, bool [R, K], and the number of distinct relevant items, [R]."""
    values, offsets = (np.asarray(part) for part in relevant)
    num_rows = len(top_ids_RK)
    lengths_R = np.diff(offsets)
    if len(offsets) != num_rows + 1 or offsets[0] != 0 or offsets[-1] != len(values) or (lengths_R < 0).any():
        raise ValueError(
            f"relevant must be (values, offsets) with offsets of {num_rows + 1} non-decreasing entries from 0 to "
            f"{len(values)}, one stretch of values per list"
        )
    if len(values) and values.min() < 0:
        raise ValueError("relevant holds a negative item number: map items to catalog numbers first, drop unknown ones")
    width = int(max(top_ids_RK.max(initial=0), values.max(initial=0))) + 1
    pairs = np.unique(np.repeat(np.arange(num_rows), lengths_R) * width + values.astype(np.int64))
    listed_RK = np.arange(num_rows)[:, None] * width + top_ids_RK
    return np.isin(listed_RK, pairs) & (top_ids_RK >= 0), np.bincount(pairs // width, minlength=num_rows)


def _check_scores(scores_RN: Tensor) -> tuple[int, int]:
    if scores_RN.ndim != 2 or not scores_RN.is_floating_point():
        raise ValueError(f"scores_RN must be a floating [R, N] tensor, not {scores_RN.dtype} {list(scores_RN.shape)}")
    # NaN compares false with everything: a NaN target would have nothing above it and rank first.
    highest_R = scores_RN.amax(1) if scores_RN.numel() else scores_RN.new_zeros(0)  # amax passes NaN on
    bad_R = highest_R.isnan() | (highest_R == float("inf"))
    if bad_R.any():
        row = int(bad_R.int().argmax())
        raise ValueError(f"scores_RN must be finite or -inf, row {row} holds {highest_R[row]}: the model has diverged")
    return scores_RN.shape[0], scores_RN.shape[1]


def _check_range(name: str, values: Tensor, size: int, what: str) -> None:
    # Negative indices would silently count from the end; on CUDA too large ones end the process without a message.
    if values.numel() and (values.min() < 0 or values.max() >= size):
        span = f"{values.min()}..{values.max()}"
        raise ValueError(f"{name} must lie in 0..{size - 1} (the {what} of scores_RN), not in {span}")


def _distinct_pairs(excluded: tuple[Tensor, Tensor], num_rows: int, num_items: int) -> tuple[Tensor, Tensor]:
    rows_P, items_P = excluded
    if rows_P.shape != items_P.shape or rows_P.ndim != 1:
        shapes = f"{list(rows_P.shape)} and {list(items_P.shape)}"
        raise ValueError(f"excluded must be (rows, items), two equally long vectors, not {shapes}")
    _check_range("excluded rows", rows_P, num_rows, "rows")
    _check_range("excluded items", items_P, num_items, "items")
    packed = torch.unique(rows_P.long() * num_items + items_P)
    return packed // num_items, packed % num_items


def _check_ks(ks: Sequence[int]) -> Sequence[int]:
    if isinstance(ks, int) or not len(ks) or min(ks) < 1:
        raise ValueError(f"ks must be a sequence of cut-offs of at least 1, e.g. (10,) or (5, 10), not {ks}")
    return ks


def _check_lists(top_ids_RK: np.ndarray, n_items: int | None = None) -> np.ndarray:
    top_ids_RK = np.asarray(top_ids_RK)
    if top_ids_RK.ndim != 2 or top_ids_RK.dtype.kind not in "iu":
        raise ValueError(f"top_ids_RK must be integers [R, K], not {top_ids_RK.dtype} {list(top_ids_RK.shape)}")
    top_ids_RK = top_ids_RK.astype(np.int64)
    if n_items is not None and top_ids_RK.max(initial=NO_ITEM) >= n_items:
        raise ValueError(
            f"top_ids_RK holds item {top_ids_RK.max()}, the catalog ends at {n_items - 1}: "
            "are the lists and the catalog numbered alike?"
        )
    ordered_RK = np.sort(top_ids_RK, axis=1)
    repeated_R = ((ordered_RK[:, 1:] == ordered_RK[:, :-1]) & (ordered_RK[:, 1:] >= 0)).any(1)
    if repeated_R.any():
        raise ValueError(f"list {int(repeated_R.argmax())} holds an item twice: recall and NDCG could exceed 1")
    return top_ids_RK
