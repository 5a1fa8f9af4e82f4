"""Whether recent popularity tells what comes next, and how much each half-life says: a softmax over late training rows.

Letters: E events, R rows, S snapshots, T half-lives, N items, J items of a snapshot, V of 1 + T.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

from polyrec.data.columns import FIRST
from polyrec.data.neighbours import TABLES
from polyrec.data.trending import RecentCounts

HALF_LIVES = (3600.0, 6 * 3600.0, 86_400.0, 7 * 86_400.0, 30 * 86_400.0)
WORTHWHILE = 0.02  # nats
MOSTLY_NEW = 0.5  # share of late rows
LATE = 0.1  # share of the training events that are evaluated
_ROWS, _FEWEST = 1024, 200  # rows that are read, at most; of all late ones, at least
_RIDGE, _START, _LEAST = 1e-3, 3.0, 0.01  # of log a: what pulls it to where it starts; the smallest share of popularity


class TrendingFit(NamedTuple):
    """What late training rows say of recent popularity.

    Args:
        mixture: (h_t, a_t), see [`~polyrec.data.trending.RecentCounts`]; half-lives that say little are left out.
        power: of popularity in a softmax, beside the count of the earlier rows.
        gain: nats by which popularity raises the log likelihood of a row, fitted on the first half of the late rows and
            measured on the second.
        error: the standard error of `gain`.
        new_share: share of the late rows whose item had no earlier event.
    """

    mixture: list[list[float]]
    power: float
    gain: float
    error: float
    new_share: float

    @property
    def helps(self) -> bool:
        """Whether recent popularity tells more than chance and than what a model finds without it."""
        return self.gain > max(WORTHWHILE, 2 * self.error)

    def reason(self, aged: bool = False) -> str:
        """Whether a task reads recent popularity, and why, for the data report; `aged` as for [`options`]."""
        hours = ", ".join(f"{half_life / 3600:g}" for half_life, _ in self.mixture)
        popularity = f"recent popularity (half-lives {hours} hours)"
        gain = (
            f"it changes the log likelihood of late training rows by {self.gain:+.3f} (standard error "
            f"{self.error:.3f}, at least {max(WORTHWHILE, 2 * self.error):+.3f} needed); {self.new_share:.0%} of their "
            "items are new"
        )
        if self.helps and not aged:
            return f"training reads {popularity}: {gain}"
        why = "the option item_age tells what is new already" if self.helps else gain
        return f"training does not read {popularity}: {why}. Its weight is chosen on the validation set after training"

    def options(self, smoothed: bool = False, aged: bool = False) -> dict[str, Any]:
        """Options of a retrieval head.

        Where most of what comes is new, items that training does not know must not be negatives in all of it, and
        evidence of which items go together, which was counted among items of one time, speaks for those of the past.

        Args:
            smoothed: whether targets are spread over the catalog, which needs all items as negatives.
            aged: whether the task reads ages since release, beside which recent popularity was not evaluated: what is
                new would count twice (on Travel Stack Exchange, NDCG@10 on validation .367 instead of .399).
        """
        trained = self.helps and not aged
        found = {"trending": self.mixture, "trending_start": self.power if trained else 0.0, "recent": True}
        if not self.helps or self.new_share < MOSTLY_NEW:
            return found
        return found | dict.fromkeys(("neighbours", *TABLES), 0) | ({} if smoothed else {"cold_negatives": False})


class _Rows(NamedTuple):
    """Late rows.

    Args:
        item, snapshot: int64 [R], and which snapshot each row sees.
        left_out: bool [R, J], items of its snapshot that a list for the row's user would leave out.
        hot, counts: the snapshots' items, int64 [S, J], and how often each was taken lately, float32 [S, T, J].
        popularity: log(1 + count of the earlier rows), [N].
    """

    item: np.ndarray
    snapshot: np.ndarray
    left_out: np.ndarray
    hot: np.ndarray
    counts: np.ndarray
    popularity: np.ndarray

    def some(self, keep: np.ndarray) -> _Rows:
        used, snapshot = np.unique(self.snapshot[keep], return_inverse=True)
        return _Rows(self.item[keep], snapshot, self.left_out[keep], self.hot[used], self.counts[used], self.popularity)


def fit_trending(
    users: np.ndarray, items: np.ndarray, times: np.ndarray, num_items: int, exclude_seen: bool = True
) -> TrendingFit | None:
    """Measure recent popularity in the latest training events; None: too few of them, or too short a time.

    A mixture of all half-lives has the best likelihood; where one half-life alone ranks better (NDCG@10), it is used.

    Args:
        users, items, times: of the positives, int64 (items from 2 on) and float64 seconds, in
            any order, [E].
        num_items: N.
        exclude_seen: whether lists leave out items of the user's history.

    Example:
        >>> day = np.repeat(np.arange(40), 100)  # each day another item is popular
        >>> times = day * 86400.0 + np.tile(np.arange(100), 40) * 600
        >>> found = fit_trending(np.arange(4000), 2 + day, times, num_items=42)
        >>> found.new_share, found.gain > 1
        (1.0, True)
    """
    order = np.argsort(times, kind="stable")
    users, items = users[order].astype(np.int32), items[order].astype(np.int32)
    times = times[order]
    del order
    begin = int(np.searchsorted(times, times[int(len(times) * (1 - LATE))])) if len(times) else 0
    half_lives = [h for h in HALF_LIVES if len(times) and h < (times[-1] - times[0]) / 2]
    if not half_lives or not begin or len(times) - begin < _FEWEST:
        return None
    rows = _late_rows(users, items, times, begin, num_items, half_lives)
    if not exclude_seen:
        rows.left_out[:] = False
    early, late = (rows.some(part) for part in np.array_split(np.arange(len(rows.item)), 2))
    both, alone = _fit(early), _fit(early, popularity_only=True)
    better = _log_likelihood(both, late)[0] - _log_likelihood(alone, late)[0]
    weights = _fit(rows)
    shares = np.exp(weights[2:]) * rows.counts.sum(axis=2).mean(axis=0)
    kept = np.flatnonzero(shares >= _LEAST * shares.sum())
    ranked = [_ndcg(rows, counts) for counts in rows.counts.transpose(1, 0, 2)]
    if max(ranked) > _ndcg(rows, np.einsum("t,stj->sj", np.exp(weights[2:]), rows.counts)):
        kept = np.array([int(np.argmax(ranked))])
        weights[2 + kept] = (own := _fit(rows._replace(counts=rows.counts[:, kept])))[2:]
        weights[1] = own[1]
    seen = np.bincount(items[:begin], minlength=num_items) > 0
    return TrendingFit(
        [[half_lives[t], float(np.exp(weights[2 + t]))] for t in kept],
        float(weights[1]),
        float(better.mean()),
        float(better.std() / np.sqrt(len(better))),
        float(1 - seen[items[begin:]].mean()),
    )


def _ndcg(rows: _Rows, popularity_SJ: np.ndarray) -> float:
    """NDCG@10 of the late rows by some popularity of the snapshots' items."""
    score_RJ = np.where(rows.left_out, 0.0, popularity_SJ[rows.snapshot])
    own_R = np.where(rows.hot[rows.snapshot] == rows.item[:, None], score_RJ, 0.0).max(axis=1)
    rank_R = (score_RJ > own_R[:, None]).sum(axis=1)
    return float(np.where((own_R > 0) & (rank_R < 10), 1 / np.log2(rank_R + 2), 0.0).mean())


def _late_rows(
    users: np.ndarray, items: np.ndarray, times: np.ndarray, begin: int, num_items: int, half_lives: list[float]
) -> _Rows:
    recent = RecentCounts([(h, 1.0) for h in half_lives], num_items)
    recent.add(times[:begin], items[:begin])
    late = np.arange(begin, len(times))[:: -(-(len(times) - begin) // _ROWS)]
    ends, snapshot = np.unique(np.searchsorted(times, times[late]), return_inverse=True)  # strictly before each row
    pools = []
    for first, last in pairwise([begin, *ends]):
        recent.add(times[first:last], items[first:last])
        pools.append(recent.pool())
    most = max(len(pool_J) for pool_J, _ in pools)
    hot_SJ = np.stack([np.pad(pool_J, (0, most - len(pool_J))) for pool_J, _ in pools])
    counts_STJ = np.stack([np.pad(counts_TJ, ((0, 0), (0, most - counts_TJ.shape[1]))) for _, counts_TJ in pools])
    counts_STJ = counts_STJ.astype(np.float32)
    popularity = np.log1p(np.bincount(items[:begin], minlength=num_items))
    # Of the earlier events only those matter that leave a hot item out of a late row.
    is_late, is_hot = np.zeros(int(users.max()) + 1, dtype=bool), np.zeros(num_items, dtype=bool)
    is_late[users[late]], is_hot[hot_SJ] = True, True
    event = np.flatnonzero(is_late[users] & is_hot[items])
    pair = users[event].astype(np.int64) * num_items + items[event]
    pairs, first = np.unique(pair, return_index=True)  # events are in order of time
    first_event = event[first]
    candidate_RJ = users[late].astype(np.int64)[:, None] * num_items + hot_SJ[snapshot]
    index_RJ = np.searchsorted(pairs, candidate_RJ)
    pairs, first_event = np.append(pairs, -1), np.append(first_event, 0)  # what is found nowhere
    left_out_RJ = (pairs[index_RJ] == candidate_RJ) & (times[first_event[index_RJ]] < times[late][:, None])
    return _Rows(items[late], snapshot, left_out_RJ, hot_SJ, counts_STJ, popularity)


def _fit(rows: _Rows, popularity_only: bool = False) -> np.ndarray:
    """Powers of the earlier count and of recent popularity, and log a_t, [2 + T], by penalised maximum likelihood."""
    start = np.concatenate([[0.1, 0.9], np.full(rows.counts.shape[1], _START)])
    keep = np.ones(len(start))
    if popularity_only:
        keep[1:], start[1] = 0, 0

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        likelihood_R, gradient = _log_likelihood(weights, rows)
        away = weights - start
        return _RIDGE * (away @ away) - likelihood_R.mean(), (2 * _RIDGE * away - gradient) * keep

    return optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 50}).x


def _log_likelihood(weights: np.ndarray, rows: _Rows) -> tuple[np.ndarray, np.ndarray]:
    """Log likelihood of each row, [R], and the gradient of their mean, [2 + T]."""
    popular_N, power = rows.popularity, weights[1]
    base_N = np.exp(weights[0] * popular_N)
    base_N[:FIRST] = 0
    weights_T, counts_STJ = np.exp(weights[2:]), rows.counts
    # Batched products of single precision: many times faster than the sums of [S, T, J] one by one.
    odds_SJ = 1.0 + np.matmul(weights_T.astype(np.float32), counts_STJ)
    log_SJ, base_SJ = np.log(odds_SJ), base_N[rows.hot]
    hot_SJ = base_SJ * np.exp(power * log_SJ)
    more_SJ = hot_SJ - base_SJ
    total_S = base_N.sum() + more_SJ.sum(axis=1)
    mean_S = (base_N @ popular_N + (more_SJ * popular_N[rows.hot]).sum(axis=1)) / total_S
    # By how much a change of each weight moves logits: in the mean of a snapshot, and of the items that were taken.
    by_part_SJ = (hot_SJ / odds_SJ).astype(np.float32)
    parts_ST = np.matmul(counts_STJ, by_part_SJ[:, :, None])[:, :, 0] * power * weights_T
    means_SV = np.column_stack([(hot_SJ * log_SJ).sum(axis=1), parts_ST]) / total_S[:, None]
    row_Q, column_Q = np.nonzero(rows.hot[rows.snapshot] == rows.item[:, None])  # rows whose item is hot
    own_RV, at_Q = np.zeros((len(rows.item), 1 + len(weights_T))), rows.snapshot[row_Q]
    own_RV[row_Q, 0] = log_SJ[at_Q, column_Q]
    own_RV[row_Q, 1:] = counts_STJ[at_Q, :, column_Q] * power * weights_T / odds_SJ[at_Q, column_Q, None]
    popular_R = popular_N[rows.item]
    likelihood_R = weights[0] * popular_R + power * own_RV[:, 0] - np.log(total_S)[rows.snapshot]
    gradient = np.append((popular_R - mean_S[rows.snapshot]).mean(), (own_RV - means_SV[rows.snapshot]).mean(axis=0))
    return likelihood_R, gradient
