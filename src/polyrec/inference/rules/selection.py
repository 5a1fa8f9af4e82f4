"""From scores of the catalog to a list: boosts, the best candidates, one score of several tasks, quotas, pins, order.

Letters: B users, N rows of the item table, M candidates, K places of the list.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from polyrec.core.expressions import said_by
from polyrec.core.rules import Diversity, Explore, Rules
from polyrec.core.score import Score
from polyrec.core.stack import caller_level
from polyrec.inference.ranked import best_items
from polyrec.inference.rules.catalog import CatalogColumns
from polyrec.inference.rules.diversity import diversified
from polyrec.inference.rules.exploration import drawn, generator
from polyrec.inference.rules.objective import fulfilling, log_odds, scores_of, share
from polyrec.inference.rules.quotas import Quotas

_MESSAGES = 5  # kinds of warnings
_GROWTH = 4  # times as many candidates where the best ones do not fill a list
_NONE = np.zeros(0, dtype=np.int64)
Predict = Callable[[Sequence[np.ndarray]], list[dict[str, np.ndarray]]]  # of rows of each user: {task: [M]}


class Chosen(NamedTuple):
    """One user's list.

    Args:
        rows: int64 [K], rows of the item table.
        scores: float32 [K].
        predictions: {task: [K]}, if they were needed to choose.
        propensities: float64 [K], the chance of each item given those above it, of a list that was drawn.
        unmet: what could not be kept.
    """

    rows: np.ndarray
    scores: np.ndarray
    predictions: dict[str, np.ndarray] | None = None
    propensities: np.ndarray | None = None
    unmet: tuple[str, ...] = ()


class _Pool:
    """The candidates of one user, best first; more are added where they do not fill the list.

    Args:
        score_N: by which they are ranked, -inf = not allowed.
        pinned: rows that are candidates in any case, if they are allowed.
    """

    def __init__(self, score_N: np.ndarray, pinned: np.ndarray) -> None:
        self.score_N, self.pinned = score_N, pinned[np.isfinite(score_N[pinned])]
        self.allowed = int(np.isfinite(score_N).sum())
        self.rows = np.zeros(0, dtype=np.int64)
        self.score_M = np.zeros(0)
        self.predictions: dict[str, np.ndarray] = {}
        self.fits_M = np.zeros(0, dtype=bool)

    def missing(self, size: int) -> np.ndarray:
        """The rows that are to be added for so many candidates."""
        rows = best_items(self.score_N, size)
        if len(self.pinned):
            rows = np.concatenate([rows, self.pinned[~(self.pinned[:, None] == rows).any(axis=1)]])
        return rows[~np.isin(rows, self.rows)] if len(self.rows) else rows


class Selector:
    """Makes lists of scores by rules; of one call.

    Args:
        rules: what lists may hold, and in which order.
        catalog: columns of the items.
        task: that ranks the catalog.
        kinds: {task: `output_kind` of its head}, of all tasks that predict something of a candidate, and of `task`.
        vectors: gives the embeddings of all items, [N, D].
    """

    def __init__(
        self,
        rules: Rules,
        catalog: CatalogColumns,
        task: str,
        kinds: Mapping[str, str | None],
        vectors: Callable[[], np.ndarray],
    ) -> None:
        self.rules, self.task, self.kinds, self.vectors = rules, task, kinds, vectors
        self.score = None if rules.score is None else Score.parse(rules.score)
        if self.score is not None:
            self.score.check(list(kinds))
        self.quota_columns = {name: catalog.values(name) for name in rules.at_most}
        self.boost_N: np.ndarray | None = None
        for condition, boost in rules.boosts.items():
            own = catalog.mask(condition, "boosts") * np.float32(boost)
            self.boost_N = own if self.boost_N is None else self.boost_N + own
        self.pins = self._pinned(catalog)

    def _pinned(self, catalog: CatalogColumns) -> dict[int, int]:
        """{rank: row of the item table}."""
        ranks = sorted(self.rules.pins)
        rows = catalog.rows_of([self.rules.pins[rank] for rank in ranks], "pins")
        return dict(zip(ranks, rows.tolist(), strict=True))

    def choose(
        self, scores_BN: Iterable[np.ndarray], k: int, requests: Sequence[Mapping[str, Any]], predict: Predict
    ) -> list[Chosen]:
        """The lists of some users.

        Args:
            scores_BN: of `task`, -inf = not allowed.
            requests: of the users, whom draws follow from.
            predict: gives predictions of candidates.
        """
        pinned = np.array(list(self.pins.values()), dtype=np.int64)
        pools = [_Pool(self._ranked(scores_N), pinned) for scores_N in scores_BN]
        found: list[Chosen] = [Chosen(_NONE, np.zeros(0, np.float32))] * len(pools)
        waiting, size = list(range(len(pools))), self._candidates(k)
        while waiting:
            self._grow(pools, [pool.missing(size) if n in waiting else _NONE for n, pool in enumerate(pools)], predict)
            for n in waiting:
                found[n] = self._list(pools[n], k)
            waiting = [n for n in waiting if len(found[n].rows) < k and len(pools[n].rows) < pools[n].allowed]
            size *= _GROWTH
        if isinstance(how := self.rules.explore, Explore):
            # How many candidates there are must not depend on what is drawn: chances would be others.
            found = [self._list(pool, k, generator(how, own)) for pool, own in zip(pools, requests, strict=True)]
        return found

    def _candidates(self, k: int) -> int:
        """How many are chosen from at first."""
        rules = self.rules
        more = rules.score is not None or rules.diversity is not None or rules.explore is not None or rules.at_most
        return max(rules.best, k) if more else k

    def _ranked(self, scores_N: np.ndarray) -> np.ndarray:
        """Scores of one user with boosts, in log-odds if they are shares."""
        if self.kinds[self.task] == "bernoulli":
            allowed, shares_N = np.isfinite(scores_N), scores_N
            scores_N = np.full(len(shares_N), -np.inf)
            scores_N[allowed] = log_odds(shares_N[allowed])
        return scores_N if self.boost_N is None else scores_N + self.boost_N

    def _grow(self, pools: Sequence[_Pool], added: Sequence[np.ndarray], predict: Predict) -> None:
        """Add candidates (rows), their scores and, if the score is of several tasks, their predictions."""
        score = self.score
        values = predict(added) if score is not None else [dict[str, np.ndarray]()] * len(pools)
        for pool, rows, own in zip(pools, added, values, strict=True):
            if not len(rows):
                continue
            score_M = pool.score_N[rows].astype(np.float64)
            fits_M = np.ones(len(rows), dtype=bool)
            if score is not None:
                ranking = score_M if self.boost_N is None else score_M - self.boost_N[rows]
                own = own | {self.task: share(ranking) if self.kinds[self.task] == "bernoulli" else ranking}
                with said_by("score"):
                    fits_M = fulfilling(score, own)
                score_M = scores_of(score, own, self.kinds, self.task)
                score_M = score_M if self.boost_N is None else score_M + self.boost_N[rows]
            pool.predictions = {n: np.concatenate([pool.predictions.get(n, v[:0]), v]) for n, v in own.items()}
            pool.rows = np.concatenate([pool.rows, rows])
            pool.score_M = np.concatenate([pool.score_M, score_M])
            pool.fits_M = np.concatenate([pool.fits_M, fits_M])

    # ------------------------------------------------------------------- lists
    def _list(self, pool: _Pool, k: int, random: np.random.Generator | None = None) -> Chosen:
        """At most k of the candidates."""
        order = np.argsort(-pool.score_M, kind="stable")
        rows, score_M = pool.rows[order], pool.score_M[order]
        quotas = Quotas(self.quota_columns, self.rules.at_most, rows)
        quotas.blocked |= ~pool.fits_M[order]
        pins, unmet = self._take_pins(pool, rows, quotas, k)
        number, chances = k - len(pins), None
        if random is not None and isinstance(self.rules.explore, Explore):
            others, chances = drawn(self.rules.explore, score_M, number, quotas, random)
        elif isinstance(self.rules.diversity, Diversity):
            others = diversified(self.rules.diversity, self.vectors()[rows], score_M, number, quotas)
        else:
            others = quotas.walk(number)
        places = _merged(pins, others)
        if len(places) < min(k, pool.allowed):
            unmet.append(f"{self._strict} leave {len(places)} items of {k}")
        unmet += [
            f"pins: item {self.rules.pins[rank]!r} stands at rank {places.index(index) + 1}, not {rank}"
            for rank, index in pins.items()
            if rank > len(places)
        ]
        chosen = np.array(places, dtype=np.int64)
        propensities = None
        if chances is not None:
            propensities = np.ones(len(chosen))  # of pins
            propensities[~np.isin(chosen, list(pins.values()))] = chances
        shown_M = self._shown(score_M[chosen]).astype(np.float32)
        own = {name: values[order][chosen].astype(np.float32) for name, values in pool.predictions.items()}
        return Chosen(rows[chosen], shown_M, own if self.score is not None else None, propensities, tuple(unmet))

    @property
    def _strict(self) -> str:
        """The rules that may leave places empty, for messages."""
        return " and ".join(
            name
            for name, is_set in (
                ("at_most", bool(self.rules.at_most)),
                ("the conditions of score", self.score is not None and bool(self.score.conditions)),
            )
            if is_set
        )

    def _take_pins(self, pool: _Pool, rows: np.ndarray, quotas: Quotas, k: int) -> tuple[dict[int, int], list[str]]:
        """{rank: index} of the pins that are allowed, and what is to be said of the others."""
        found: dict[int, int] = {}
        unmet: list[str] = []
        for rank, row in self.pins.items():
            item = f"pins: item {self.rules.pins[rank]!r} of rank {rank}"
            if rank > k:
                unmet.append(f"{item} is left out: the list has {k} items")
            elif not np.isfinite(pool.score_N[row]):
                unmet.append(f"{item} is left out by where, candidates, exclude or seen")
            elif quotas.blocked[index := int(np.flatnonzero(rows == row)[0])]:
                unmet.append(f"{item} is left out by {self._strict}")
            else:
                quotas.take(index)
                found[rank] = index
        return found, unmet

    def _shown(self, score_M: np.ndarray) -> np.ndarray:
        """Scores as results show them: products and probabilities themselves."""
        if self.score is not None and self.score.product:
            return np.exp(score_M)
        own = self.score is None or not self.score.weights
        return share(score_M) if own and self.kinds[self.task] == "bernoulli" else score_M


def _merged(pins: Mapping[int, int], others: Sequence[int]) -> list[int]:
    """Pinned candidates at their ranks, the others at those that are free; the last pins follow where these end."""
    found: list[int] = []
    left = iter(others)
    for rank in range(1, len(pins) + len(others) + 1):
        index = pins[rank] if rank in pins else next(left, None)
        if index is None:
            break
        found.append(index)
    return found + [index for rank, index in sorted(pins.items()) if rank > len(found)]


class Unmet:
    """What lists could not keep, gathered list by list, for one warning a call."""

    def __init__(self) -> None:
        self._lists, self._counts = 0, Counter[str]()

    def add(self, unmet: Sequence[str]) -> None:
        """Look at a list."""
        self._lists += 1
        self._counts.update(unmet)

    def warn(self) -> None:
        """Warn, if there is something to say, at the calling line outside polyrec."""
        messages = [
            text if self._lists == 1 else f"{text} ({count:,} of {self._lists:,} lists)"
            for text, count in self._counts.most_common(_MESSAGES)
        ]
        if messages:
            more = len(self._counts) - len(messages)
            text = "; ".join(messages) + f"; and {more:,} more" * (more > 0)
            warnings.warn(f"rules are not all kept: {text}", RuleWarning, stacklevel=caller_level())


class RuleWarning(UserWarning):
    """Quotas, pins or thresholds of lists could not be kept."""
