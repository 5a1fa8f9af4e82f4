"""What an evaluation warns of: labels that inputs hold, repeats that no list can hold, tasks of one value."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from polyrec.data.sequences import SequenceDataset

logger = logging.getLogger(__name__)

_MANY_REPEATS = 0.03  # share of the targets; below it, the odd item that somebody takes twice


def sees_evaluated_labels(dataset: SequenceDataset) -> bool:
    """Whether some candidate's visible history holds an event that is itself evaluated (see `evaluate`).

    So it is prequentially; not in `processor.without_updates(...)`, nor where all rows of a user have one time.
    """
    log, event = dataset.log, dataset.candidates.event
    visible_until = log.offsets[log.user[event]] + dataset.candidates.position
    first = np.full(len(log.offsets) - 1, len(log))  # evaluated event of each user
    np.minimum.at(first, log.user[event], event)
    return bool((visible_until > first[log.user[event]]).any())


@cache
def warn_of_biased_gauc(tasks: str) -> None:
    """Log once, not with each evaluation of a training."""
    logger.warning(
        "GAUC of %s is biased here: evaluated rows see the labels of the same user's earlier evaluated rows. AUC, "
        "logloss and RMSE are not; for GAUC, evaluate processor.without_updates(...)",
        tasks,
    )


def warn_of_repeats(rankings: Mapping[str, Any]) -> None:
    """Say once of a task that many of its targets are items that its lists leave out."""
    for task, found in rankings.items():
        if len(found.rows) and found.excluded.mean() > _MANY_REPEATS:
            _say_repeats(task, f"{np.ceil(1000 * found.excluded.mean()) / 10:.1f}%")


@cache
def _say_repeats(task: str, share: str) -> None:
    logger.warning(
        "task %r: %s of the targets are items of the user's history, which lists leave out, so that they are "
        "misses: where users take items again, set the task's option repeats=True or exclude_seen=False, and lists, "
        "measured and served, hold them",
        task,
        share,
    )


@cache
def warn_of_constant(task: str, value: str) -> None:
    """Log once that a task has nothing to predict."""
    logger.warning(
        "task %r: all labels of the evaluated rows are %s, which a constant predicts perfectly: the task is left out "
        "of mean_improvement",
        task,
        value,
    )


def constant_prediction(names: tuple[str, ...], labels: np.ndarray) -> float:
    """The constant prediction that is best by the first of the metrics: most frequent class, median or mean."""
    known = labels[~np.isnan(labels)]
    if names[0] == "accuracy":
        return float(np.bincount(known.astype(np.int64)).argmax())
    return float(np.median(known) if names[0] == "mae" else known.mean())
