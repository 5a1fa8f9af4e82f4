"""What scores beside the labels: the contract of a teacher.

Letters: B users, C candidates, K numbers of an output or items of a list, D width, E experts.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from polyrec.core.distillation_config import DistillationConfig
from polyrec.core.registry import nearest
from polyrec.data.event_log import EventLog
from polyrec.data.mixing import MixedDataset
from polyrec.data.sequences import SequenceDataset, WindowDataset
from polyrec.data.splits import LeakageError
from polyrec.data.training_rows import TrainingSetSketch
from polyrec.distillation.representation import same_sources
from polyrec.distillation.unlabelled import SampledCandidates, draw_evenly
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor

PerTask = Mapping[str, Any]


class Teacher(ABC):
    r"""Scores the candidates of a student's batches, so that it learns from that beside its labels.

    **What `score` returns**, on the batch's device and joined to the batch:

    * `teacher_logits` {pair task: [B, C(, K)]} float, NaN = no output, in units that do not depend on a head's options:
      binary log odds; multiclass K log-weights; ordinal K - 1 conditional log odds; numbers in the label's unit; count
      log rate.
    * `teacher_items` {retrieval task: [B, C, K]} int64 rows of the STUDENT's item table, 0 = none, and
      `teacher_scores` {task: [B, C, K + 1]}: logits of those items, and last log sum exp(z / T) of all others, see
      `polyrec.distillation.lists`.
    * `teacher_states` [B, C, D] and `teacher_gates` {task: [B, C, E]}, of teachers that have them and are to give them.

    **What no teacher may know.** `prepare` refuses one that was trained on rows by which the student is evaluated (see
    `polyrec.data.training_rows`), and one that does not say what it was trained on unless `trust` says that somebody
    has made sure.

    Subclasses implement `pair_tasks`, `list_tasks`, `training_rows`, `revision`, `bind` and `score`.

    Args:
        top_k: items per list; a number, or {task: number}. It must be that of the student's plan.
        temperature: T of "all others"; a number, or {task: number}. It must be that of the student's plan, too.
        trust: take a teacher that does not say what it was trained on.
    """

    def __init__(self, top_k: int | PerTask = 100, temperature: float | PerTask = 1.0, trust: bool = False) -> None:
        for name, given, low in (("top_k", top_k, 1), ("temperature", temperature, 0)):
            for value in given.values() if isinstance(given, Mapping) else [given]:
                if not low <= value or value == 0:
                    raise ValueError(f"{name} of the teacher is {value}; it must be {'>= 1' if low else '> 0'}")
        self._top_k, self._temperature, self.trust = top_k, temperature, trust

    @property
    @abstractmethod
    def pair_tasks(self) -> tuple[str, ...]:
        """Tasks that it scores with `teacher_logits`."""

    @property
    @abstractmethod
    def list_tasks(self) -> tuple[str, ...]:
        """Tasks for which it gives lists."""

    @property
    @abstractmethod
    def training_rows(self) -> tuple[TrainingSetSketch | None, ...]:
        """What it, or each of those it consists of, was trained on; None = nobody knows."""

    @property
    @abstractmethod
    def revision(self) -> str:
        """A digest that changes when its outputs may."""

    @abstractmethod
    def bind(self, parts: Sequence[SequenceDataset], processor: PolyRecProcessor) -> None:
        """Make ready for the candidates of some data sets; refuse what does not fit.

        Args:
            parts: one data set, or those of a `MixedDataset`, whose candidates are counted one after the other.
            processor: the student's.
        """

    @abstractmethod
    def score(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Score a batch as the collator makes it, see the class."""

    def prepare(
        self,
        dataset: WindowDataset,
        processor: PolyRecProcessor,
        judged: Sequence[SequenceDataset] | None = None,
    ) -> None:
        """Check that the teacher fits a student's data and may score them, and bind it to them.

        Args:
            dataset: what the student learns from.
            processor: of the student.
            judged: what the student is validated and tested by. None: every event of the log that `dataset` does not
                score.

        Raises:
            LeakageError: it was trained on what the student is evaluated by, or does not say what it was trained on.
            ValueError: its inputs, tasks or items do not fit; names all that does not.
        """
        parts = parts_of(dataset)
        self.check_unlearnt(parts, processor, judged)
        self.bind(parts, processor)

    def check_unlearnt(
        self,
        parts: Sequence[SequenceDataset],
        processor: PolyRecProcessor,
        judged: Sequence[SequenceDataset] | None = None,
    ) -> None:
        """Refuse to teach what the student is judged by, see [`prepare`]."""
        if any(rows is None for rows in self.training_rows) and not self.trust:
            raise LeakageError(
                "the teacher does not say which rows it was trained on (it was saved by an older version, or without "
                "training_rows.safetensors), so it may have been trained on what the student is evaluated by: train it "
                "again, or, if you are sure that it has not, pass trust=True (--skip-overlap-check)"
            )
        latest = max(p.log.time[p.candidates.event].max(initial=-np.inf) for p in parts)
        for log, held in _held_out(parts, judged):
            by_time = bool(held.any()) and not log.drawn and latest <= log.time[held].min()
            for rows in self.training_rows:
                if rows is not None:
                    rows.check(log, held, processor.items.ids, by_time)

    def check_plan(self, plan: DistillationConfig, student_gates: Mapping[str, Sequence[str]] | None = None) -> None:
        """Refuse a plan that needs what the teacher does not score, or for other lists than it makes.

        Args:
            student_gates: what the student's gates weigh, {task: names of sources}, to compare if gates are distilled.
        """
        scored = [*self.pair_tasks, *self.list_tasks]
        for task, own in plan.tasks.items():
            if task not in scored:
                raise ValueError(f"the teacher does not score task {task!r}; {nearest(task, scored)}")
            if task in self.list_tasks and own.temperature != self.temperature(task):
                raise ValueError(
                    f"task {task!r} is distilled at the temperature {own.temperature:g}, but the teacher's lists are "
                    f"made for {self.temperature(task):g}: give both the same"
                )
            if task in self.list_tasks and own.top_k != self.top_k(task):
                raise ValueError(
                    f"task {task!r} is distilled with lists of top_k={own.top_k} items, but the teacher's have "
                    f"{self.top_k(task)}: give both the same"
                )
        self._check_unlabelled(plan)
        fix = "only a live model gives them, LiveTeacher(..., {0}=True), and no ensemble, stored or classical outputs; "
        if plan.states is not None and self.state_width is None:
            raise ValueError(
                "the student learns from states, which the teacher does not give: " + fix.format("states") + "let such "
                "a one teach, or leave `states` out of the plan"
            )
        if plan.states is not None and plan.states.teacher_width != self.state_width:
            raise ValueError(
                f"the plan says that the teacher's states have teacher_width={plan.states.teacher_width}, but they "
                f"have {self.state_width}: set teacher_width={self.state_width}"
            )
        if plan.gates and not self.gate_sources:
            raise ValueError(
                "the student learns from gates, which the teacher does not give: " + fix.format("gates") + "let such "
                "a one with experts that have gates teach, or set gates=0"
            )
        if plan.gates and student_gates is not None:
            same_sources(student_gates, self.gate_sources)

    def _check_unlabelled(self, plan: DistillationConfig) -> None:
        """Refuse drawn items that no teacher scores, or from which nothing is distilled: they never get lists."""
        if plan.unlabelled and not self.scores_drawn:
            raise ValueError(
                f"unlabelled={plan.unlabelled} needs outputs for items without labels, but the teacher scores the "
                "candidates of the data set alone: use a LiveTeacher, outputs stored with `polyrec score "
                "--unlabelled`, or unlabelled=0"
            )
        taught = [task for task, own in plan.tasks.items() if own.acts and task in self.pair_tasks]
        if plan.unlabelled and not taught and not plan.gates:
            raise ValueError(
                f"unlabelled={plan.unlabelled} draws items for pair tasks, and the plan teaches none "
                f"of those that the teacher scores ({', '.join(self.pair_tasks) or 'none'}): plan one of them, or "
                "set unlabelled=0"
            )

    @property
    def scores_drawn(self) -> bool:
        """Whether it scores items beside the data set's candidates for pair tasks, too."""
        return False

    def draw(
        self, batch: Mapping[str, Any], count: int, num_items: int, generator: torch.Generator
    ) -> SampledCandidates:
        """So many items per window that it alone scores; `score` finds them in the batch's `drawn`."""
        return draw_evenly(batch, count, num_items, generator)

    @property
    def state_width(self) -> int | None:
        """Width of the states that it gives; None: it gives none."""
        return None

    @property
    def gate_sources(self) -> Mapping[str, Sequence[str]]:
        """What the gates that it can give weigh, {task: names of sources}."""
        return {}

    def top_k(self, task: str) -> int:
        """Items of a list of this task."""
        return self._top_k.get(task, 100) if isinstance(self._top_k, Mapping) else self._top_k

    def temperature(self, task: str) -> float:
        """Temperature of the lists of this task."""
        return self._temperature.get(task, 1.0) if isinstance(self._temperature, Mapping) else self._temperature

    def listing(self, items: int) -> Self:
        """This teacher with lists of so many items, to be prepared anew; it shares what it computes with."""
        other = copy.copy(self)
        other._top_k = items
        return other

    def to(self, device: torch.device | str) -> None:
        """Put what it computes with on a device; most have nothing to put."""
        return


def check_numbers(values: Tensor, known: Tensor | bool, task: str, fix: str) -> None:
    """Refuse outputs that are no numbers: NaN would silently count as no output, and +inf would teach NaN.

    Args:
        values: outputs; -inf says that something is impossible.
        known: bool, broadcast to them: which are outputs at all.
        fix: what to do about it.
    """
    bad = (torch.isnan(values) | torch.isposinf(values)) & known
    if bad.any():
        raise ValueError(f"{int(bad.sum())} of the teacher's outputs for task {task!r} are NaN or infinite: {fix}")


def parts_of(dataset: WindowDataset) -> list[SequenceDataset]:
    """The data sets whose candidates a training reads, in the order in which `candidate_rows` counts them."""
    if isinstance(dataset, SequenceDataset):
        return [dataset]
    if isinstance(dataset, MixedDataset):
        return list(dataset.datasets.values())
    raise TypeError(f"a teacher scores a SequenceDataset or a MixedDataset, not a {type(dataset).__name__}")


def _held_out(
    parts: Sequence[SequenceDataset], judged: Sequence[SequenceDataset] | None
) -> list[tuple[EventLog, np.ndarray]]:
    """Logs, and which of their events (bool [R]) the student is judged by."""
    chosen = parts if judged is None else judged
    of_log: dict[int, tuple[EventLog, np.ndarray]] = {}
    for part in chosen:
        _, rows = of_log.setdefault(id(part.log), (part.log, np.zeros(len(part.log), dtype=bool)))
        rows[part.candidates.event] = True
    return [(log, ~rows if judged is None else rows) for log, rows in of_log.values()]
