"""Teachers that score row by row of a data set, from what its log knows and not from the windows of a batch.

Letters: B users, C candidates, M candidates of one data set, K numbers of an output or items of a list.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyrec.data.sequences import SequenceDataset
from polyrec.data.training_rows import TrainingSetSketch
from polyrec.distillation.lists import spread, wants_list
from polyrec.distillation.teacher import Teacher
from polyrec.models.polyrec.fingerprint import item_digest, task_differences, task_parts
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor


class RowTeacher(Teacher):
    """Base of teachers that were fitted on a split and score its candidates by their number.

    Subclasses name the tasks that they score (`pair_tasks`, `list_tasks`), implement `numbers` or `lists` for them,
    and set `_trained_on` (what they were fitted on) and `_revision`.

    Args:
        processor: of the data that it was fitted on.
        options: of [`Teacher`].
    """

    _trained_on: TrainingSetSketch | None
    _revision: str

    def __init__(self, processor: PolyRecProcessor, **options: Any) -> None:
        super().__init__(**options)
        self._catalog, self._task_parts = item_digest(processor), task_parts(processor)
        self._parts: Sequence[SequenceDataset] = ()
        self._first = np.zeros(1, dtype=np.int64)

    @property
    def pair_tasks(self) -> tuple[str, ...]:
        """None, unless a subclass has some."""
        return ()

    @property
    def list_tasks(self) -> tuple[str, ...]:
        """None, unless a subclass has some."""
        return ()

    @property
    def training_rows(self) -> tuple[TrainingSetSketch | None, ...]:
        """What it was fitted on."""
        return (self._trained_on,)

    @property
    def revision(self) -> str:
        """A digest of its options and of what it was fitted on."""
        return self._revision

    def numbers(self, task: str, dataset: SequenceDataset, rows: np.ndarray) -> np.ndarray:
        """Canonical logits of candidates of a data set, float [M(, K)]."""
        raise NotImplementedError

    def lists(self, task: str, dataset: SequenceDataset, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Lists for candidates of a data set, int64 [M, K] and float [M, K + 1], see `polyrec.distillation.lists`."""
        raise NotImplementedError

    @abstractmethod
    def width(self, task: str) -> tuple[int, ...]:
        """Shape of an output: () or (K,); of a list, (K,)."""

    def bind(self, parts: Sequence[SequenceDataset], processor: PolyRecProcessor) -> None:
        """Refuse another catalog or other examples, and count the candidates."""
        problems = []
        if item_digest(processor) != self._catalog:
            problems.append("the catalog has other items, or in another order")
        wanted = task_parts(processor)
        for name in (*self.pair_tasks, *self.list_tasks):
            if name in wanted:
                problems += [
                    f"task {name!r}: {what}" for what in task_differences(self._task_parts[name], wanted[name])
                ]
        if problems:
            raise ValueError(
                f"the teacher does not fit the student's data: {'; '.join(problems)}. Fit it on these data"
            )
        self._parts, self._first = list(parts), np.cumsum([0] + [part.num_candidates for part in parts])

    def score(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Score a batch, see [`Teacher`]."""
        if not self._parts:
            raise ValueError("the teacher knows no data set yet: call prepare(dataset, processor)")
        rows_BC, device = batch["candidate_rows"], batch["candidate_rows"].device
        flat = rows_BC.flatten().cpu().numpy()
        outputs: dict[str, Any] = {"teacher_logits": {}, "teacher_items": {}, "teacher_scores": {}}
        for task in self.pair_tasks:
            width = self.width(task)
            found = np.full((flat.size, *width), np.nan, dtype=np.float32)
            for part, index, rows in self._pieces(flat, np.flatnonzero(flat >= 0)):
                found[index] = self.numbers(task, part, rows)
            outputs["teacher_logits"][task] = torch.from_numpy(found).view(*rows_BC.shape, *width).to(device)
        for task in self.list_tasks:
            wanted = np.flatnonzero(wants_list(batch, task).flatten().cpu().numpy() & (flat >= 0))
            pieces = self._pieces(flat, wanted)
            lists = [self.lists(task, part, rows) for part, _, rows in pieces]
            where = np.concatenate([index for _, index, _ in pieces]) if pieces else wanted
            (width_of,) = self.width(task)
            items = [i for i, _ in lists] or [torch.zeros((0, width_of), dtype=torch.int64)]
            scores = [s for _, s in lists] or [torch.zeros((0, width_of + 1))]
            found_lists = spread(torch.from_numpy(where), (torch.cat(items), torch.cat(scores)), tuple(rows_BC.shape))
            outputs["teacher_items"][task], outputs["teacher_scores"][task] = (x.to(device) for x in found_lists)
        return outputs

    def _pieces(self, flat: np.ndarray, chosen: np.ndarray) -> list[tuple[SequenceDataset, np.ndarray, np.ndarray]]:
        """Data sets that a batch is from, with the places of their candidates in it and their numbers."""
        part = np.searchsorted(self._first, flat[chosen], side="right") - 1
        return [(self._parts[p], chosen[part == p], flat[chosen[part == p]] - self._first[p]) for p in np.unique(part)]
