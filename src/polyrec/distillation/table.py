"""Outputs that were stored before: looked up by row of the interactions table, in memory or memory-mapped.

Letters: S rows of a table of outputs, A lists of it, B users, C candidates, K numbers of an output or items of a list,
U items drawn beside each row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from polyrec.data.sequences import SequenceDataset
from polyrec.data.training_rows import TrainingSetSketch
from polyrec.data.window_loader import window_loader
from polyrec.distillation.lists import spread
from polyrec.distillation.output_table import NO_LIST, ListOutputs, OutputSource, OutputTable, logs_of
from polyrec.distillation.teacher import Teacher
from polyrec.distillation.unlabelled import SampledCandidates, draw_positions, with_unlabelled
from polyrec.models.polyrec.fingerprint import data_digest, item_digest, task_differences, task_parts
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import FIRST_ITEM, PADDING_ITEM


class TableTeacher(Teacher):
    """Outputs that are looked up: they cost no teacher's time.

    They are those to the data set without anything drawn (`SequenceDataset.fixed`): where training draws the order of
    events of one time anew, a live teacher would read the drawn order.

    Args:
        tables: one or several; together they hold every candidate that will be scored.
        source: whose outputs they are.
        missing: "refuse" a data set with candidates that no table holds, or "skip" them: they have no output then.
        trust: see [`Teacher`].

    Example:
        >>> teacher.prepare(parts.train, processor)                         # doctest: +SKIP
        >>> table = TableTeacher.of(teacher, parts.train, processor)        # doctest: +SKIP
    """

    def __init__(
        self, tables: Sequence[OutputTable], source: OutputSource, missing: str = "refuse", trust: bool = False
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
        unlabelled: int = 0,
    ) -> TableTeacher:
        """Score a whole data set once with a teacher that has been prepared for it, and keep the outputs in memory.

        Args:
            unlabelled: items drawn beside each candidate, which it scores, too, for `distillation.unlabelled`.
        """
        table = score_windows(
            teacher, dataset.fixed(), processor, np.arange(len(dataset)), batch_size, device, unlabelled
        )
        return cls([table], OutputSource.of(teacher, dataset, processor), trust=teacher.trust)

    @property
    def pair_tasks(self) -> tuple[str, ...]:
        """Pair tasks that were scored."""
        return tuple(self.tables[0].numbers)

    @property
    def list_tasks(self) -> tuple[str, ...]:
        """Retrieval tasks that were scored."""
        return tuple(self.tables[0].lists)

    @property
    def scores_drawn(self) -> bool:
        """Whether outputs for drawn items are among those that were stored."""
        return all(table.drawn is not None for table in self.tables)

    @property
    def training_rows(self) -> tuple[TrainingSetSketch | None, ...]:
        """What the teacher was trained on."""
        return self.source.training_rows

    @property
    def revision(self) -> str:
        """That of the teacher."""
        return self.source.revision

    def bind(self, parts: Sequence[SequenceDataset], processor: PolyRecProcessor) -> None:
        """Find every candidate's output; refuse other data, items or tasks, and rows without an output."""
        source, wanted = self.source, task_parts(processor)
        problems = []
        if item_digest(processor) != source.items:
            problems.append("the catalog has other items, or in another order")
        if any(data_digest(log, processor.items.ids) != source.data for log in logs_of(parts)):
            problems.append("the interactions table is another one, or has other rows")
        for name in (n for n in source.tasks if n in wanted):
            problems += [f"task {name!r}: {what}" for what in task_differences(source.tasks[name], wanted[name])]
        if not any(name in wanted for name in source.tasks):
            problems.append(f"tasks {list(source.tasks)} were scored, and the student has {list(wanted)}")
        if problems:
            raise ValueError(
                f"the stored outputs are for other examples: {'; '.join(problems)}. Score these again with the teacher "
                "data (polyrec score)"
            )
        keys = np.concatenate([table.keys for table in self.tables])
        found = [self._found(part, keys) for part in parts]
        self._at = np.concatenate(found)
        if self.missing == "refuse" and (self._at < 0).any():
            rows = np.concatenate([part.log.row[part.candidates.event] for part in parts])[self._at < 0]
            raise ValueError(
                f"{len(rows)} of the {len(self._at)} candidates of the student's data have no stored output, e.g. that "
                f"of row {rows[0]} of the interactions: score that part of the data too (polyrec score --split), or "
                'pass missing="skip" to learn these from their labels alone'
            )

    def _found(self, part: SequenceDataset, keys: np.ndarray) -> np.ndarray:
        """Row of the tables for each candidate of a data set, int64 [C], -1 = none."""
        wanted = 2 * part.log.row[part.candidates.event] + ~part.own_view
        if np.array_equal(keys, wanted):  # scored in the order of the data set, as `score_windows` does
            at = np.arange(len(keys))
        else:
            order = np.argsort(keys, kind="stable")
            slot = np.minimum(np.searchsorted(keys, wanted, sorter=order), max(len(keys) - 1, 0))
            at = np.where(keys[order[slot]] == wanted, order[slot], -1) if len(keys) else np.full(len(wanted), -1)
        held = at >= 0
        position = np.concatenate([np.asarray(table.position) for table in self.tables])[at[held]]
        other = position != part.candidates.position[held]
        if other.any():
            row = np.flatnonzero(held)[other.argmax()]
            raise ValueError(
                f"the stored outputs are for other examples: row {part.log.row[part.candidates.event[row]]} was scored "
                f"with {position[other.argmax()]} visible events, and the student reads it with "
                f"{part.candidates.position[row]}, as {int(other.sum())} rows differ: use the same ties= and max_delay="
                " (and the same past), or score these data again"
            )
        return at

    def draw(
        self, batch: Mapping[str, Any], count: int, num_items: int, generator: torch.Generator
    ) -> SampledCandidates:
        """Some of the items that were drawn beside the window's candidates when the teacher scored them."""
        beside_BU, _ = draw_positions(batch, count, generator)
        each = min(table.drawn.shape[1] for table in self.tables if table.drawn is not None)
        numbers_BU = torch.randint(each, tuple(beside_BU.shape), generator=generator)
        at_M = self._rows(batch["candidate_rows"].gather(1, beside_BU))
        items_M = np.full(at_M.size, PADDING_ITEM, dtype=np.int64)
        for table, chosen, local in self._pieces(at_M):
            assert table.drawn is not None  # see `scores_drawn`
            items_M[chosen] = table.drawn[local, numbers_BU.flatten().numpy()[chosen]]
        items_BU = torch.from_numpy(items_M).view(beside_BU.shape)
        return SampledCandidates(beside_BU, items_BU.to(beside_BU.device), numbers_BU.to(beside_BU.device))

    def score(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Look a batch up, see [`Teacher`]."""
        device = batch["candidate_rows"].device
        rows_BC = batch["candidate_rows"]
        at_M = self._rows(rows_BC)
        pieces = self._pieces(at_M)
        drawn: SampledCandidates | None = batch.get("drawn")
        beside = [] if drawn is None else self._pieces(self._rows(rows_BC.gather(1, drawn.beside_BU)))
        outputs: dict[str, Any] = {"teacher_logits": {}, "teacher_items": {}, "teacher_scores": {}}
        for task in self.pair_tasks:
            width = self.tables[0].numbers[task].shape[1:]
            found = np.full((at_M.size, *width), np.nan, dtype=np.float32)
            for table, chosen, local in pieces:
                found[chosen] = table.numbers[task][local]
            values = torch.from_numpy(found).view(*rows_BC.shape, *width)
            if drawn is not None:
                values[:, -drawn.items_BU.shape[1] :] = self._about_drawn(task, drawn, beside)
            outputs["teacher_logits"][task] = values.to(device)
        for task in self.list_tasks:
            index_of, items, scores = [], [], []
            for table, chosen, local in pieces:
                lists = table.lists[task]
                number = np.asarray(lists.at[local])
                listed = number >= 0
                index_of.append(chosen[listed])
                items.append(np.asarray(lists.items[number[listed]]).astype(np.int64))
                scores.append(np.asarray(lists.scores[number[listed]]).astype(np.float32))
            if not index_of:
                first = self.tables[0].lists[task]
                index_of, items = [np.zeros(0, np.int64)], [np.zeros((0, first.items.shape[1]), dtype=np.int64)]
                scores = [np.zeros((0, first.scores.shape[1]), dtype=np.float32)]
            where, ids, values = (torch.from_numpy(np.concatenate(x)) for x in (index_of, items, scores))
            spread_out = spread(where, (ids, values), tuple(rows_BC.shape))
            outputs["teacher_items"][task], outputs["teacher_scores"][task] = (x.to(device) for x in spread_out)
        return outputs

    def _about_drawn(
        self, task: str, drawn: SampledCandidates, beside: Sequence[tuple[OutputTable, np.ndarray, np.ndarray]]
    ) -> Tensor:
        """Outputs for drawn items, [B, U(, K)]; `beside` are pieces of the candidates that they stand beside."""
        numbers_M, width = drawn.numbers_BU.flatten().cpu().numpy(), self.tables[0].numbers[task].shape[1:]
        found = np.full((numbers_M.size, *width), np.nan, dtype=np.float32)
        for table, chosen, local in beside:
            found[chosen] = table.drawn_numbers[task][local, numbers_M[chosen]]
        return torch.from_numpy(found).view(*drawn.items_BU.shape, *width)

    def _rows(self, rows: Tensor) -> np.ndarray:
        """Row of the tables of each of the data set's candidates, int64 [M], -1 = none."""
        rows_M = rows.flatten().cpu().numpy()
        return np.where(rows_M >= 0, self._at[np.maximum(rows_M, 0)], -1)

    def _pieces(self, at_M: np.ndarray) -> list[tuple[OutputTable, np.ndarray, np.ndarray]]:
        """Tables that are read, with the places of their outputs among M and their own rows."""
        held = np.flatnonzero(at_M >= 0)
        shard = np.searchsorted(self._first, at_M[held], side="right") - 1
        return [(self.tables[s], held[shard == s], at_M[held[shard == s]] - self._first[s]) for s in np.unique(shard)]


def score_windows(
    teacher: Teacher,
    dataset: SequenceDataset,
    processor: PolyRecProcessor,
    windows: np.ndarray,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    unlabelled: int = 0,
    done: Callable[[int], object] = lambda count: None,
) -> OutputTable:
    """Score with a prepared teacher all candidates of some neighbouring windows of a data set.

    Args:
        dataset: without anything drawn, see `SequenceDataset.fixed`.
        windows: int64 [W], neighbours in ascending order, at least one.
        device: that batches are put on.
        unlabelled: items drawn evenly beside each candidate, which pair tasks score, too; the same ones for
            the same windows.
        done: called with the number of windows of each batch.
    """
    if unlabelled and not teacher.scores_drawn:
        raise ValueError(
            f"unlabelled={unlabelled} needs outputs for items without labels, but the teacher scores the "
            "candidates of the data set alone: use a trained model, or leave it out"
        )
    spans = dataset.spans(windows)
    first, last = int(spans.first_candidate[0]), int(spans.last_candidate[-1])
    candidates, log = dataset.candidates, dataset.log
    table = OutputTable(
        log.row[candidates.event[first:last]], ~dataset.own_view[first:last], candidates.position[first:last]
    )
    if unlabelled:
        draws = np.random.default_rng([first, unlabelled])
        table.drawn = draws.integers(FIRST_ITEM, processor.num_items, (len(table), unlabelled), dtype=np.int32)
    parts: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {task: [] for task in teacher.list_tasks}
    for batch in window_loader(dataset, windows, batch_size):
        rows_M = batch["candidate_rows"].flatten().numpy()
        real = np.flatnonzero(rows_M >= 0)
        at = rows_M[real] - first
        shape_BC = batch["candidate_rows"].shape
        if table.drawn is not None:
            batch = with_unlabelled(batch, _all_drawn(shape_BC, real, table.drawn[at]))
        outputs = teacher.score(send_to_device(batch, device))
        own = slice(shape_BC[1])
        for task, values in outputs["teacher_logits"].items():
            width = tuple(values.shape[2:])
            flat = values[:, own].flatten(0, 1).cpu().numpy()
            _array_of(table.numbers, task, (len(table), *width))[at] = flat[real]
            if unlabelled:
                flat = values[:, shape_BC[1] :].reshape(-1, unlabelled, *width).cpu().numpy()
                _array_of(table.drawn_numbers, task, (len(table), unlabelled, *width))[at] = flat[real]
        for task, lists in parts.items():
            items = outputs["teacher_items"][task][:, own].flatten(0, 1).cpu().numpy()[real]
            scores = outputs["teacher_scores"][task][:, own].flatten(0, 1).cpu().numpy()[real]
            scored = ~np.isnan(scores[:, -1])
            lists.append((at[scored], items[scored].astype(np.int32), scores[scored]))
        done(len(batch["item_ids"]))
    for task, lists in parts.items():
        at, items, scores = (np.concatenate(column) for column in zip(*lists, strict=True))
        number = np.full(len(table), NO_LIST, dtype=np.int32)
        number[at] = np.arange(len(at))
        table.lists[task] = ListOutputs(number, items, scores)
    return table


def _all_drawn(shape_BC: torch.Size, real: np.ndarray, items_MU: np.ndarray) -> SampledCandidates:
    """All items drawn beside the candidates of a batch, U for each of its B * C places; `real` [M] are no padding."""
    (users, candidates), each = shape_BC, items_MU.shape[1]
    items = np.full((users * candidates, each), PADDING_ITEM, dtype=np.int64)
    items[real] = items_MU
    beside = torch.arange(candidates).repeat_interleave(each).expand(users, -1)
    return SampledCandidates(
        beside, torch.from_numpy(items).view(users, -1), torch.arange(each).repeat(candidates).expand(users, -1)
    )


def _array_of(arrays: dict[str, np.ndarray], task: str, shape: tuple[int, ...]) -> np.ndarray:
    """The task's array, which begins without outputs."""
    if task not in arrays:
        arrays[task] = np.full(shape, np.nan, dtype=np.float32)
    return arrays[task]
