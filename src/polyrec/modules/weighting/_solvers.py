"""Small exact solvers for weights of a Gramian, where the usual way is a general one that costs milliseconds.

Each takes the Gramian G = J J^T of T tasks with trace 1, float64 [T, T], and returns weights [T] of the rows of J.
T is tiny, so that every solver is done in microseconds to a millisecond.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, nnls

Array = NDArray[np.float64]

# Added to the diagonal, relative to a trace of 1: gradients that cancel out would otherwise get infinite weights.
_RIDGE = 1e-4
_TINY = 1e-12


def square_root(gramian_TT: Array) -> Array:
    """A matrix R [T, T] with R R^T = G: rows that have the inner products of the tasks' gradients."""
    values_T, vectors_TT = np.linalg.eigh(gramian_TT)
    return vectors_TT * np.sqrt(values_T.clip(min=0))


def min_norm(gramian_TT: Array) -> Array:
    r"""MGDA: min_w ||J^T w||^2 over the simplex, exactly.

    Example:
        >>> min_norm(np.diag([0.8, 0.2]))  # the shorter gradient gets more
        array([0.2, 0.8])
    """
    return _shortest(square_root(gramian_TT))


def _shortest(rows_TX: Array) -> Array:
    """Weights of the shortest convex combination of rows.

    ||X^T w||^2 + (1^T w - 1)^2 over w >= 0 has its optimum along the same w, and is nonnegative least squares.
    """
    rows_TX = rows_TX / np.linalg.norm(rows_TX)
    stacked = np.vstack([rows_TX.T, np.ones(len(rows_TX))])
    weight_T, _ = nnls(stacked, np.append(np.zeros(rows_TX.shape[1]), 1.0))
    return weight_T / weight_T.sum()


def conflict_averse(gramian_TT: Array, c: float) -> Array:
    r"""CAGrad: g_0 + r g_w / ||g_w||, r = c ||g_0||, where w minimises g_w . g_0 + r ||g_w|| over the simplex.

    g_0 is the mean gradient. As ||g_w|| = min_t (||g_w||^2 / t + t) / 2, the problem for a given t is to find the
    shortest convex combination of the g_i + (t / r) g_0, and what is left is to find the t with t = ||g_w||: the zero
    of a growing function. (General solvers take 1 to 6 ms, and 1000 ms near a Pareto point.)

    Example:
        >>> conflict_averse(np.diag([0.5, 0.5]), c=0.0)  # the mean
        array([0.5, 0.5])
    """
    tasks = len(gramian_TT)
    mean_T = np.full(tasks, 1 / tasks)
    rows_TX = square_root(gramian_TT)
    radius = c * float(np.linalg.norm(mean_T @ rows_TX))
    if radius < _TINY:
        return mean_T

    def weights(length: float) -> Array:
        return _shortest(rows_TX + length / radius * (mean_T @ rows_TX))

    def excess(length: float) -> float:
        return length - float(np.linalg.norm(weights(length) @ rows_TX))

    if excess(_RIDGE) >= 0:  # the gradients cancel out: nowhere to go that helps all tasks
        return np.zeros(tasks)
    length = float(brentq(excess, _RIDGE, 1.0, xtol=1e-9)) if excess(1.0) > 0 else 1.0
    return mean_T + radius / length * weights(length)


def bargain(gramian_TT: Array) -> Array:
    r"""Nash-MTL: the w > 0 with G w = 1 / w, scaled to ||J^T w|| = ||J||.

    Where the published code solves a sequence of convex problems with a general solver (20 ms), one is enough: G w = 1
    / w says that the gradient of w^T G w / 2 - sum_i log w_i is 0, which is convex. Newton's method needs a few steps.

    Example:
        >>> bargain(np.diag([0.8, 0.2])).round(2)  # inverse to the length
        array([0.79, 1.58])
    """
    tasks = len(gramian_TT)
    ridged_TT = gramian_TT + _RIDGE * np.eye(tasks)
    weight_T = np.full(tasks, np.sqrt(tasks))
    for _ in range(100):
        gradient_T = ridged_TT @ weight_T - 1 / weight_T
        step_T = np.linalg.solve(ridged_TT + np.diag(weight_T**-2), gradient_T)
        decrement = np.sqrt(gradient_T @ step_T)  # a damped step never leaves w > 0, as the function is self-concordant
        weight_T = weight_T - step_T / (1 + decrement if decrement > 0.25 else 1)
        if decrement < 1e-10:
            break
    return weight_T / np.sqrt(tasks)
