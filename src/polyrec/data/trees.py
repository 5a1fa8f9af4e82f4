"""Gradient-boosted trees of pair tasks, grown on the running statistics and the context of training rows.

Letters: M rows, F features, T trees, D depth.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from polyrec.core.schema import TaskConfig
from polyrec.data.sequences import SequenceDataset

DEPTH = 6  # splits on the way to a leaf
FORESTS = 4  # that are averaged: where positives are few, one differs much from the next
SOME, MOST = 480, 1920  # trees of a task, all forests together: how many at first, and how many it may have
FEWEST = 1000  # training labels below which none are grown
_MOST_ROWS = 2_000_000  # rows that trees are grown on, which they hold in memory
OBJECTIVES = {"binary": "binary", "regression": "regression"}  # {head: objective of LightGBM} of heads with trees
_LARGEST = float(np.finfo(np.float32).max)
GROWING = {  # of LightGBM, of these trees and of those that they are compared with
    "num_leaves": 31,
    "min_data_in_leaf": 50,
    "max_bin": 63,  # twice as fast as 255 bins, and as good on ml-100k
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "deterministic": True,
    "force_row_wise": True,  # else it times both ways and takes the faster
    "verbosity": -1,
}
_SETTINGS = {**GROWING, "learning_rate": 0.08, "max_depth": DEPTH}


class Trees(NamedTuple):
    """Trees of D splits each, as plain arrays; a leaf of fewer splits stands at every place that it covers.

    A row goes right where x[feature] > threshold; below node n of a level are the nodes 2n and 2n + 1 of the next one.
    Features F, F + 1, ... are 0, 1, ... again: at these a missing number goes left, at the first ones right.

    Args:
        feature: int32 [T, 2^D - 1], level by level.
        threshold: float32 [T, 2^D - 1].
        leaf: float32 [T, 2^D]; the leaves of a row are added up.
    """

    feature: np.ndarray
    threshold: np.ndarray
    leaf: np.ndarray


def known_features(dataset: SequenceDataset, rows: np.ndarray, context: Collection[str] | None = None) -> np.ndarray:
    """What is known of candidates strictly before their labels: running statistics and context, float32 [M, F].

    NaN = unknown; categories are their codes, attributes of several values and vectors are left out.

    Args:
        context: columns that are read; None: all of them.
    """
    event, columns = dataset.candidates.event[rows], sorted(dataset.log.candidate_features.items())
    found = [v[event, None] for name, v in columns if v.ndim == 1 and (context is None or name in context)]
    if dataset.statistics is not None:
        found.append(dataset.statistics[dataset.candidates.statistic[rows]])
    if not found:
        raise ValueError(
            "the data have neither running statistics nor context columns to score by: fit the processor with "
            "statistics=True, or pass features="
        )
    return np.concatenate(found, axis=1).astype(np.float32)


class PairTrees:
    """Trees of the pair tasks of a training set, grown when a training asks for them.

    Trees need 1,000 known labels that differ, running statistics, and a head whose logit is a sum of leaves (see
    `OBJECTIVES`); a task that follows from another, or from which one follows, has none: its logit means more than its
    label.

    Attributes:
        missing: tasks that have none only because LightGBM is not installed.

    Args:
        train: candidates in their own view are read, with their sample weights.
        tasks: all of them, in the order of the labels' columns.
    """

    def __init__(self, train: SequenceDataset, tasks: Sequence[TaskConfig]) -> None:
        self._train, self._grown = train, dict[tuple[Any, ...], Forests]()
        labels, coupled = train.labels()[train.own_view], {t.parent for t in tasks if t.parent}
        able = [
            task.name
            for column, task in enumerate(tasks)
            if task.head in OBJECTIVES
            and not task.parent
            and task.name not in coupled
            and train.statistics is not None
            and _enough(labels[:, column])
        ]
        installed = importlib.util.find_spec("lightgbm") is not None
        self.tasks, self.missing = (able, []) if installed else ([], able)

    def forests(
        self, task: TaskConfig, context: Collection[str], mean: float = 0.0, std: float = 1.0, threads: int = 1
    ) -> Forests:
        """What grows trees of the training rows, for one of `tasks`.

        Args:
            task: with the options of a model's head.
            context: columns of the candidates' context that the model reads.
            mean, std: of labels, as its head standardises them.
        """
        key = (task.name, *sorted(context), mean, std)
        if key not in self._grown:
            train = self._train
            y = train.labels()[:, train.task_names.index(task.name)].astype(np.float64)
            rows = np.flatnonzero(~np.isnan(y) & train.own_view)
            if len(rows) > _MOST_ROWS:  # drawn: candidates of one list stand in a fixed order, positives first, say
                rows = np.sort(np.random.default_rng(0).choice(rows, _MOST_ROWS, replace=False))
            weight = train.log.sample_weight.get(task.name)
            weight = None if weight is None else weight[train.candidates.event[rows]]
            labels = (y[rows] - mean) / std
            self._grown[key] = Forests(task.head, lambda: known_features(train, rows, context), labels, weight, threads)
        return self._grown[key]


def _enough(labels: np.ndarray) -> bool:
    known = labels[~np.isnan(labels)]
    return len(known) >= FEWEST and bool(np.ptp(known) > 0)


class Forests:
    """Forests whose trees add to the log odds of the labels' mean ("binary"), or to 0 (Ke et al., 2017, "LightGBM: A
    Highly Efficient Gradient Boosting Decision Tree"); they can grow on.

    Args:
        head: of `OBJECTIVES`.
        read: gives x, float32 [M, F], NaN = missing.
        y: [M], in {0, 1} for "binary", else any numbers.
        weight: [M]; None: rows weigh alike.
    """

    def __init__(
        self,
        head: str,
        read: Callable[[], np.ndarray],
        y: np.ndarray,
        weight: np.ndarray | None = None,
        threads: int = 1,
    ) -> None:
        self._read, self._y, self._weight = read, y, weight
        self._options: dict[str, Any] = {**_SETTINGS, "objective": OBJECTIVES[head], "num_threads": threads}
        self._boosters: list[Any] = []
        self._trees: Trees | None = None
        self._base = 0.0
        if head == "binary":
            mean = float(np.average(y, weights=weight))
            self._base = float(np.log(mean / (1 - mean)))

    def grow(self, number: int) -> Trees:
        """The first so many trees, one of each forest after the other; LightGBM may stop earlier."""
        if self._trees is None or len(self._trees.leaf) < number:
            self._trees = self._grown(max(number // FORESTS, 1))
        return Trees(*(values[:number] for values in self._trees))

    def release(self) -> None:
        """Forget the training rows; trees that were grown stay."""
        self._boosters = []

    def _grown(self, each: int) -> Trees:
        import lightgbm

        if not self._boosters:
            x = self._read()
            for seed in range(FORESTS):
                options = {**self._options, "seed": seed}  # LightGBM takes those of the bins from the data set
                data = lightgbm.Dataset(x, self._y, weight=self._weight, params=options)
                self._boosters.append(lightgbm.Booster(options, data))
        for booster in self._boosters:
            while booster.current_iteration() < each and not booster.update():
                pass
        features = self._boosters[0].num_feature()
        forests = [as_arrays(booster, features, self._base) for booster in self._boosters]
        # The first tree of each, the second of each, ...
        longest = min(len(trees.leaf) for trees in forests)
        mixed = (np.stack([v[:longest] for v in values], axis=1) for values in zip(*forests, strict=True))
        feature, threshold, leaf = (values.reshape(-1, values.shape[-1]) for values in mixed)
        return Trees(feature, threshold, leaf / np.float32(FORESTS))


def as_arrays(booster: Any, features: int, base: float = 0.0) -> Trees:
    """The trees of a LightGBM model, whose sum is its raw score - base for every row of float32 numbers.

    Args:
        booster: of numeric features, grown with `max_depth` at most `DEPTH`.
        features: F.
    """
    trees = booster.dump_model()["tree_info"]
    feature = np.zeros((len(trees), 2**DEPTH - 1), dtype=np.int32)
    threshold = np.zeros(feature.shape, dtype=np.float32)
    leaf = np.zeros((len(trees), 2**DEPTH), dtype=np.float32)
    for t, tree in enumerate(trees):
        open_nodes = [(tree["tree_structure"], 0, 0)]
        while open_nodes:
            node, level, offset = open_nodes.pop()
            if "leaf_value" in node:
                width = 2 ** (DEPTH - level)
                leaf[t, offset * width : (offset + 1) * width] = node["leaf_value"]
                continue
            bound = np.float32(min(node["threshold"], _LARGEST))
            if float(bound) > node["threshold"]:  # in double; no float32 lies between the two
                bound = np.nextafter(bound, np.float32(-np.inf))
            # Of a feature that no row lacked, LightGBM reads a missing number as 0.
            left = node["threshold"] >= 0 if node["missing_type"] == "None" else node["default_left"]
            at = 2**level - 1 + offset
            feature[t, at], threshold[t, at] = node["split_feature"] + features * left, bound
            open_nodes += [
                (node["left_child"], level + 1, 2 * offset),
                (node["right_child"], level + 1, 2 * offset + 1),
            ]
    leaf[:1] -= base
    return Trees(feature, threshold, leaf)
