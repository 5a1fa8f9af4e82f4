"""Answers that were given before: looked up by row of the interactions table, in memory or memory-mapped.

Letters: S rows of a table of answers, A lists of it, B people, C candidates, K numbers of an answer or items of a list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Subset

from polyrec.data.collator import PolyRecCollator
from polyrec.data.sequences import SequenceDataset
from polyrec.distillation.fingerprint import data_digest, fingerprint, item_digest, task_differences, task_parts
from polyrec.distillation.guard import TrainingRows
from polyrec.distillation.lists import spread
from polyrec.distillation.teacher import Teacher

if TYPE_CHECKING:
    from polyrec.processing_polyrec import PolyRecProcessor

NO_LIST = -1


@dataclass
class ListAnswers:
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
class AnswerTable:
    """A teacher's answers to candidates, each known by the row of the interactions table and the view of it.

    Args:
        row: int64 [S], row of the interactions table.
        delayed: bool [S], whether what had happened last was hidden (`max_delay` of a split).
        position: int64 [S], how many events were visible.
        numbers: {pair task: float [S(, K)]}, NaN = no answer.
        lists: {retrieval task: [`ListAnswers`]}.
    """

    row: np.ndarray
    delayed: np.ndarray
    position: np.ndarray
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    lists: dict[str, ListAnswers] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def keys(self) -> np.ndarray:
        """What a row is found by, int64 [S]."""
        return 2 * self.row + self.delayed


@dataclass(frozen=True)
class AnswerSource:
    """Who has answered, and about what; a table is refused where these do not agree with the student's.

    Args:
        revision: of the teacher.
        processor: fingerprint of the processor that made the questions, for whoever goes on writing answers; that of
            a student may be another one, as long as the rest agrees.
        items: digest of the catalog, of which lists hold rows.
        data: digest of the interactions table.
        tasks: {task: what its answers mean}, see `fingerprint.task_parts`.
        top_k, temperatures: {retrieval task: of its lists}.
        training_rows: what the teacher has learnt.
    """

    revision: str
    processor: str
    items: str
    data: str
    tasks: Mapping[str, Mapping[str, Any]]
    top_k: Mapping[str, int]
    temperatures: Mapping[str, float]
    training_rows: tuple[TrainingRows | None, ...]

    @classmethod
    def of(cls, teacher: Teacher, dataset: SequenceDataset, processor: PolyRecProcessor) -> AnswerSource:
        """Of a teacher that has been prepared for a data set."""
        answered = (*teacher.pair_tasks, *teacher.list_tasks)
        return cls(
            teacher.revision,
            fingerprint(processor),
            item_digest(processor),
            data_digest(dataset.log, processor.items.ids),
            {name: own for name, own in task_parts(processor).items() if name in answered},
            {name: teacher.top_k(name) for name in teacher.list_tasks},
            {name: teacher.temperature(name) for name in teacher.list_tasks},
            teacher.training_rows,
        )


class TableTeacher(Teacher):
    """Answers that are looked up: they cost no teacher's time.

    They are those to the data set without anything drawn (`SequenceDataset.fixed`): where training draws the order of
    events of one time anew, a live teacher would read the drawn order.

    Args:
        tables: one or several; together they hold every candidate that will be asked about.
        source: whose answers they are.
        missing: "refuse" a data set with candidates that no table holds, or "skip" them: they have no answer then.
        trust: see [`Teacher`].

    Example:
        >>> teacher.prepare(parts.train, processor)                         # doctest: +SKIP
        >>> table = TableTeacher.of(teacher, parts.train, processor)        # doctest: +SKIP
    """

    def __init__(
        self, tables: Sequence[AnswerTable], source: AnswerSource, missing: str = "refuse", trust: bool = False
    ) -> None:
        super().__init__(source.top_k, source.temperatures, trust)
        if missing not in ("refuse", "skip"):
            raise ValueError(f'missing is {missing!r}; known: "refuse", "skip"')
        self.tables, self.source, self.missing = list(tables), source, missing
        self._first = np.cumsum([0] + [len(table) for table in self.tables])
        self._at = np.zeros(0, dtype=np.int64)  # row of the tables of each candidate, -1 = none

    @classmethod
    def of(
        cls,
        teacher: Teacher,
        dataset: SequenceDataset,
        processor: PolyRecProcessor,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
    ) -> TableTeacher:
        """Ask a teacher that has been prepared for a data set once about all of it, and keep the answers in memory."""
        table = ask(teacher, dataset.fixed(), np.arange(len(dataset)), batch_size, device)
        return cls([table], AnswerSource.of(teacher, dataset, processor), trust=teacher.trust)

    @property
    def pair_tasks(self) -> tuple[str, ...]:
        """Pair tasks that were answered."""
        return tuple(self.tables[0].numbers)

    @property
    def list_tasks(self) -> tuple[str, ...]:
        """Retrieval tasks that were answered."""
        return tuple(self.tables[0].lists)

    @property
    def training_rows(self) -> tuple[TrainingRows | None, ...]:
        """What the teacher who answered had learnt."""
        return self.source.training_rows

    @property
    def revision(self) -> str:
        """That of the teacher who answered."""
        return self.source.revision

    def bind(self, parts: Sequence[SequenceDataset], processor: PolyRecProcessor) -> None:
        """Find every candidate's answer; refuse other data, items or tasks, and rows without an answer."""
        source, asked = self.source, task_parts(processor)
        problems = []
        if item_digest(processor) != source.items:
            problems.append("the catalog has other items, or in another order")
        if any(data_digest(log, processor.items.ids) != source.data for log in _logs(parts)):
            problems.append("the interactions table is another one, or has other rows")
        for name in (n for n in source.tasks if n in asked):
            problems += [f"task {name!r}: {what}" for what in task_differences(source.tasks[name], asked[name])]
        if not any(name in asked for name in source.tasks):
            problems.append(f"tasks {list(source.tasks)} were answered, and the student asks {list(asked)}")
        if problems:
            raise ValueError(
                f"the stored answers are to other questions: {'; '.join(problems)}. Ask the teacher again about these "
                "data (polyrec score)"
            )
        keys = np.concatenate([table.keys for table in self.tables])
        found = [self._found(part, keys) for part in parts]
        self._at = np.concatenate(found)
        if self.missing == "refuse" and (self._at < 0).any():
            rows = np.concatenate([part.log.row[part.candidates.event] for part in parts])[self._at < 0]
            raise ValueError(
                f"{len(rows)} of the {len(self._at)} candidates of the student's data have no stored answer, e.g. that "
                f"of row {rows[0]} of the interactions: score that part of the data too (polyrec score --part), or "
                'pass missing="skip" to learn these from their labels alone'
            )

    def _found(self, part: SequenceDataset, keys: np.ndarray) -> np.ndarray:
        """Row of the tables for each candidate of a data set, int64 [C], -1 = none."""
        wanted = 2 * part.log.row[part.candidates.event] + ~part.own_view
        if np.array_equal(keys, wanted):  # asked about in the order of the data set, as `ask` does
            at = np.arange(len(keys))
        else:
            order = np.argsort(keys, kind="stable")
            place = np.minimum(np.searchsorted(keys, wanted, sorter=order), max(len(keys) - 1, 0))
            at = np.where(keys[order[place]] == wanted, order[place], -1) if len(keys) else np.full(len(wanted), -1)
        held = at >= 0
        position = np.concatenate([np.asarray(table.position) for table in self.tables])[at[held]]
        other = position != part.candidates.position[held]
        if other.any():
            row = np.flatnonzero(held)[other.argmax()]
            raise ValueError(
                f"the stored answers are to other questions: row {part.log.row[part.candidates.event[row]]} was asked "
                f"with {position[other.argmax()]} visible events, and the student asks it with "
                f"{part.candidates.position[row]}, as {int(other.sum())} rows differ: use the same ties= and max_delay="
                " (and the same past), or score these data again"
            )
        return at

    def score(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Look a batch up, see [`Teacher`]."""
        device = batch["candidate_rows"].device
        rows_BC = batch["candidate_rows"].cpu().numpy()
        at_M = np.where(rows_BC >= 0, self._at[np.maximum(rows_BC, 0)], -1).ravel()
        held = np.flatnonzero(at_M >= 0)
        shard = np.searchsorted(self._first, at_M[held], side="right") - 1
        answers: dict[str, Any] = {"teacher_logits": {}, "teacher_items": {}, "teacher_scores": {}}
        for task in self.pair_tasks:
            width = self.tables[0].numbers[task].shape[1:]
            found = np.full((at_M.size, *width), np.nan, dtype=np.float32)
            for table, places, local in self._pieces(at_M, held, shard):
                found[places] = table.numbers[task][local]
            answers["teacher_logits"][task] = torch.from_numpy(found).view(*rows_BC.shape, *width).to(device)
        for task in self.list_tasks:
            places_of, items, scores = [], [], []
            for table, places, local in self._pieces(at_M, held, shard):
                lists = table.lists[task]
                number = np.asarray(lists.at[local])
                chosen = number >= 0
                places_of.append(places[chosen])
                items.append(np.asarray(lists.items[number[chosen]]).astype(np.int64))
                scores.append(np.asarray(lists.scores[number[chosen]]).astype(np.float32))
            if not places_of:
                first = self.tables[0].lists[task]
                places_of, items = [held], [np.zeros((0, first.items.shape[1]), dtype=np.int64)]
                scores = [np.zeros((0, first.scores.shape[1]), dtype=np.float32)]
            where, listed = torch.from_numpy(np.concatenate(places_of)), torch.from_numpy(np.concatenate(items))
            spread_out = spread(where, (listed, torch.from_numpy(np.concatenate(scores))), rows_BC.shape)
            answers["teacher_items"][task], answers["teacher_scores"][task] = (x.to(device) for x in spread_out)
        return answers

    def _pieces(
        self, at_M: np.ndarray, held: np.ndarray, shard: np.ndarray
    ) -> list[tuple[AnswerTable, np.ndarray, np.ndarray]]:
        """Tables that a batch reads, with the places of their answers in it and their own rows."""
        return [(self.tables[s], held[shard == s], at_M[held[shard == s]] - self._first[s]) for s in np.unique(shard)]


def ask(
    teacher: Teacher,
    dataset: SequenceDataset,
    windows: np.ndarray,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    done: Callable[[int], object] = lambda count: None,
) -> AnswerTable:
    """Ask a prepared teacher about all candidates of some neighbouring windows of a data set.

    Args:
        dataset: without anything drawn, see `SequenceDataset.fixed`.
        windows: int64 [W], neighbours in ascending order, at least one.
        device: that batches are put on.
        done: called with the number of windows of each batch.
    """
    spans = dataset.spans(windows)
    first, last = int(spans.first_asked[0]), int(spans.last_asked[-1])
    asked, log = dataset.candidates, dataset.log
    table = AnswerTable(log.row[asked.event[first:last]], ~dataset.own_view[first:last], asked.position[first:last])
    parts: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {task: [] for task in teacher.list_tasks}
    lengths = np.maximum(spans.stop - spans.start, spans.last_asked - spans.first_asked)
    order = windows[np.argsort(lengths, kind="stable")]
    loader = DataLoader(
        Subset(dataset, order.tolist()),
        batch_size=batch_size,
        collate_fn=PolyRecCollator(),
        generator=torch.Generator(),  # a loader draws a seed, which must not come out of the training's random state
    )
    for batch in loader:
        rows_M = batch["candidate_rows"].flatten().numpy()
        real = np.flatnonzero(rows_M >= 0)
        at = rows_M[real] - first
        answers = teacher.score(send_to_device(batch, device))
        for task, values in answers["teacher_logits"].items():
            flat = values.flatten(0, 1).cpu().numpy()
            if task not in table.numbers:
                table.numbers[task] = np.full((len(table), *flat.shape[1:]), np.nan, dtype=np.float32)
            table.numbers[task][at] = flat[real]
        for task, lists in parts.items():
            items = answers["teacher_items"][task].flatten(0, 1).cpu().numpy()[real]
            scores = answers["teacher_scores"][task].flatten(0, 1).cpu().numpy()[real]
            answered = ~np.isnan(scores[:, -1])
            lists.append((at[answered], items[answered].astype(np.int32), scores[answered]))
        done(len(batch["item_ids"]))
    for task, lists in parts.items():
        at, items, scores = (np.concatenate(column) for column in zip(*lists, strict=True))
        number = np.full(len(table), NO_LIST, dtype=np.int32)
        number[at] = np.arange(len(at))
        table.lists[task] = ListAnswers(number, items, scores)
    return table


def _logs(parts: Sequence[SequenceDataset]) -> list[Any]:
    return list({id(part.log): part.log for part in parts}.values())
