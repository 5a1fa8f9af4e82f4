"""Matrix factorisations of the library `implicit` (an optional extra), which score histories.

Items are numbered 0..N-1; histories are ragged, see `evaluation.baselines.recommenders`. Letters: E events, R
histories, N items, F factors.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import scipy.sparse as sp

from polyrec.core.extras import check_extra
from polyrec.evaluation.baselines.recommenders import history_matrix


class ALS:
    r"""Alternating least squares on what was taken (Hu, Koren and Volinsky, 2008, "Collaborative Filtering for Implicit
    Feedback Datasets").

    L = sum_ui c_ui (p_ui - x_u . y_i)^2 + regularization (|x|^2 + |y|^2), with p_ui = 1 where user u consumed item i
    and confidence c_ui = 1 + alpha n_ui. A history is folded in: its vector x solves the same least squares for the
    fitted y, so users need not be known, and nothing after the history speaks.

    Args:
        factors, regularization, alpha, iterations: of `implicit.als.AlternatingLeastSquares`.
        last: number of most recent events read; None = all.
        threads: 0 = all cores.
        seed: of the start.
    """

    def __init__(
        self,
        factors: int = 64,
        regularization: float = 0.01,
        alpha: float = 1.0,
        iterations: int = 15,
        last: int | None = None,
        threads: int = 0,
        seed: int = 0,
    ) -> None:
        check_extra("implicit", "classical", "ALS and BPR")
        self.factors, self.regularization, self.alpha, self.iterations = factors, regularization, alpha, iterations
        self.last, self.threads, self.seed = last, threads, seed

    def fit(self, users: np.ndarray, items: np.ndarray, n_items: int) -> Self:
        """Factorise. users, items: int [E], one entry per event; repeated pairs count."""
        from implicit.als import AlternatingLeastSquares

        self.model: Any = AlternatingLeastSquares(
            factors=self.factors,
            regularization=self.regularization,
            alpha=self.alpha,
            iterations=self.iterations,
            num_threads=self.threads,
            random_state=self.seed,
        )
        self.model.fit(user_items(users, items, n_items), show_progress=False)
        return self

    def score(self, history_offsets: np.ndarray, history_items: np.ndarray) -> np.ndarray:
        """Scores, float32 [R, N]."""
        vectors_NF = np.asarray(self.model.item_factors)
        rows = sp.csr_matrix(history_matrix(history_offsets, history_items, len(vectors_NF), self.last))
        if not rows.shape[0]:
            return np.zeros((0, len(vectors_NF)), dtype=np.float32)
        users_RF = np.asarray(self.model.recalculate_user(np.arange(rows.shape[0]), rows))
        return users_RF.reshape(rows.shape[0], -1) @ vectors_NF.T


class BPR:
    r"""Pairwise ranking (Rendle et al., 2009, "BPR: Bayesian Personalized Ranking from Implicit Feedback").

    L = -sum_uij log sigmoid(x_u . (y_i - y_j)), item i taken, j not. The vector of a user in the fit knows all
    of the user's positives, those after a request included, so it serves nobody: a history is the mean of its items'
    vectors, with the items' biases counted once.

    Args:
        factors, learning_rate, regularization, iterations: of `implicit.bpr.BayesianPersonalizedRanking`.
        last: number of most recent events read; None = all.
        threads: 0 = all cores; more than one make the fit depend on chance.
        seed: of the start and of the sampling.
    """

    def __init__(
        self,
        factors: int = 64,
        learning_rate: float = 0.05,
        regularization: float = 0.01,
        iterations: int = 100,
        last: int | None = 10,
        threads: int = 1,
        seed: int = 0,
    ) -> None:
        check_extra("implicit", "classical", "ALS and BPR")
        self.factors, self.learning_rate, self.regularization = factors, learning_rate, regularization
        self.iterations, self.last, self.threads, self.seed = iterations, last, threads, seed

    def fit(self, users: np.ndarray, items: np.ndarray, n_items: int) -> Self:
        """Factorise. users, items: int [E], one entry per event."""
        from implicit.bpr import BayesianPersonalizedRanking

        self.model: Any = BayesianPersonalizedRanking(
            factors=self.factors,
            learning_rate=self.learning_rate,
            regularization=self.regularization,
            iterations=self.iterations,
            num_threads=self.threads,
            random_state=self.seed,
        )
        self.model.fit(user_items(users, items, n_items), show_progress=False)
        return self

    def score(self, history_offsets: np.ndarray, history_items: np.ndarray) -> np.ndarray:
        """Scores, float32 [R, N]."""
        vectors_NF, bias_N = np.asarray(self.model.item_factors)[:, :-1], np.asarray(self.model.item_factors)[:, -1]
        rows = history_matrix(history_offsets, history_items, len(vectors_NF), self.last)
        mean_RF = (rows @ vectors_NF) / np.maximum(rows.sum(axis=1), 1)[:, None]
        return mean_RF @ vectors_NF.T + bias_N


def user_items(users: np.ndarray, items: np.ndarray, n_items: int) -> sp.csr_matrix:
    """Events counted, [users, N]; users without any are left out."""
    user_E = np.unique(users, return_inverse=True)[1]
    shape = (int(user_E.max(initial=-1)) + 1, n_items)
    return sp.csr_matrix((np.ones(len(items), dtype=np.float32), (user_E, items)), shape=shape)
