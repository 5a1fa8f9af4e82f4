"""Baselines of pair tasks: a constant, biases, running rates, and trees on the running statistics.

Letters: C candidates of the data set that is evaluated, E events.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch

from polyrec.data.sequences import SequenceDataset
from polyrec.data.statistics import EventTable, RunningStatistics
from polyrec.data.trees import GROWING, known_features
from polyrec.evaluation.baselines.recommenders import BiasModel
from polyrec.evaluation.cautions import constant_prediction

_FEWEST = 1000  # training labels below which trees are not grown
_ROUNDS, _PATIENCE, _UNTUNED = 1000, 30, 100
_OBJECTIVES = {
    "auc": "binary",
    "rmse": "regression",
    "mae": "regression_l1",
    "accuracy": "multiclass",
    "poisson_deviance": "poisson",
}
_TREES = {**GROWING, "learning_rate": 0.05}


class PairBaselines:
    """What baselines say of the candidates of a data set.

    Attributes:
        values: {name: float [C]}.
        chosen: {name: what validation chose}.
        left_out: {name: why it is not among them}.

    Args:
        metrics: of the task's head; the first decides.
        task: name of a pair task.
        train: what they are fitted on, candidates in their own view.
        valid: by which trees stop; None: after 100.
        test: to evaluate on.
    """

    def __init__(
        self,
        metrics: tuple[str, ...],
        task: str,
        train: SequenceDataset,
        valid: SequenceDataset | None,
        test: SequenceDataset,
    ) -> None:
        self.metric, self._column = metrics[0], test.task_names.index(task)
        own = train.own_view
        self._known = train.labels()[own, self._column]
        event = train.candidates.event[own]
        bias = BiasModel().fit(train.log.user_codes[event], train.log.item[event], self._known)
        self.values = {
            "bias": bias.predict(test.user_codes(), test.log.item[test.candidates.event]),
            "running_bias": running_bias(self._known, test, self._column).clip(*bias.range),
            "constant": np.full(test.num_candidates, constant_prediction(metrics, self._known)),
        }
        self.chosen: dict[str, dict[str, Any]] = {}
        self.left_out: dict[str, str] = {}
        reason = self._no_trees(train)
        if reason is None:
            self.values["lightgbm"], trees = tree_values(self.metric, self._column, train, valid, test)
            self.chosen["lightgbm"] = {"settings": {"trees": trees}}
        else:
            self.left_out["lightgbm"] = reason

    def facts(self, name: str) -> dict[str, Any]:
        """What metrics.json says of a baseline beside its figures."""
        return {"chosen": self.chosen[name]} if name in self.chosen else {}

    def _no_trees(self, train: SequenceDataset) -> str | None:
        """Why trees are not grown, in one line."""
        labels = self._known[~np.isnan(self._known)]
        if importlib.util.find_spec("lightgbm") is None:
            return "not installed: pip install 'polyrec[classical]'"
        if train.statistics is None:
            return "the processor was fitted without running statistics (statistics: false)"
        if len(labels) < _FEWEST:
            return f"{len(labels):,} training labels are too few for trees: at least {_FEWEST:,}"
        if (labels == labels[0]).all():
            return f"all training labels are {labels[0]:g}"
        return None


def running_bias(known: np.ndarray, dataset: SequenceDataset, column: int) -> np.ndarray:
    """Mean + item's bias + user's bias of the labels strictly before each candidate, shrunk: the running statistics'
    baseline (`polyrec.data.statistics`), float64 [C].

    Args:
        known: training labels, NaN = unknown; before anything was seen their mean is predicted.
        column: of the task's labels.
    """
    log = dataset.log
    table = EventTable(log.time, {"item": log.item, "user": log.user_codes}, log.labels[:, [column]])
    running = RunningStatistics([], ["label"], [float(np.nanmean(known))])
    until = np.minimum(log.time, dataset.known_until)
    return running.compute(table, until, dataset.source)[dataset.candidates.event, 0].astype(np.float64)


def tree_values(
    metric: str, column: int, train: SequenceDataset, valid: SequenceDataset | None, test: SequenceDataset
) -> tuple[np.ndarray, int]:
    """Predictions of LightGBM on running statistics and context, float64 [C], and the number of trees.

    Trees are added until 30 of them have not made validation better; without validation labels there are 100.
    """
    import lightgbm

    x, y = _labelled(train, column, train.own_view)
    options: dict[str, Any] = {**_TREES, "objective": _OBJECTIVES[metric], "num_threads": torch.get_num_threads()}
    if metric == "accuracy":
        options["num_class"] = int(y.max()) + 1
    fit, watched, callbacks, rounds = lightgbm.Dataset(x, y), [], [], _UNTUNED
    if valid is not None:
        x_valid, y_valid = _labelled(valid, column, np.ones(valid.num_candidates, dtype=bool))
        if metric == "accuracy":  # a class without a training row has no probability
            x_valid, y_valid = x_valid[y_valid <= y.max()], y_valid[y_valid <= y.max()]
        if len(y_valid):
            watched, rounds = [fit.create_valid(x_valid, y_valid)], _ROUNDS
            callbacks = [lightgbm.early_stopping(_PATIENCE, verbose=False)]
    model = lightgbm.train(options, fit, rounds, valid_sets=watched, callbacks=callbacks)
    found = np.asarray(model.predict(known_features(test, np.arange(test.num_candidates))), dtype=np.float64)
    return (found if found.ndim == 1 else found.argmax(axis=1).astype(np.float64)), model.best_iteration or rounds


def _labelled(dataset: SequenceDataset, column: int, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of the candidates that have a label."""
    labels = dataset.labels()[:, column]
    rows = np.flatnonzero(kept & ~np.isnan(labels))
    return known_features(dataset, rows), labels[rows]
