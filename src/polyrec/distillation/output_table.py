"""Outputs of a teacher for the candidates of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyrec.data.sequences import SequenceDataset
from polyrec.data.training_rows import TrainingSetSketch
from polyrec.distillation.teacher import Teacher
from polyrec.models.polyrec.fingerprint import data_digest, fingerprint, item_digest, task_parts
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor

NO_LIST = -1


@dataclass
class ListOutputs:
    """Lists of one task; only some rows have one.

    Args:
        at: int32 [S], which list each row has, -1 = none.
        items: int32 [A, K], rows of the item table, 0 = none.
        scores: float [A, K + 1], see `polyrec.distillation.lists`.
    """

    at: np.ndarray
    items: np.ndarray
    scores: np.ndarray


@dataclass
class OutputTable:
    """A teacher's outputs for candidates, each known by the row of the interactions table and the view of it.

    Args:
        row: int64 [S], row of the interactions table.
        delayed: bool [S], whether what had happened last was hidden (`max_delay` of a split).
        position: int64 [S], how many events were visible.
        numbers: {pair task: float [S(, K)]}, NaN = no output.
        lists: {retrieval task: [`ListOutputs`]}.
        drawn: int32 [S, U], rows of the item table that were scored beside each row, sampled.
        drawn_numbers: {pair task: float [S, U(, K)]}, the outputs for them.
    """

    row: np.ndarray
    delayed: np.ndarray
    position: np.ndarray
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    lists: dict[str, ListOutputs] = field(default_factory=dict)
    drawn: np.ndarray | None = None
    drawn_numbers: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def keys(self) -> np.ndarray:
        """What a row is found by, int64 [S]."""
        return 2 * self.row + self.delayed


@dataclass(frozen=True)
class OutputSource:
    """Which teacher scored what; a table is refused where these do not agree with the student's.

    Args:
        revision: of the teacher.
        processor: fingerprint of the processor that made the examples, for whoever goes on writing outputs; that of
            a student may be another one, as long as the rest agrees.
        items: digest of the catalog, of which lists hold rows.
        data: digest of the interactions table.
        tasks: {task: what its answers mean}, see `fingerprint.task_parts`.
        top_k, temperatures: {retrieval task: of its lists}.
        training_rows: what the teacher was trained on.
    """

    revision: str
    processor: str
    items: str
    data: str
    tasks: Mapping[str, Mapping[str, Any]]
    top_k: Mapping[str, int]
    temperatures: Mapping[str, float]
    training_rows: tuple[TrainingSetSketch | None, ...]

    @classmethod
    def of(cls, teacher: Teacher, dataset: SequenceDataset, processor: PolyRecProcessor) -> OutputSource:
        """Of a teacher that has been prepared for a data set."""
        scored = (*teacher.pair_tasks, *teacher.list_tasks)
        return cls(
            teacher.revision,
            fingerprint(processor),
            item_digest(processor),
            data_digest(dataset.log, processor.items.ids),
            {name: own for name, own in task_parts(processor).items() if name in scored},
            {name: teacher.top_k(name) for name in teacher.list_tasks},
            {name: teacher.temperature(name) for name in teacher.list_tasks},
            teacher.training_rows,
        )


def logs_of(parts: Sequence[SequenceDataset]) -> list[Any]:
    """The logs of some data sets, each once."""
    return list({id(part.log): part.log for part in parts}.values())
