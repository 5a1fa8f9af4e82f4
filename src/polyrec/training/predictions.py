"""What a trainer says of a data set, in the form of transformers."""

from __future__ import annotations

from typing import Any

from transformers.trainer_utils import PredictionOutput


class TaskPredictions(PredictionOutput):
    """What `PolyRecTrainer.predict` gives; unpacks as transformers' `predictions, label_ids, metrics`.

    Args:
        predictions: [`~polyrec.evaluation.evaluator.Predictions`], whose `values`, `rankings` and
            `details` are here, too.
        label_ids: {task: float [C]}, NaN = unknown, in the order of the candidates.
        metrics: {"test_<task>_<metric>": value}.
    """

    @property
    def values(self) -> dict[str, Any]:
        """{pair task: float32 [C]}."""
        return self.predictions.values

    @property
    def rankings(self) -> dict[str, Any]:
        """{retrieval task: Ranking}."""
        return self.predictions.rankings

    @property
    def details(self) -> dict[str, Any]:
        """{pair task: float32 [C, K]}."""
        return self.predictions.details
