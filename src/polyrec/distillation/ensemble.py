"""Several teachers as one.

Letters: B users, C candidates, M rows of some subset, N items, K items of a list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyrec.core.registry import nearest
from polyrec.data.columns import FIRST
from polyrec.data.sequences import SequenceDataset
from polyrec.data.training_rows import TrainingSetSketch
from polyrec.distillation.lists import NO_ITEM, rows_at_once, spread, top_list
from polyrec.distillation.teacher import PerTask, Teacher
from polyrec.models.polyrec.fingerprint import digest
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor


class EnsembleTeacher(Teacher):
    r"""The mean output of several teachers: seeds of one model, or kinds of teachers mixed.

    Outputs are averaged as canonical logits, with weights w_m that sum to 1 over the teachers that have an output:

        z = \sum_m w_m z_m

    i.e. log odds and log-weights of classes (a geometric mean of probabilities, the product of experts of Hinton, 2002,
    "Training Products of Experts by Minimizing Contrastive Divergence"), log rates, and numbers themselves. Lists are
    averaged over the union of their items. An item that a list lacks stands in it with what is left of that list,
    spread evenly over the items that the list lacks:

        z_m(j) = T (others_m - log R_m),   R_m = N - number of items in list m

    which is the best that can be said of it; lists that are long enough for the mass beyond them to be small lose
    nothing. The K best items by the mean make the new list. A list whose mass beyond it is 0 (it holds every item that
    its teacher knows) rules out all others.

    Args:
        teachers: at least one.
        weights: {task: one weight >= 0 per teacher}, e.g. from [`validation_weights`]; tasks that are not in it, and
            None: all alike.
        top_k: items of the new lists; a number, or {task: number}.

    Example:
        >>> both = EnsembleTeacher([large, classical], {"next_item": [0.7, 0.3]})    # doctest: +SKIP
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        weights: Mapping[str, Sequence[float]] | None = None,
        top_k: int | PerTask = 100,
    ) -> None:
        super().__init__(top_k)
        self.teachers, self.weights = list(teachers), {task: list(own) for task, own in (weights or {}).items()}
        if not self.teachers:
            raise ValueError("an ensemble needs at least one teacher")
        for task, own in self.weights.items():
            if len(own) != len(self.teachers) or min(own) < 0 or not 0 < sum(own) < math.inf:
                raise ValueError(
                    f"weights of task {task!r} are {own}: give one number >= 0 for each of the {len(self.teachers)} "
                    "teachers, and at least one > 0"
                )
        self._num_items = 0

    @property
    def pair_tasks(self) -> tuple[str, ...]:
        """Tasks that any of its teachers scores."""
        return tuple(dict.fromkeys(task for t in self.teachers for task in t.pair_tasks))

    @property
    def list_tasks(self) -> tuple[str, ...]:
        """Tasks for which any of its teachers gives lists."""
        return tuple(dict.fromkeys(task for t in self.teachers for task in t.list_tasks))

    @property
    def scores_drawn(self) -> bool:
        """Whether any of its teachers does."""
        return any(t.scores_drawn for t in self.teachers)

    @property
    def training_rows(self) -> tuple[TrainingSetSketch | None, ...]:
        """What each of its teachers was trained on."""
        return tuple(rows for t in self.teachers for rows in t.training_rows)

    @property
    def revision(self) -> str:
        """A digest of its teachers' revisions and weights."""
        return digest([[t.revision for t in self.teachers], self.weights])

    def temperature(self, task: str) -> float:
        """That of the lists which it averages."""
        return next(t.temperature(task) for t in self.teachers if task in t.list_tasks)

    def to(self, device: torch.device | str) -> None:
        """Put every teacher on a device."""
        for teacher in self.teachers:
            teacher.to(device)

    def check_unlearnt(
        self,
        parts: Sequence[SequenceDataset],
        processor: PolyRecProcessor,
        judged: Sequence[SequenceDataset] | None = None,
    ) -> None:
        """Every teacher by itself, as one may be trusted and another not."""
        for teacher in self.teachers:
            teacher.check_unlearnt(parts, processor, judged)

    def bind(self, parts: Sequence[SequenceDataset], processor: PolyRecProcessor) -> None:
        """Bind every teacher; refuse lists of different temperatures, and weights by which no teacher scores a task."""
        for teacher in self.teachers:
            teacher.bind(parts, processor)
        self._num_items = processor.num_items
        scored = [*self.pair_tasks, *self.list_tasks]
        for task, own in self.weights.items():
            if task not in scored:
                raise ValueError(f"the ensemble has weights for task {task!r}; {nearest(task, scored)}")
            heard = [t for t, weight in zip(self.teachers, own, strict=True) if weight > 0]
            if not any(task in (*t.pair_tasks, *t.list_tasks) for t in heard):
                raise ValueError(
                    f"weights of task {task!r} are {own}, and none of the teachers that score it has one > 0: nobody "
                    "would teach it"
                )
        for task in self.list_tasks:
            found = {t.temperature(task) for t in self.teachers if task in t.list_tasks}
            if len(found) > 1:
                raise ValueError(
                    f"teachers of an ensemble make lists of task {task!r} for the temperatures {sorted(found)}: give "
                    "all the same"
                )

    @torch.no_grad()
    def score(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Score a batch, see [`Teacher`]."""
        found = [teacher.score(batch) for teacher in self.teachers]
        outputs: dict[str, Any] = {"teacher_logits": {}, "teacher_items": {}, "teacher_scores": {}}
        for task in self.pair_tasks:
            own = [(i, a["teacher_logits"][task]) for i, a in enumerate(found) if task in a["teacher_logits"]]
            outputs["teacher_logits"][task] = _mean([values for _, values in own], self._weights(task, own))
        for task in self.list_tasks:
            lists = [
                (i, (a["teacher_items"][task], a["teacher_scores"][task]))
                for i, a in enumerate(found)
                if task in a["teacher_items"]
            ]
            weights = self._weights(task, lists)
            outputs["teacher_items"][task], outputs["teacher_scores"][task] = self._merged(
                task, [pair for _, pair in lists], weights
            )
        return outputs

    def _weights(self, task: str, found: Sequence[tuple[int, Any]]) -> list[float]:
        given = self.weights.get(task, [1.0] * len(self.teachers))
        return [given[i] for i, _ in found]

    def _merged(
        self, task: str, lists: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        shape, temperature = lists[0][0].shape[:2], self.temperature(task)
        flat = [(items.flatten(0, 1), scores.flatten(0, 1)) for items, scores in lists]
        # A teacher of weight 0 says nothing, also where it alone has an output.
        scored = [~torch.isnan(s[:, -1]) & (w > 0) for (_, s), w in zip(flat, weights, strict=True)]
        rows_M = torch.stack(scored).any(0).nonzero().squeeze(-1)
        parts = []
        for at in rows_M.split(rows_at_once(self._num_items)):
            dense = [_dense(items[at], scores[at], self._num_items, temperature) for items, scores in flat]
            parts.append(top_list(_mean(dense, weights), self.top_k(task), temperature))
        width = min(self.top_k(task), self._num_items)
        items_MK = torch.cat([i for i, _ in parts]) if parts else rows_M.new_zeros((0, width))
        scores_MK = torch.cat([s for _, s in parts]) if parts else flat[0][1].new_zeros((0, width + 1))
        return spread(rows_M, (items_MK, scores_MK), (shape[0], shape[1]))


def validation_weights(values: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Weights in proportion to how much better than a constant each teacher predicts validation rows.

    Args:
        values: {task: one improvement per teacher}, as `mean_improvement` counts it for one task (see
            `polyrec.evaluation.evaluator.evaluate`): NDCG, or the share of the constant's loss that is saved. What is
            no better than the constant weighs nothing; if none is better, all weigh alike.

    Example:
        >>> validation_weights({"like": [0.25, 0.75, -0.05], "next_item": [0, 0, 0, 0]})
        {'like': [0.25, 0.75, 0.0], 'next_item': [0.25, 0.25, 0.25, 0.25]}
    """
    found = {}
    for task, given in values.items():
        better = [max(float(value), 0.0) for value in given]
        total = sum(better)
        found[task] = [b / total for b in better] if total > 0 else [1 / len(better)] * len(better)
    return found


def _dense(items_MK: Tensor, scores_MK: Tensor, num_items: int, temperature: float) -> Tensor:
    """A list as logits of every row of the item table, [M, N]; NaN in rows without an output."""
    listed_M = (items_MK != NO_ITEM).sum(1)
    left_M = (num_items - FIRST - listed_M).clamp(min=1)
    each_M1 = (temperature * (scores_MK[:, -1] - left_M.log())).unsqueeze(1)
    dense_MN = each_M1.repeat(1, num_items).scatter(1, items_MK, scores_MK[:, :-1])
    dense_MN[:, :FIRST] = float("-inf")
    dense_MN[torch.isnan(scores_MK[:, -1])] = float("nan")
    return dense_MN


def _mean(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted mean of the outputs that are there, NaN where there is none."""
    total = torch.zeros_like(values[0])
    weight = torch.zeros_like(values[0])
    for value, own in zip(values, weights, strict=True):
        known = ~torch.isnan(value) & (own > 0)
        total = total + torch.where(known, own * torch.where(known, value, 0.0), 0.0)
        weight = weight + own * known
    return torch.where(weight > 0, total / weight, float("nan"))
