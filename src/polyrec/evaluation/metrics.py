"""Metrics of feedback: does the score order, calibrate, predict?

One rule for all of them: a row whose label is NaN is unknown and is dropped together with its score, as in the losses.
The remaining scores must be finite. Labels may be of any boolean, integer or floating dtype; all sums run in float64.
With no row left the result is NaN. Letters: R rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import xlogy
from scipy.stats import kendalltau

# Names of metrics (see `evaluator.PAIR_METRICS`) of which less is better; of all others more is.
LOWER_IS_BETTER = frozenset({"logloss", "calibration_error", "rmse", "mae", "class_logloss", "poisson_deviance"})

_EPS = 1e-7  # about the resolution of float32 just below 1: a saturated float32 sigmoid then costs 16.1 nats, not inf


class GroupedAUC(NamedTuple):
    """Result of `grouped_auc`: the weighted mean and how many groups had both labels, i.e. counted."""

    value: float
    groups: int


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    r"""Area under the ROC curve: the share of (positive, negative) pairs in the right order, a tied pair counting half.

    AUC = (sum of the positives' ranks - P (P + 1) / 2) / (P N), ties at their average rank (Mann and Whitney, 1947).

    Args:
        labels: [R], 0 or 1; NaN = unknown, dropped.
        scores: [R], finite; any monotone scale (logits will do).

    Returns:
        The AUC, or NaN when only one of the two labels occurs: there is no pair to order.

    Example:
        >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
        0.875
        >>> auc([1, 1], [0.1, 0.2])
        nan
    """
    labels_R, scores_R, _ = _known_rows(labels, scores)
    _require_binary(labels_R)
    value_G, _ = auc_by_group(labels_R, scores_R, np.zeros(len(labels_R), dtype=np.int8))
    return float(value_G[0]) if len(value_G) else float("nan")


def grouped_auc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> GroupedAUC:
    r"""GAUC, the mean of the groups' AUCs weighted by their rows: can the model order what ONE user was shown?

    GAUC = sum_g R_g AUC_g / sum_g R_g over the groups g (users) with both labels (Zhu et al., 2017, "Optimized Cost
    per Click in Taobao"). R_g counts the rows of the group whose label is known. One sort, no loop over users.

    The GAUC trap. Only users with both labels count, so among them an earlier label predicts a later one NEGATIVELY,
    like drawing without replacement: whoever had the only positive already has negatives left. A model that may read
    the test labels strictly before each row (prequential evaluation) and rightly learns from them is punished: on
    KuaiRand the running-mean baseline falls from 0.61 to 0.26, and with labels permuted within each user (nothing to
    learn at all) ranking by the user's own earlier rate scores about 0.2 instead of 0.5. Use GAUC for frozen
    evaluation only, where nothing of the test period is visible; evaluate prequential runs by AUC, log loss and RMSE.
    The smallest case, two rows each: users with equal labels do not count, and each of the others is
    ordered wrongly by a score that has seen the first label.

        >>> labels, seen_rate = [1, 0, 0, 1], [0.5, 1.0, 0.5, 0.0]  # before anything is seen: 0.5
        >>> grouped_auc(labels, seen_rate, ["yes first", "yes first", "no first", "no first"])
        GroupedAUC(value=0.0, groups=2)

    Args:
        labels: [R], 0 or 1; NaN = unknown, dropped.
        scores: [R], finite.
        groups: [R], user ids: integers or strings, in any order.

    Returns:
        (value, groups): the GAUC, NaN when no group has both labels, and the number of groups that do.

    Example:
        >>> grouped_auc([0, 1, 1, 0, 1], [0.2, 0.9, 0.1, 0.3, 0.5], ["ann", "ann", "bob", "bob", "cid"])
        GroupedAUC(value=0.5, groups=2)
    """
    labels_R, scores_R, known_R = _known_rows(labels, scores)
    _require_binary(labels_R)
    groups_R = np.asarray(groups)
    if groups_R.shape != known_R.shape:
        raise ValueError(f"groups must name the group of each of {len(known_R)} rows, its shape is {groups_R.shape}")
    groups_R = groups_R[known_R]
    if groups_R.dtype.kind == "f" and np.isnan(groups_R).any():
        raise ValueError("groups holds NaN: drop the rows without a user, or give each of them an id of its own")
    if groups_R.dtype == object:  # lexsort cannot compare Python objects
        groups_R = np.unique(groups_R, return_inverse=True)[1]
    value_G, rows_G = auc_by_group(labels_R, scores_R, groups_R)
    counts_G = ~np.isnan(value_G)
    if not counts_G.any():
        return GroupedAUC(float("nan"), 0)
    return GroupedAUC(float(np.average(value_G[counts_G], weights=rows_G[counts_G])), int(counts_G.sum()))


def log_loss(labels: ArrayLike, probs: ArrayLike) -> float:
    r"""Mean negative log-likelihood in nats, -mean(y log p + (1 - y) log(1 - p)), p clipped to [1e-7, 1 - 1e-7].

    Args:
        labels: [R], in [0, 1] (soft labels are allowed); NaN = unknown, dropped.
        probs: [R], in [0, 1].

    Example:
        >>> round(log_loss([1, 0], [0.8, 0.4]), 4)
        0.367
    """
    return _mean(log_losses(*_known_probabilities(labels, probs)))


def log_losses(labels_R: np.ndarray, probs_R: np.ndarray) -> np.ndarray:
    """What `log_loss` is the mean of, float64 [R]; both known and in [0, 1]."""
    probs_R = probs_R.clip(_EPS, 1 - _EPS)
    return -(labels_R * np.log(probs_R) + (1 - labels_R) * np.log1p(-probs_R))


def expected_calibration_error(labels: ArrayLike, probs: ArrayLike, bins: int = 15) -> float:
    r"""How far the promised rate is from the observed one: ECE = sum_b (R_b / R) |mean(y in b) - mean(p in b)|.

    The bins are equally wide, [b / bins, (b + 1) / bins), the last one includes 1 (Naeini et al., 2015; Guo et al.,
    2017). p is the probability of label 1, not the confidence in the predicted class. ECE depends on the number of
    bins and is biased upwards on few rows: compare models on the same rows with the same bins only.

    Args:
        labels: [R], in [0, 1]; NaN = unknown, dropped.
        probs: [R], in [0, 1].
        bins: number of bins.

    Example:
        >>> round(expected_calibration_error([1, 0, 1, 1], [0.3, 0.3, 0.8, 0.8], bins=2), 4)
        0.2
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    labels_R, probs_R = _known_probabilities(labels, probs)
    if not len(labels_R):
        return float("nan")
    bin_R = np.minimum((probs_R * bins).astype(np.int64), bins - 1)
    # R_b |mean(y) - mean(p)| = |sum(y - p)|: no division, so an empty bin needs no special case.
    return float(np.abs(np.bincount(bin_R, weights=labels_R - probs_R)).sum() / len(labels_R))


def rmse(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Root mean squared error, sqrt(mean((y - f)^2)).

    Args:
        labels: [R], any real number; NaN = unknown, dropped.
        predictions: [R], finite.

    Example:
        >>> rmse([1, 5, float("nan")], [4, 1, 3])
        3.5355339059327378
    """
    labels_R, predictions_R, _ = _known_rows(labels, predictions)
    return float(np.sqrt(_mean(np.square(labels_R - predictions_R))))


def mae(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Mean absolute error, mean(abs(y - f)). Arguments as in `rmse`.

    Example:
        >>> mae([1, 5, float("nan")], [4, 1, 3])
        3.5
    """
    labels_R, predictions_R, _ = _known_rows(labels, predictions)
    return _mean(np.abs(labels_R - predictions_R))


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Share of predictions that are the label once rounded to a whole number. Arguments as in `rmse`.

    Example:
        >>> accuracy([1, 2, 0, float("nan")], [1.2, 1.4, 0, 3])
        0.6666666666666666
    """
    labels_R, predictions_R, _ = _known_rows(labels, predictions)
    return _mean(labels_R == predictions_R.round())


def quadratic_kappa(labels: ArrayLike, predictions: ArrayLike) -> float:
    r"""Agreement of ordered classes beyond chance: kappa = 1 - sum_i (y_i - f_i)^2 / (1/R sum_ij (y_i - f_j)^2).

    Cohen's kappa with quadratic weights (Cohen, 1968); 1 = equal, 0 = no better than shuffled predictions. Predictions
    are rounded to whole numbers. NaN if labels and predictions are one and the same constant.

    Args:
        labels: [R], whole numbers; NaN = unknown, dropped.
        predictions: [R], finite.

    Example:
        >>> quadratic_kappa([1, 2, 3, 3], [1, 2, 3, 2])
        0.8
    """
    labels_R, predictions_R, _ = _known_rows(labels, predictions)
    if not len(labels_R):
        return float("nan")
    predictions_R = predictions_R.round()
    by_chance = labels_R.var() + predictions_R.var() + (labels_R.mean() - predictions_R.mean()) ** 2
    return float(1 - np.square(labels_R - predictions_R).mean() / by_chance) if by_chance > 0 else float("nan")


def xauc(labels: ArrayLike, predictions: ArrayLike) -> float:
    r"""Share of pairs of rows with different labels that are ordered rightly, tied predictions counting half.

    The AUC of a number (Zhan et al., 2022, "Deconfounding Duration Bias in Watch-time Prediction for Video
    Recommendation"); (1 + Somers' D) / 2 in statistics. NaN if all labels are equal. Arguments as in `rmse`.

    Example:
        >>> xauc([10, 20, 30, 30], [1, 2, 2, 3])
        0.9
    """
    labels_R, predictions_R, _ = _known_rows(labels, predictions)
    pairs_y, pairs_f = _different_pairs(labels_R), _different_pairs(predictions_R)
    if pairs_y == 0:
        return float("nan")
    if pairs_f == 0:
        return 0.5
    # Kendall's tau-b in O(R log R): (right pairs - wrong pairs) / sqrt(pairs_y pairs_f).
    surplus = kendalltau(labels_R, predictions_R).statistic * np.sqrt(pairs_y) * np.sqrt(pairs_f)
    return float(0.5 * (1 + surplus / pairs_y))


def poisson_deviance(labels: ArrayLike, predictions: ArrayLike) -> float:
    r"""Mean Poisson deviance of counts, D = 2 mean(y log(y / f) - (y - f)), f at least 1e-7; 0 = perfect.

    Args:
        labels: [R], >= 0; NaN = unknown, dropped.
        predictions: [R], finite, expected counts.

    Example:
        >>> round(poisson_deviance([0, 2], [1, 1]), 4)
        1.3863
    """
    labels_R, predictions_R, _ = _known_rows(labels, predictions)
    if len(labels_R) and labels_R.min() < 0:
        raise ValueError(f"labels must be counts, one is {labels_R.min():g}: the deviance is defined from 0 on")
    return _mean(poisson_deviances(labels_R, predictions_R))


def poisson_deviances(labels_R: np.ndarray, predictions_R: np.ndarray) -> np.ndarray:
    """What `poisson_deviance` is the mean of, float64 [R]."""
    predictions_R = predictions_R.clip(_EPS)
    return 2 * (xlogy(labels_R, labels_R / predictions_R) - labels_R + predictions_R)


def class_log_loss(labels: ArrayLike, probs: ArrayLike) -> float:
    r"""Mean negative log-likelihood of the class, -mean(log p_y), in nats, p at least 1e-7.

    A class beyond the K of `probs` has probability 0: the model does not know it.

    Args:
        labels: [R], class numbers 0, 1, ...; NaN = unknown, dropped.
        probs: [R, K], rows that sum to 1.

    Example:
        >>> round(class_log_loss([0, 2], [[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), 4)
        0.4581
    """
    labels_R, probs_RK = _known_details(labels, probs)
    if not len(labels_R):
        return float("nan")
    if labels_R.min() < 0 or (labels_R % 1).any():
        raise ValueError("labels must be class numbers 0, 1, 2, ...")
    if probs_RK.min() < 0 or np.abs(probs_RK.sum(1) - 1).max() > 1e-3:
        raise ValueError("probs must be >= 0 and sum to 1 in every row: apply a softmax to logits first")
    class_R = labels_R.astype(np.int64)
    inside_R = class_R < probs_RK.shape[1]
    chosen_R = np.where(inside_R, probs_RK[np.arange(len(class_R)), np.where(inside_R, class_R, 0)], 0.0)
    return _mean(-np.log(chosen_R.clip(_EPS)))


def interval_coverage(labels: ArrayLike, quantiles: ArrayLike) -> float:
    """Share of labels between the lowest and the highest predicted quantile, both included.

    Quantiles 0.1 and 0.9 should cover 0.8: less means that the model is too sure of itself, more that it is too unsure.

    Args:
        labels: [R], any real number; NaN = unknown, dropped.
        quantiles: [R, K], ascending in each row.

    Example:
        >>> interval_coverage([1, 5], [[0, 1, 2], [2, 3, 4]])
        0.5
    """
    labels_R, quantiles_RK = _known_details(labels, quantiles)
    return _mean((quantiles_RK[:, 0] <= labels_R) & (labels_R <= quantiles_RK[:, -1]))


def _different_pairs(values_R: np.ndarray) -> float:
    """Pairs of rows with different values, as a float: their number overflows int64 in products."""
    counts = np.unique(values_R, return_counts=True)[1].astype(np.float64)
    return (len(values_R) ** 2 - np.square(counts).sum()) / 2


def _known_details(labels: ArrayLike, values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Labels [R] and values [R, K] in float64 where the label is known; the values must be finite."""
    values_RK = np.asarray(values).astype(np.float64)
    if values_RK.ndim != 2:
        raise ValueError(f"give several numbers per row, [R, K], not {values_RK.shape}")
    labels_R, _, known_R = _known_rows(labels, values_RK.sum(1))
    return labels_R, values_RK[known_R]


def _mean(values_R: np.ndarray) -> float:
    """Mean without numpy's warning on no rows."""
    return float(values_R.mean()) if len(values_R) else float("nan")


def _known_rows(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and scores in float64 where the label is known, and which rows those are (bool [R])."""
    # float64 at once: bool and int8 labels would overflow or saturate in sums (AUCs above 1 were seen elsewhere).
    labels_R = np.asarray(labels).astype(np.float64)
    scores_R = np.asarray(scores).astype(np.float64)
    if labels_R.ndim != 1 or labels_R.shape != scores_R.shape:
        raise ValueError(
            f"labels and scores must be one-dimensional and equally long, not {labels_R.shape} and {scores_R.shape}: "
            "flatten both, row by row"
        )
    known_R = ~np.isnan(labels_R)
    labels_R, scores_R = labels_R[known_R], scores_R[known_R]
    for name, values_R in (("labels", labels_R), ("scores", scores_R)):
        finite_R = np.isfinite(values_R)
        if not finite_R.all():
            bad = int(np.flatnonzero(known_R)[finite_R.argmin()])
            raise ValueError(
                f"{name} must be finite, row {bad} is {values_R[finite_R.argmin()]} "
                f"({(~finite_R).sum()} such rows): the model has diverged, or missing values came in as numbers. "
                "Only labels may be NaN, meaning unknown"
            )
    return labels_R, scores_R, known_R


def _known_probabilities(labels: ArrayLike, probs: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    labels_R, probs_R, _ = _known_rows(labels, probs)
    for name, values_R, fix in (
        ("probs", probs_R, "apply a sigmoid to logits first"),
        ("labels", labels_R, "binarise them first, e.g. labels >= 4"),
    ):
        if len(values_R) and not (values_R.min() >= 0 and values_R.max() <= 1):
            raise ValueError(f"{name} must lie in [0, 1], not [{values_R.min():g}, {values_R.max():g}]: {fix}")
    return labels_R, probs_R


def _require_binary(labels_R: np.ndarray) -> None:
    other_R = (labels_R != 0) & (labels_R != 1)
    if other_R.any():
        value = labels_R[other_R.argmax()]
        raise ValueError(f"labels must be 0 or 1, one is {value:g}: binarise them first, e.g. labels >= 4")


def auc_by_group(labels_R: np.ndarray, scores_R: np.ndarray, groups_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUC (NaN where only one label occurs) and number of rows of each group, groups in ascending order."""
    if not len(labels_R):
        return np.empty(0), np.empty(0, dtype=np.int64)
    order = np.lexsort((scores_R, groups_R))
    labels_R, scores_R, groups_R = labels_R[order], scores_R[order], groups_R[order]
    new_group_R = np.append(True, groups_R[1:] != groups_R[:-1])
    new_tie_R = new_group_R | np.append(True, scores_R[1:] != scores_R[:-1])

    group_start = np.flatnonzero(new_group_R)
    tie_start = np.flatnonzero(new_tie_R)
    tie_size = np.diff(tie_start, append=len(labels_R))
    # Ranks within the group, 1-based; half-integers, hence exact in float64.
    average_rank = tie_start + (tie_size + 1) / 2 - group_start[np.cumsum(new_group_R[tie_start]) - 1]
    rank_R = np.repeat(average_rank, tie_size)

    rows_G = np.diff(group_start, append=len(labels_R))
    positives_G = np.add.reduceat(labels_R, group_start)
    pairs_G = positives_G * (rows_G - positives_G)
    ordered_G = np.add.reduceat(labels_R * rank_R, group_start) - positives_G * (positives_G + 1) / 2
    return np.divide(ordered_G, pairs_G, out=np.full(len(rows_G), np.nan), where=pairs_G > 0), rows_G
