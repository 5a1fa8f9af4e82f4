r"""What would another policy have earned? Off-policy evaluation from a log that tells how likely each choice was.

A logging policy b chose item a_i in context x_i with the logged chance p_i = b(a_i | x_i) > 0 and saw the reward r_i
(a click). The value of another policy e, V(e) = E_x sum_a e(a | x) E[r | x, a], is estimated from these rows alone with
weights w_i = e(a_i | x_i) / p_i. `q` is a model of the reward: q_i = q(x_i, a_i), and v_i = sum_a e(a | x_i) q(x_i, a).

| estimator | formula | remark |
|---|---|---|
| `ips` | mean(w r) | unbiased where b may choose all that e may; varies much |
| `snips` | sum(w r) / sum(w) | stays within the range of rewards; biased by O(1 / R) |
| `dm` | mean(v) | as wrong as the model is |
| `dr` | mean(v + w (r - q)) | unbiased as `ips` is, and varies less the better the model is |
| `sndr` | mean(v) + sum(w (r - q)) / sum(w) | both |

`clip` bounds the weights (w = min(w, clip)), which takes variance for bias. e and q must not have been chosen by the
rewards they are evaluated on: train on an earlier part of the log. Letters: R rows, A actions, K terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from polyrec.core.registry import nearest
from polyrec.evaluation.bootstrap import Interval, draws, interval_of

Terms = tuple[np.ndarray, np.ndarray]  # two columns [R]: the estimate is sum(first) / sum(second)


@dataclass(frozen=True)
class LoggedRows:
    """Rows of a log as a policy to be evaluated sees them; all arrays have R entries.

    Args:
        reward: r, what came of the item that was shown.
        propensity: p in (0, 1], the logged chance that it was shown.
        chance: e(a | x) in [0, 1], with which the evaluated policy would have shown it.
        predicted: q(x, a), reward of it by a model; `dr` and `sndr` need it.
        expected: v, mean reward by that model when the evaluated policy chooses; `dm`, `dr` and `sndr` need it.

    Example:
        >>> rows = LoggedRows(reward=[1, 0, 0, 1], propensity=[0.5] * 4, chance=[1, 0, 1, 0])
        >>> rows.weight().tolist(), rows.effective_rows()
        ([2.0, 0.0, 2.0, 0.0], 2.0)
    """

    reward: ArrayLike
    propensity: ArrayLike
    chance: ArrayLike
    predicted: ArrayLike | None = None
    expected: ArrayLike | None = None

    def __post_init__(self) -> None:
        for name in ("reward", "propensity", "chance", "predicted", "expected"):
            given = getattr(self, name)
            if given is None:
                continue
            column = np.asarray(given, dtype=np.float64)
            if column.ndim != 1 or column.shape != np.shape(self.reward) or not len(column):
                raise ValueError(
                    f"{name} must hold one number for each of the rows, at least one: its shape is {column.shape}, "
                    f"that of reward {np.shape(self.reward)}"
                )
            if not np.isfinite(column).all():
                raise ValueError(f"{name} is {column[~np.isfinite(column)][0]} in row {_first(~np.isfinite(column))}")
            object.__setattr__(self, name, column)
        propensity, chance = np.asarray(self.propensity), np.asarray(self.chance)
        if ((propensity <= 0) | (propensity > 1)).any():
            row = _first((propensity <= 0) | (propensity > 1))
            raise ValueError(f"propensity is {propensity[row]:g} in row {row}: what was shown had a chance in (0, 1]")
        if ((chance < 0) | (chance > 1)).any():
            row = _first((chance < 0) | (chance > 1))
            raise ValueError(f"chance is {chance[row]:g} in row {row}: chances lie in [0, 1]")

    def weight(self, clip: float = np.inf) -> np.ndarray:
        """w = min(e / p, clip), float64 [R]."""
        if not clip > 0:
            raise ValueError(f"clip is {clip}; it must be a weight > 0, or inf to leave the weights as they are")
        return np.minimum(np.asarray(self.chance) / np.asarray(self.propensity), clip)

    def effective_rows(self, clip: float = np.inf) -> float:
        """(sum w)^2 / sum w^2 (Kish, 1965, "Survey Sampling"): rows that would say as much if all weighed the same."""
        weight = self.weight(clip)
        squares = float((weight**2).sum())
        return float(weight.sum()) ** 2 / squares if squares else 0.0

    def model(self, estimator: str) -> tuple[np.ndarray, np.ndarray]:
        """q and v, or how to give them."""
        if self.predicted is None or self.expected is None:
            raise ValueError(
                f"{estimator!r} needs a model of the reward: give `predicted` and `expected`, or use 'ips'"
            )
        return np.asarray(self.predicted), np.asarray(self.expected)


def _first(mask: np.ndarray) -> int:
    return int(np.flatnonzero(mask)[0])


def ips(rows: LoggedRows, clip: float = np.inf) -> list[Terms]:
    """mean(w r): inverse propensity scoring (Horvitz and Thompson, 1952; Precup, Sutton and Singh, 2000, "Eligibility
    Traces for Off-Policy Policy Evaluation"; clipped: Strehl et al., 2010, "Learning from Logged Implicit Exploration
    Data").
    """
    reward = np.asarray(rows.reward)
    return [(rows.weight(clip) * reward, np.ones_like(reward))]


def snips(rows: LoggedRows, clip: float = np.inf) -> list[Terms]:
    """sum(w r) / sum(w): self-normalised (Swaminathan and Joachims, 2015, "The Self-Normalized Estimator for
    Counterfactual Learning").
    """
    weight = rows.weight(clip)
    return [(weight * np.asarray(rows.reward), weight)]


def dm(rows: LoggedRows, clip: float = np.inf) -> list[Terms]:
    """mean(v): the direct method (Beygelzimer and Langford, 2009, "The Offset Tree for Learning with Partial Labels");
    it has no weights to clip.
    """
    _, expected = rows.model("dm")
    return [(expected, np.ones_like(expected))]


def dr(rows: LoggedRows, clip: float = np.inf) -> list[Terms]:
    """mean(v + w (r - q)): doubly robust (Dudik, Langford and Li, 2011, "Doubly Robust Policy Evaluation and
    Learning").
    """
    predicted, expected = rows.model("dr")
    return [(expected + rows.weight(clip) * (np.asarray(rows.reward) - predicted), np.ones_like(expected))]


def sndr(rows: LoggedRows, clip: float = np.inf) -> list[Terms]:
    """mean(v) + sum(w (r - q)) / sum(w): doubly robust and self-normalised (Thomas and Brunskill, 2016,
    "Data-Efficient Off-Policy Policy Evaluation for Reinforcement Learning").
    """
    predicted, expected = rows.model("sndr")
    weight = rows.weight(clip)
    return [(expected, np.ones_like(expected)), (weight * (np.asarray(rows.reward) - predicted), weight)]


ESTIMATORS: dict[str, Callable[[LoggedRows, float], list[Terms]]] = {
    "ips": ips,
    "snips": snips,
    "dm": dm,
    "dr": dr,
    "sndr": sndr,
}


def policy_value(
    rows: LoggedRows,
    estimator: str = "dr",
    clip: float = np.inf,
    *,
    groups: ArrayLike | None = None,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Value of a policy per row, with a percentile interval by resampling rows, or groups of rows.

    All estimators are sums of ratios of sums, so a resample is a count per row (or group), not a copy of the rows.

    Args:
        rows: the log, as the evaluated policy sees it.
        estimator: "ips", "snips", "dm", "dr" or "sndr", see the table above.
        clip: largest weight that is used.
        groups: [R], what is drawn together (users, sessions); None: each row by itself.
        n, seed, level: of the bootstrap (Efron and Tibshirani, 1993).

    Example:
        >>> rows = LoggedRows(reward=[1, 0, 0, 1], propensity=[0.5] * 4, chance=[0.5] * 4)
        >>> policy_value(rows, "ips").value  # the logging policy itself: the mean reward
        0.5
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown estimator {estimator!r}; {nearest(estimator, list(ESTIMATORS))}")
    terms_K2R: np.ndarray = np.array(ESTIMATORS[estimator](rows, clip))
    code_R = np.arange(terms_K2R.shape[2]) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(code_R) != terms_K2R.shape[2]:
        raise ValueError(f"groups must name one group for each of {terms_K2R.shape[2]} rows, not for {len(code_R)}")
    number = int(code_R.max()) + 1
    sums_K2G = np.apply_along_axis(lambda term_R: np.bincount(code_R, term_R, number), 2, terms_K2R)

    def value(times_G: np.ndarray) -> float:
        numerator_K, denominator_K = (sums_K2G @ times_G).T
        # No weight at all: the policy never shows what was logged here, and nothing is known.
        return float((numerator_K / denominator_K).sum()) if denominator_K.all() else float("nan")

    samples = np.array([value(np.bincount(drawn_G, minlength=number)) for drawn_G in draws(number, n, seed)])
    return interval_of(value(np.ones(number)), samples, level, number)


def softmax_policy(score_RA: ArrayLike, temperature: float, allowed_RA: ArrayLike | None = None) -> np.ndarray:
    r"""e(a | x) = exp(s_a / t) / sum_b exp(s_b / t), float64 [R, A].

    Args:
        score_RA: e.g. log odds of a click.
        temperature: t > 0; a small one shows the best item nearly always.
        allowed_RA: bool, items that may be shown; the chance of others is 0. None: all.

    Example:
        >>> softmax_policy([[0.0, 0.0, 9.0]], 1.0, [[True, True, False]]).tolist()
        [[0.5, 0.5, 0.0]]
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature is {temperature}; it must be a number > 0")
    odds_RA = _allowed(score_RA, allowed_RA) / temperature
    chance_RA = np.exp(odds_RA - odds_RA.max(axis=1, keepdims=True))
    return chance_RA / chance_RA.sum(axis=1, keepdims=True)


def epsilon_greedy_policy(score_RA: ArrayLike, epsilon: float, allowed_RA: ArrayLike | None = None) -> np.ndarray:
    """The best item with chance 1 - epsilon, else any allowed one alike, float64 [R, A]; ties share.

    Example:
        >>> epsilon_greedy_policy([[0.1, 0.3]], 0.2).tolist()
        [[0.1, 0.9]]
    """
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon is {epsilon}; it must be a chance in [0, 1]")
    known_RA = _allowed(score_RA, allowed_RA)
    best_RA = known_RA == known_RA.max(axis=1, keepdims=True)
    open_RA = np.isfinite(known_RA)
    return (1 - epsilon) * best_RA / best_RA.sum(1, keepdims=True) + epsilon * open_RA / open_RA.sum(1, keepdims=True)


def _allowed(score_RA: ArrayLike, allowed_RA: ArrayLike | None) -> np.ndarray:
    """Scores as numbers, -inf where an item may not be shown."""
    known_RA = np.array(score_RA, dtype=np.float64)
    if not np.isfinite(known_RA).all():
        raise ValueError("scores must be finite numbers; say with `allowed_RA` what may not be shown")
    if allowed_RA is None:
        return known_RA
    open_RA = np.broadcast_to(np.asarray(allowed_RA, dtype=bool), known_RA.shape)
    nothing_R = np.asarray(~open_RA.any(axis=1))
    if nothing_R.any():
        raise ValueError(f"no item is allowed in row {_first(nothing_R)}")
    return np.where(open_RA, known_RA, -np.inf)
