"""Gradient-boosted trees as a teacher of pair tasks (an optional extra).

Letters: M candidates, F features, K numbers of an output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyrec.core.extras import check_extra
from polyrec.data.sampling import uniform
from polyrec.data.sequences import SequenceDataset
from polyrec.data.training_rows import TrainingSetSketch
from polyrec.data.trees import known_features
from polyrec.distillation.pair_outputs import (
    Features,
    canonical_probabilities,
    classes_of,
    levels_of,
    output_width,
    pair_task,
)
from polyrec.distillation.rows import RowTeacher
from polyrec.models.polyrec.fingerprint import data_digest, digest
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor

_OBJECTIVES = {
    "binary": "binary",
    "multiclass": "multiclass",
    "ordinal": "multiclass",
    "regression": "regression",
    "watch_time": "regression",
    "count": "poisson",
    "quantile": "quantile",
}


class LightGBMTeacher(RowTeacher):
    r"""Gradient-boosted trees per pair task (Ke et al., 2017, "LightGBM: A Highly Efficient Gradient Boosting Decision
    Tree") on the running statistics and the context of candidates.

    A training row is scored by trees that were not trained on it: users are divided into `folds`, and each fold is
    scored by trees fitted on the others (as in stacking: Wolpert, 1992, "Stacked Generalization"). Trees that were
    trained on the row would say little but its label. All other rows are scored by trees fitted on every training row.

    Args:
        train: what it learns from; candidates are read in their own view.
        processor: of these data.
        tasks: default: every pair task that trees can predict (binary, multiclass, ordinal, regression, watch_time,
            count, quantile).
        folds: >= 2, or 1: training rows are scored by the trees that were trained on them.
        trees, parameters: number of trees, and parameters of LightGBM beside them.
        features: what the trees read; default: [`known_features`].
        seed: of folds and trees.
        others: `trust`, see [`Teacher`].

    Example:
        >>> teacher = LightGBMTeacher(parts.train, processor, ["like"], trees=100)    # doctest: +SKIP
    """

    def __init__(
        self,
        train: SequenceDataset,
        processor: PolyRecProcessor,
        tasks: Sequence[str] | None = None,
        folds: int = 5,
        trees: int = 200,
        parameters: Mapping[str, Any] | None = None,
        features: Features = known_features,
        seed: int = 0,
        **others: Any,
    ) -> None:
        check_extra("lightgbm", "classical", "trees")
        super().__init__(processor, **others)
        if folds < 1 or trees < 1:
            raise ValueError(f"folds and trees must be >= 1, not {folds} and {trees}")
        names = [t.name for t in processor.tasks if t.head in _OBJECTIVES] if tasks is None else list(tasks)
        self._tasks = {name: pair_task(processor, name) for name in names}
        for name, task in self._tasks.items():
            if task.head not in _OBJECTIVES:
                raise ValueError(
                    f"trees cannot predict task {name!r} (head {task.head!r}); {sorted(_OBJECTIVES)} they can"
                )
        self._summary, self.features = processor.label_summary, features
        self._log, self.folds = train.log, folds
        drawn = (uniform(np.arange(len(train.log.user_ids)), seed, 0, "folds") * folds).astype(np.int64)
        self._fold = np.full(len(train.log), -1)  # fold of each event, -1 = not trained on
        trained = train.candidates.event[train.own_view]
        self._fold[trained] = drawn[train.log.user[trained]]
        self._parameters = {
            "learning_rate": 0.05,
            "num_leaves": 31,
            "min_data_in_leaf": 50,
            "feature_fraction": 0.7,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "seed": seed,
            "deterministic": True,
            "verbosity": -1,
            **(parameters or {}),
        }
        rows = np.flatnonzero(train.own_view)
        known, labels = features(train, rows), train.labels()[rows]
        self._models: dict[str, list[list[Any]]] = {}  # {task: trees of all rows, then of all but one fold each}
        for name in names:
            y = labels[:, train.task_names.index(name)]
            own = self._fold[train.candidates.event[rows]]
            kept = [np.ones(len(rows), dtype=bool), *(own != f for f in range(folds) if folds > 1)]
            self._models[name] = [self._fit(name, known[k & ~np.isnan(y)], y[k & ~np.isnan(y)], trees) for k in kept]
        self._trained_on = TrainingSetSketch.of_examples(train, processor.items.ids)
        seen = [len(rows), float(np.nansum(known)), float(np.nansum(labels))]
        options = {name: repr(value) for name, value in self._parameters.items()}
        self._revision = digest([trees, folds, names, options, data_digest(train.log, processor.items.ids), seen])

    @property
    def pair_tasks(self) -> tuple[str, ...]:
        """Tasks that it was fitted for."""
        return tuple(self._tasks)

    def width(self, task: str) -> tuple[int, ...]:
        """Numbers of an output."""
        return output_width(self._tasks[task], self._summary)

    def numbers(self, task: str, dataset: SequenceDataset, rows: np.ndarray) -> np.ndarray:
        """What the trees that were not trained on a row say, as canonical logits."""
        known, models = self.features(dataset, rows), self._models[task]
        fold = np.full(len(rows), -1)
        if dataset.log is self._log and self.folds > 1:
            fold = self._fold[dataset.candidates.event[rows]]
        found = np.zeros((len(rows), *self.width(task)))
        for number in np.unique(fold):
            chosen = fold == number
            found[chosen] = self._predict(task, models[number + 1], known[chosen])
        return found

    def _fit(self, name: str, x: np.ndarray, y: np.ndarray, trees: int) -> list[Any]:
        """Trees of one task; of several quantiles one set each."""
        import lightgbm

        task = self._tasks[name]
        more: list[dict[str, Any]] = [{}]
        if task.head in ("multiclass", "ordinal"):
            first, classes = classes_of(task, self._summary)
            y, more = y - first, [{"num_class": classes}]
        elif task.head == "quantile":
            more = [{"alpha": level} for level in levels_of(task)]
        objective = {"objective": _OBJECTIVES[task.head], **self._parameters}
        return [lightgbm.train({**objective, **own}, lightgbm.Dataset(x, y), trees) for own in more]

    def _predict(self, name: str, models: Sequence[Any], x: np.ndarray) -> np.ndarray:
        task = self._tasks[name]
        if task.head == "ordinal":
            return canonical_probabilities(models[0].predict(x), task)
        if task.head == "quantile":  # each fitted by itself, so they may cross
            return np.sort(np.stack([model.predict(x) for model in models], axis=1), axis=1)
        return models[0].predict(x, raw_score=task.head in ("binary", "multiclass", "count"))
