"""Any scorer of features as a teacher of pair tasks.

Letters: M candidates, F features, K numbers of an output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from polyrec.core.registry import nearest
from polyrec.data.sequences import SequenceDataset
from polyrec.data.training_rows import TrainingSetSketch
from polyrec.data.trees import known_features
from polyrec.distillation.pair_outputs import (
    Features,
    canonical_probabilities,
    output_width,
    pair_task,
)
from polyrec.distillation.rows import RowTeacher
from polyrec.models.polyrec.fingerprint import digest
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor


@dataclass(frozen=True)
class Scorer:
    """Any function of features as the output for one task.

    Args:
        predict: features [M, F] -> outputs [M] or [M, K], e.g. `classifier.predict_proba` of scikit-learn.
        units: of these: "probability" (of yes, [M] or of no and yes, [M, 2]; of K classes, [M, K]), "log odds" (and
            or canonical logits already, see `polyrec.distillation.teacher.Teacher`) or "number" (in the label's
            unit).
    """

    predict: Callable[[np.ndarray], Any]
    units: Literal["probability", "log odds", "number"] = "probability"

    def __post_init__(self) -> None:
        known = ("probability", "log odds", "number")
        if self.units not in known:
            raise ValueError(f"unknown units {self.units!r} of a scorer; {nearest(self.units, list(known))}")


class ScorerTeacher(RowTeacher):
    """Scorers of features as a teacher of pair tasks: scikit-learn, a rule, another system's model.

    Args:
        scorers: {task: [`Scorer`]}.
        processor: of the data.
        features: what the scorers read; default: running statistics and context, see [`known_features`]. It must not
            read what came after a candidate.
        fitted_on: what the scorers were fitted on; None: unknown, so the teacher must be trusted (`trust=True`).
        revision: a name that changes when the scorers do, by which stored outputs are distinguished.
        others: `trust`, see [`Teacher`].

    Example:
        >>> rows = np.flatnonzero(~np.isnan(parts.train.labels()[:, 0]))                         # doctest: +SKIP
        >>> x, y = known_features(parts.train, rows), parts.train.labels()[rows, 0]              # doctest: +SKIP
        >>> classifier = make_pipeline(SimpleImputer(), LogisticRegression()).fit(x, y)          # doctest: +SKIP
        >>> scorers = {"like": Scorer(classifier.predict_proba)}                                 # doctest: +SKIP
        >>> teacher = ScorerTeacher(scorers, processor, fitted_on=parts.train)                   # doctest: +SKIP
    """

    def __init__(
        self,
        scorers: Mapping[str, Scorer],
        processor: PolyRecProcessor,
        features: Features = known_features,
        fitted_on: SequenceDataset | None = None,
        revision: str = "",
        **others: Any,
    ) -> None:
        super().__init__(processor, **others)
        self.scorers, self.features = dict(scorers), features
        self._tasks = {name: pair_task(processor, name) for name in self.scorers}
        self._widths = {name: output_width(task, processor.label_summary) for name, task in self._tasks.items()}
        self._revision = digest([revision, sorted(self.scorers)])
        self._trained_on = None if fitted_on is None else TrainingSetSketch.of_examples(fitted_on, processor.items.ids)

    @property
    def pair_tasks(self) -> tuple[str, ...]:
        """Tasks that have a scorer."""
        return tuple(self.scorers)

    def width(self, task: str) -> tuple[int, ...]:
        """Numbers of an output."""
        return self._widths[task]

    def numbers(self, task: str, dataset: SequenceDataset, rows: np.ndarray) -> np.ndarray:
        """What the scorer says, in exchange units."""
        scorer, own = self.scorers[task], self._tasks[task]
        found = np.asarray(scorer.predict(self.features(dataset, rows)), dtype=np.float64)
        if scorer.units == "probability":
            found = canonical_probabilities(found, own)
        if found.shape != (len(rows), *self.width(task)):
            raise ValueError(
                f"the scorer of task {task!r} (head {own.head!r}) gives outputs of shape {list(found.shape)} for "
                f"{len(rows)} candidates: they must be {[len(rows), *self.width(task)]}"
            )
        if np.isnan(found).any():
            raise ValueError(f"the scorer of task {task!r} gives NaN: it must accept features that are unknown (NaN)")
        return found
