"""Probabilities that mean what they say: two numbers per binary task, fitted on validation, kept in the head.

    p' = sigmoid(slope * logit(p) + intercept)

With the intercept fixed at 0 this is temperature scaling (Guo et al., 2017, "On Calibration of Modern Neural
Networks"; the temperature is 1 / slope), with both free Platt scaling (Platt, 1999, "Probabilistic Outputs for Support
Vector Machines"). Neither changes the order of the predictions, so AUC stays what it is. Fit on validation rows, which
the model has not been trained on, and evaluate on test rows.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import expit, logit

from polyrec.core.registry import nearest
from polyrec.evaluation.evaluator import Predictions
from polyrec.evaluation.metrics import log_loss
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.modules.heads.binary import BinaryHead

logger = logging.getLogger(__name__)

_EPS = 1e-7  # a float32 probability of exactly 0 or 1 has a logit of about +-16
_STEPS = 100


@dataclass(frozen=True)
class Calibration:
    """What was fitted for a task.

    Args:
        slope, intercept: of the map of log odds.
        before, after: log loss of the rows that it was fitted on.
    """

    slope: float
    intercept: float
    before: float
    after: float

    @property
    def temperature(self) -> float:
        """What log odds are divided by; above 1: the model was too sure of itself."""
        return 1 / self.slope


def calibrate(
    model: PolyRecForRecommendation,
    predictions: Predictions,
    labels: dict[str, np.ndarray],
    method: Literal["platt", "temperature"] = "platt",
) -> dict[str, Calibration]:
    """Calibrate the binary tasks of a model on its validation predictions.

    The result is stored in the heads, is saved with the model and applies to `predict` from now on; what was fitted
    before is built upon. Loss and logits stay as they are.

    Args:
        predictions: the model's predictions, see `evaluator.predict`.
        labels: {binary task: [C]}, 0 or 1, NaN = unknown. Tasks that are left out stay as they are.
        method: "platt" (slope and intercept) or "temperature" (slope alone; for few labels, or where the base rate of
            validation is not that of the future).

    Returns:
        {task: Calibration}. A task with labels of one kind only, or whose predictions do not order the labels at all
        (slope <= 0), is left alone with a warning.

    Example:
        >>> from polyrec import PolyRecConfig
        >>> model = PolyRecForRecommendation(PolyRecConfig(tasks=[{"name": "like", "head": "binary"}], hidden_size=8))
        >>> predictions = Predictions({"like": np.array([0.95, 0.95, 0.95, 0.05, 0.05, 0.05])})  # sure of itself, but
        >>> labels = {"like": np.array([1.0, 1.0, 0.0, 1.0, 0.0, 0.0])}  # right two times out of three
        >>> round(calibrate(model, predictions, labels, method="temperature")["like"].temperature, 1)
        7.3
    """
    found = {}
    for task, labels_C in labels.items():
        if task not in model.heads:
            raise ValueError(f"unknown task {task!r}; {nearest(task, list(model.heads))}")
        head = model.heads[task]
        if not isinstance(head, BinaryHead):
            raise ValueError(f"task {task!r} has head {head.task.head!r}: only binary tasks can be calibrated")
        known_C = ~np.isnan(labels_C)
        y, p = labels_C[known_C].astype(np.float64), predictions.values[task][known_C].astype(np.float64)
        if len(np.unique(y)) < 2:
            logger.warning("task %r has labels of one kind only in the given rows: it is not calibrated", task)
            continue
        slope, intercept = fit(y, p, method)
        if slope <= 0:
            logger.warning(
                "the predictions for task %r do not order its labels (slope %.3g): not calibrated", task, slope
            )
            continue
        head.calibrate(slope, intercept)
        after = log_loss(y, expit(slope * _log_odds(p) + intercept))
        found[task] = Calibration(slope, intercept, log_loss(y, p), after)
    return found


def fit(labels: np.ndarray, probs: np.ndarray, method: str = "platt") -> tuple[float, float]:
    """Slope and intercept that minimise the logistic loss, by Newton's method in float64.

    The labels are moved inwards as Platt does, to (P + 1) / (P + 2) and 1 / (N + 2) with P positives and N negatives,
    so that rows which the scores separate perfectly give a finite slope.

    Args:
        labels: [R], 0 or 1, both occur.
        probs: [R], in [0, 1].

    Example:
        >>> rng = np.random.default_rng(0)
        >>> z = rng.normal(size=100_000)
        >>> slope, intercept = fit(rng.random(100_000) < expit(0.5 * z - 1), expit(z))
        >>> abs(slope - 0.5) < 0.02, abs(intercept + 1) < 0.02
        (True, True)
    """
    if method not in ("platt", "temperature"):
        raise ValueError(f"unknown method {method!r}; {nearest(method, ['platt', 'temperature'])}")
    positives = float(labels.sum())
    negatives = len(labels) - positives
    target_R = np.where(labels > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    columns_RP = np.stack([_log_odds(probs), np.ones(len(probs))][: 1 if method == "temperature" else 2], axis=1)

    def loss(w_P: np.ndarray) -> float:
        z_R = columns_RP @ w_P
        return float((np.logaddexp(0, z_R) - target_R * z_R).mean())

    w_P = np.eye(columns_RP.shape[1])[0]  # slope 1, intercept 0
    for _ in range(_STEPS):
        p_R = expit(columns_RP @ w_P)
        gradient_P = columns_RP.T @ (p_R - target_R) / len(p_R)
        if np.abs(gradient_P).max() < 1e-10:
            break
        hessian_PP = (columns_RP * (p_R * (1 - p_R))[:, None]).T @ columns_RP / len(p_R)
        # The ridge keeps scores that are all alike solvable; it does not move the optimum.
        step_P = np.linalg.solve(hessian_PP + 1e-10 * np.eye(len(w_P)), gradient_P)
        size, start = 1.0, loss(w_P)
        while loss(w_P - size * step_P) > start and size > 1e-8:  # a step too far: halve it
            size /= 2
        w_P = w_P - size * step_P
    return float(w_P[0]), float(w_P[1]) if len(w_P) > 1 else 0.0


def _log_odds(probs: np.ndarray) -> np.ndarray:
    return logit(np.clip(probs, _EPS, 1 - _EPS))
