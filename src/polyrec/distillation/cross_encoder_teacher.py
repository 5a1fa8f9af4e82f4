"""A cross-encoder as a teacher: its outputs for pairs, and its order of another teacher's lists.

Letters: B users, C candidates, K items of a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from polyrec.data.sequences import SequenceDataset
from polyrec.data.training_rows import TrainingSetSketch
from polyrec.distillation.live import NO_NUMBERS
from polyrec.distillation.teacher import Teacher, check_numbers
from polyrec.models.cross_encoder.modeling_cross_encoder import PolyRecCrossEncoder
from polyrec.models.cross_encoder.processing_cross_encoder import PolyRecCrossEncoderProcessor
from polyrec.models.polyrec.fingerprint import (
    input_parts,
    item_digest,
    task_differences,
    task_parts,
    weights_digest,
)
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor

_NO_INPUTS = ("labels", "sample_weight", "candidate_rows", "drawn")


class CrossEncoderTeacher(Teacher):
    r"""Pair tasks are scored pair by pair; of retrieval tasks the lists of a first stage are put in a better order.

    A cross-encoder compares the items of a list and says nothing about all others, so that list and rest share their
    probability as the first stage has it: with its logits s_k and the cross-encoder's z_k,

        z'_k = z_k + T (\log \sum_k exp(s_k / T) - \log \sum_k exp(z_k / T)),   others as they are.

    Args:
        model, processor: as they were saved together. Catalog, inputs and tasks must be those of the student's data
            (`PolyRecCrossEncoderProcessor.of(student_processor, ...)`).
        first_stage: a teacher that gives lists; without one retrieval tasks have no outputs. It says how long lists
            are, and at which temperature.
        trust: see [`Teacher`].
    """

    def __init__(
        self,
        model: PolyRecCrossEncoder,
        processor: PolyRecCrossEncoderProcessor,
        first_stage: Teacher | None = None,
        trust: bool = False,
    ) -> None:
        super().__init__(trust=trust)
        self.model, self.processor, self.first_stage = model, processor, first_stage
        self._trained_on = processor.training_rows  # of now: a processor may be split anew
        self._shared_tasks: tuple[str, ...] = tuple(model.heads)

    @property
    def pair_tasks(self) -> tuple[str, ...]:
        """Pair tasks that the student's data have, too."""
        return tuple(name for name in self.model.pair_tasks if name in self._shared_tasks)

    @property
    def list_tasks(self) -> tuple[str, ...]:
        """Retrieval tasks for which there are lists."""
        listed = () if self.first_stage is None else self.first_stage.list_tasks
        return tuple(name for name in self.model.state_tasks if name in listed and name in self._shared_tasks)

    @property
    def scores_drawn(self) -> bool:
        """It scores any candidate."""
        return True

    @property
    def training_rows(self) -> tuple[TrainingSetSketch | None, ...]:
        """What its processor, and the first stage, say that they were trained on."""
        return (self._trained_on, *(() if self.first_stage is None else self.first_stage.training_rows))

    @property
    def revision(self) -> str:
        """A digest of its weights, and the first stage's revision."""
        own = weights_digest(self.model.state_dict())
        return own if self.first_stage is None else f"{own}+{self.first_stage.revision}"

    def top_k(self, task: str) -> int:
        """Items of the first stage's lists."""
        return super().top_k(task) if self.first_stage is None else self.first_stage.top_k(task)

    def temperature(self, task: str) -> float:
        """Temperature of the first stage's lists."""
        return super().temperature(task) if self.first_stage is None else self.first_stage.temperature(task)

    def to(self, device: torch.device | str) -> None:
        """Put the model, and the first stage, on a device."""
        self.model.to(device)
        if self.first_stage is not None:
            self.first_stage.to(device)

    def bind(self, parts: Sequence[SequenceDataset], processor: PolyRecProcessor) -> None:
        """Compare catalog, inputs and tasks with those of the student."""
        own_parts, theirs = input_parts(self.processor), input_parts(processor)
        problems = [
            f"it reads other {name} (encoders or scales)" for name in own_parts if own_parts[name] != theirs[name]
        ]
        if item_digest(self.processor) != item_digest(processor):
            problems.append("its catalog is another one")
        own, wanted = task_parts(self.processor), task_parts(processor)
        self._shared_tasks = tuple(name for name in self.model.heads if name in wanted)
        for name in self._shared_tasks:
            problems += [f"task {name!r}: {what}" for what in task_differences(own[name], wanted[name])]
        if not self._shared_tasks:
            problems.append(f"it has the tasks {list(self.model.heads)}, and the student {list(wanted)}")
        if problems:
            raise ValueError(
                "the cross-encoder does not fit the student's data: " + "; ".join(problems) + ". Train one with "
                "PolyRecCrossEncoderProcessor.of(processor of the student, ...)"
            )
        if self.first_stage is not None:
            self.first_stage.bind(parts, processor)

    @torch.no_grad()
    def score(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Score a batch, see [`Teacher`]."""
        first = {} if self.first_stage is None else self.first_stage.score(batch)
        outputs: dict[str, Any] = {"teacher_logits": {}, "teacher_items": {}, "teacher_scores": {}}
        lists = [first["teacher_items"][name] for name in self.list_tasks]
        together = {"list_items": torch.cat(lists, dim=-1)} if lists else {}
        prompted = self.processor.with_prompts({**batch, **together})
        inputs = {name: prompted[name] for name in prompted if name not in _NO_INPUTS}
        device = batch["item_ids"].device
        with self.model.eval_mode() as model, torch.autocast(self.model.device.type, enabled=False):
            output = model(**send_to_device(inputs, model.device))
            real_BC = inputs["candidate_ids"].to(model.device) > 0
            for name in self.pair_tasks:
                found = model.heads[name].canonical_logits(output.logits[name]).float()
                known = real_BC if found.dim() == 2 else real_BC.unsqueeze(-1)
                check_numbers(found, known, name, NO_NUMBERS)
                outputs["teacher_logits"][name] = found.masked_fill(~known, float("nan"))
        begin = 0
        for name, items_BCK in zip(self.list_tasks, lists, strict=True):
            own_BCK = output.list_logits[name][..., begin : begin + items_BCK.shape[-1]].float().to(device)
            begin += items_BCK.shape[-1]
            check_numbers(own_BCK, items_BCK > 0, name, NO_NUMBERS)
            scores_BCK1 = with_mass_of(first["teacher_scores"][name], own_BCK, self.temperature(name))
            order_BCK = own_BCK.argsort(dim=-1, descending=True)
            outputs["teacher_items"][name] = items_BCK.gather(-1, order_BCK)
            ordered = scores_BCK1[..., :-1].gather(-1, order_BCK)
            outputs["teacher_scores"][name] = torch.cat([ordered, scores_BCK1[..., -1:]], dim=-1)
        return send_to_device(outputs, device)


def with_mass_of(first_BCK1: Tensor, own_BCK: Tensor, temperature: float) -> Tensor:
    r"""Own logits of listed items, raised or lowered together until the list is as likely as before.

    Args:
        first_BCK1: logits of the items (-inf = none), and last what all others weigh, at the temperature; NaN = no
            list.
        own_BCK: -inf where there is no item.

    Example:
        >>> first = torch.tensor([[[2.0, 1.0, 0.5]]])
        >>> scores = with_mass_of(first, torch.tensor([[[0.0, 3.0]]]), temperature=1.0)
        >>> torch.logsumexp(scores[..., :2], -1).allclose(torch.logsumexp(first[..., :2], -1)), scores[..., 2].item()
        (True, 0.5)
    """
    listed_BCK = first_BCK1[..., :-1]
    mass_BC1 = torch.logsumexp(listed_BCK / temperature, dim=-1, keepdim=True)
    own_mass_BC1 = torch.logsumexp(own_BCK / temperature, dim=-1, keepdim=True)
    shifted_BCK = own_BCK + temperature * (mass_BC1 - own_mass_BC1)
    return torch.cat([torch.where(torch.isnan(listed_BCK), listed_BCK, shifted_BCK), first_BCK1[..., -1:]], dim=-1)
