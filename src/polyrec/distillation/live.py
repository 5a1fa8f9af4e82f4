"""A polyrec model as a teacher.

Letters: B users, L events, C candidates, M rows of some subset, N items, K numbers of an output or items of a list.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from polyrec.data.batch import Batch
from polyrec.data.columns import FIRST, UNKNOWN
from polyrec.data.sequences import SequenceDataset
from polyrec.data.training_rows import TrainingSetSketch
from polyrec.distillation.lists import rows_at_once, spread, top_list, wants_list
from polyrec.distillation.scanned import scanned_lists
from polyrec.distillation.teacher import PerTask, Teacher, check_numbers
from polyrec.models.polyrec.fingerprint import input_parts, task_differences, task_parts, weights_digest
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import ItemRows
from polyrec.modules.heads._catalog_scan import LARGE, can_scan

logger = logging.getLogger(__name__)

_NAMED = 5  # items that a message names
NO_NUMBERS = (
    "the model's weights are damaged, or its precision is too low for its activations; load it in float32 or train it "
    "again"
)


class LiveTeacher(Teacher):
    """A polyrec model of any size that scores while the student learns.

    It runs in evaluation mode (no dropout), without gradients and in its own precision, whatever autocast the
    student trains under. It is no module and belongs to no model: no optimizer, no wrapper of several processes and no
    checkpoint of the student ever sees its parameters.

    Its inputs must mean what those of the student's data mean (same encoders, scales and running statistics: make the
    student's data with the teacher's processor if in doubt). Its catalog may be another one: items are mapped by id, in
    histories and candidates to the teacher's rows and in lists to the student's. Where the teacher does not know an
    item it has no output for it; its lists are restricted to the items that both know.

    Args:
        model, processor: as they were saved together.
        states: also give the states from which it scores, [B, C, D].
        gates: also give the gates of its experts.
        trust, top_k, temperature: see [`Teacher`].

    Example:
        >>> teacher = LiveTeacher(model, PolyRecProcessor.from_pretrained(run), temperature=2.0)    # doctest: +SKIP
        >>> teacher.prepare(parts.train, processor)    # doctest: +SKIP
        >>> teacher.score(batch)["teacher_logits"]["like"].shape    # doctest: +SKIP
        torch.Size([8, 64])
    """

    def __init__(
        self,
        model: PolyRecForRecommendation,
        processor: PolyRecProcessor,
        top_k: int | PerTask = 100,
        temperature: float | PerTask = 1.0,
        states: bool = False,
        gates: bool = False,
        trust: bool = False,
    ) -> None:
        super().__init__(top_k, temperature, trust)
        self.model, self.processor, self.states, self.gates = model, processor, states, gates
        self._trained_on = processor.training_rows  # of now: a processor may be split anew
        self._pair_tasks, self._list_tasks = tuple(model.pair_tasks), tuple(model.state_tasks)
        self._rows: _ItemRows | None = None  # None: both have the same catalog
        self._table: ItemRows | None = None

    @property
    def state_width(self) -> int | None:
        """Width of the model's states."""
        return self.model.config.hidden_size if self.states else None

    @property
    def gate_sources(self) -> Mapping[str, Sequence[str]]:
        """Sources of the gates of the model's experts."""
        return self.model.gate_sources if self.gates else {}

    @property
    def pair_tasks(self) -> tuple[str, ...]:
        """Pair tasks that the student's data have, too."""
        return self._pair_tasks

    @property
    def list_tasks(self) -> tuple[str, ...]:
        """Retrieval tasks that the student's data have, too."""
        return self._list_tasks

    @property
    def scores_drawn(self) -> bool:
        """It scores any candidate."""
        return True

    @property
    def training_rows(self) -> tuple[TrainingSetSketch | None, ...]:
        """What its processor says that it was trained on."""
        return (self._trained_on,)

    @property
    def revision(self) -> str:
        """A digest of its weights."""
        return weights_digest(self.model.state_dict())

    def to(self, device: torch.device | str) -> None:
        """Put the model on a device."""
        self.model.to(device)
        self._table = None

    def bind(self, parts: Sequence[SequenceDataset], processor: PolyRecProcessor) -> None:
        """Compare inputs and tasks with those of the student, and map the items."""
        problems = _different_inputs(self.processor, processor)
        longest = max(part.max_history for part in parts)
        if longest > self.model.config.max_history:
            problems.append(
                f"windows of the student's data hold {longest} events, and the teacher reads at most "
                f"{self.model.config.max_history}"
            )
        own, wanted = task_parts(self.processor), task_parts(processor)
        for name in (n for n in (*self.model.pair_tasks, *self.model.state_tasks) if n in wanted):
            problems += [f"task {name!r}: {what}" for what in task_differences(own[name], wanted[name])]
        for name in (n for n in self.model.state_tasks if n in wanted and self.model.heads[n].options["trending"]):
            counted = [p.mixtures.get(name) for p in (self.processor, processor)]
            if counted[0] != counted[1]:
                problems.append(f"task {name!r}: it reads trending={counted[0]}, and the data count {counted[1]}")
        shared = [name for name in self.model.heads if name in wanted]
        if not shared:
            problems.append(f"it has the tasks {list(self.model.heads)}, and the student {list(wanted)}")
        if problems:
            raise ValueError(
                "the teacher does not fit the student's data: "
                + "; ".join(problems)
                + ". Make the student's data with "
                "the teacher's processor (PolyRecProcessor.from_pretrained(teacher).resume(...)), or train a teacher "
                "on these data"
            )
        self._pair_tasks = tuple(name for name in self.model.pair_tasks if name in wanted)
        self._list_tasks = tuple(name for name in self.model.state_tasks if name in wanted)
        self._rows = _ItemRows.of(self.processor, processor)
        self._table = None

    @torch.no_grad()
    def score(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Score a batch, see [`Teacher`]."""
        model, device = self.model, batch["item_ids"].device
        inputs = Batch.inputs(batch).to(model.device)
        if self._rows is not None:
            inputs = replace(inputs, **self._rows.to_teacher(inputs))
        with self.model.eval_mode() as model, torch.autocast(self.model.device.type, enabled=False):
            if self._table is None:
                self._table = model.item_encoder.table()
            output = model(inputs, items=self._table)
            outputs: dict[str, Any] = {"teacher_logits": {}, "teacher_items": {}, "teacher_scores": {}}
            real_BC = inputs["candidate_ids"] > 0
            known_BC = real_BC if self._rows is None else real_BC & (inputs["candidate_ids"] != UNKNOWN)
            for name in self.pair_tasks:
                found = model.heads[name].canonical_logits(output.logits[name]).float()
                known = known_BC if found.dim() == 2 else known_BC.unsqueeze(-1)
                check_numbers(found, known, name, NO_NUMBERS)
                outputs["teacher_logits"][name] = found.masked_fill(~known, float("nan"))
            for name in self.list_tasks:
                rows_M = send_to_device(wants_list(batch, name), model.device).flatten().nonzero().squeeze(-1)
                lists = spread(rows_M, self._lists(name, output, inputs, rows_M), tuple(real_BC.shape))
                outputs["teacher_items"][name], outputs["teacher_scores"][name] = lists
            if self.states:
                outputs["teacher_states"] = output.states.float()
            if self.gates:
                outputs["teacher_gates"] = {n: gate.float() for n, gate in output.gates.items() if n in self.pair_tasks}
        return send_to_device(outputs, device)

    def _lists(self, task: str, output: Any, inputs: Batch, rows_M: Tensor) -> tuple[Tensor, Tensor]:
        model, rows = self.model, self._rows

        def of(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.flatten(0, 1)[rows_M]

        states_MD = output.states.flatten(0, 1)[rows_M]
        queries_MD, context = of(output.queries), model.request_context(inputs).rows(rows_M)
        head = model.heads[task]
        own_M = of(inputs.query_items) if head.excludes == "own item" else None
        if rows is None and model.config.num_items > LARGE and can_scan(head) and len(rows_M):
            assert self._table is not None  # `score` made it
            scored = head.query_state(states_MD, queries_MD), self._table, context
            return scanned_lists(head, *scored, self.top_k(task), self.temperature(task), own_M)
        found = []
        for at in torch.arange(len(rows_M), device=model.device).split(rows_at_once(model.config.num_items)):
            logits_MN = model.score_items(
                states_MD[at],
                task,
                self._table,
                None if queries_MD is None else queries_MD[at],
                context.at(at),
            ).float()
            if own_M is not None:
                logits_MN = logits_MN.scatter(1, own_M[at].unsqueeze(1), float("-inf"))
            logits_MN = logits_MN if rows is None else rows.of_student(logits_MN)
            check_numbers(logits_MN, True, task, NO_NUMBERS)
            found.append(top_list(logits_MN, self.top_k(task), self.temperature(task)))
        if not found:
            width = min(self.top_k(task), model.config.num_items if rows is None else len(rows.teacher_rows))
            nothing = torch.zeros((0, width), dtype=torch.int64, device=model.device)
            return nothing, torch.zeros((0, width + 1), device=model.device)
        items, scores = zip(*found, strict=True)
        return torch.cat(items), torch.cat(scores)


class _ItemRows:
    """Rows of the student's item table and of the teacher's, mapped by item id.

    Args:
        teacher_rows: int64 [N of the student], the teacher's row of each of the student's items; padding and what the
            teacher does not know are the rows 0 and 1.
    """

    def __init__(self, teacher_rows: np.ndarray) -> None:
        self.teacher_rows = torch.from_numpy(teacher_rows)

    @classmethod
    def of(cls, teacher: PolyRecProcessor, student: PolyRecProcessor) -> _ItemRows | None:
        """The map, or None if both catalogs are the same."""
        own, wanted = (p.items.ids.cast(pa.large_string()) for p in (teacher, student))
        if own.equals(wanted):
            return None
        # Ids of one catalog may be numbers and those of another strings.
        found = np.asarray(pc.index_in(wanted, value_set=own).fill_null(UNKNOWN - FIRST)).astype(np.int64) + FIRST
        if not (found >= FIRST).any():
            raise ValueError(
                f"the teacher does not fit the student's data: it knows none of the {len(wanted)} items (the student's "
                f"begin with {wanted[0]}, the teacher's with {own[0]}): use the same item ids"
            )
        lacking = wanted.filter(pa.array(found < FIRST))
        if len(lacking):
            logger.warning(
                "the teacher knows %d of the student's %d items: it has no output for the others (%s), and its lists "
                "give them no chance, which the student learns unless its labels say otherwise",
                len(wanted) - len(lacking),
                len(wanted),
                ", ".join(lacking[:_NAMED].to_pylist()) + (", ..." if len(lacking) > _NAMED else ""),
            )
        return cls(np.concatenate([np.arange(FIRST), found]))

    def to_teacher(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs that hold rows of items, in the teacher's."""
        names = [name for name in ("item_ids", "candidate_ids", "query_items") if name in inputs]
        self.teacher_rows = self.teacher_rows.to(inputs["item_ids"].device)
        found: dict[str, Any] = {name: self.teacher_rows[inputs[name]] for name in names}
        if "trending" in inputs:
            found["trending"] = {task: self._snapshots(**tables) for task, tables in inputs["trending"].items()}
        return found

    def _snapshots(self, items: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Snapshots of trending items, ascending again, without those that the teacher does not know."""
        rows_UK = self.teacher_rows[items.long()]
        known_UK = rows_UK >= FIRST
        rows_UK, order_UK = (rows_UK * known_UK).sort(dim=1)
        return {"items": rows_UK.to(items), "values": (values * known_UK).gather(1, order_UK)}

    def of_student(self, logits_MN: Tensor) -> Tensor:
        """Logits of the teacher's items as those of the student's; -inf for what the teacher does not know."""
        self.teacher_rows = self.teacher_rows.to(logits_MN.device)
        unknown_N = self.teacher_rows < FIRST
        return logits_MN.index_select(1, self.teacher_rows).masked_fill(unknown_N, float("-inf"))


def _different_inputs(teacher: PolyRecProcessor, student: PolyRecProcessor) -> list[str]:
    own, theirs = input_parts(teacher), input_parts(student)
    different = [name for name in own if own[name] != theirs[name]]
    return [f"it reads other {name} (encoders or scales)" for name in different]
