"""Losses of a training: divided exactly, weighted, and logged by task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from polyrec.core.reduction import known_weight, mean_loss
from polyrec.distillation.student import blank
from polyrec.distillation.teacher import Teacher
from polyrec.distillation.unlabelled import with_unlabelled
from polyrec.models.multitask import MultiTaskModel
from polyrec.models.polyrec.modeling_polyrec import PolyRecOutput
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.models.training_pass import LossStep
from polyrec.modules.encoders.item import PADDING_ITEM
from polyrec.modules.heads.base import TaskHead
from polyrec.tracking.step_log import StepLog, learning_rates, memory
from polyrec.training.large_tables import UpdatesRows
from polyrec.training.memory import peak_memory
from polyrec.training.task_log import TaskLog


class ReducesExactly(UpdatesRows):
    """A Trainer that divides each task's sum of losses by its known labels in the whole optimizer step, over all ranks.

    Loss weightings are given the mean losses of each step, and logs what each task lost.
    """

    optimizer: torch.optim.Optimizer | None
    teacher: Teacher | None

    def _begin_logs(self, model: MultiTaskModel) -> None:
        """Make the logs of the model's losses."""
        # `compute_loss` divides by the counts of the whole accumulation window itself.
        self.loss_is_scaled_for_ga = True
        self._task_log, self._objective_log = TaskLog(model.weighting.task_names), TaskLog(list(model.objectives))
        soft_losses = None if self.teacher is None else model.soft_losses
        self._soft_log = TaskLog([] if soft_losses is None else soft_losses.names)
        self._step_log = StepLog(model.gate_sources)
        self._rates: dict[str, float] = {}
        self._task_logged_step = 0
        self._window = _Window(1.0)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> dict[str, Tensor] | None:
        """Known labels (or their weight) per task in the accumulation window, over all ranks: {task: scalar}.

        Objectives stand beside the tasks with their own counts.
        """
        if not batch_samples:
            return None
        if self.teacher is not None and self._soft_log.names:  # a plan may ask for nothing
            for number, batch in enumerate(batch_samples):
                self._score_by_teacher(self.teacher, batch, number)
        several, padded = self.args.world_size > 1, not self.args.dataloader_drop_last
        if several and padded and self.accelerator.gradient_state.end_of_dataloader:
            self._blank_repeated(batch_samples[-1])
        model = self._unwrapped
        known = {n: sum(_known(batch, head) for batch in batch_samples) for n, head in model.heads.items()}
        for name, objective in model.objectives.items():
            known[name] = sum(objective.count(model.item_encoder, b["item_ids"].to(device)) for b in batch_samples)
        if self.teacher is not None and model.soft_losses is not None:
            soft = [model.soft_losses.counts(batch, model.heads) for batch in batch_samples]
            known |= {name: sum(own[name].to(device) for own in soft) for name in model.soft_losses.names}
        counts = torch.stack([count.to(device) for count in known.values()])
        if several:
            counts = self.accelerator.reduce(counts, reduction="sum")
        self._window = _Window(1 / (len(batch_samples) * self.args.world_size))
        return dict(zip(known, counts, strict=True))

    def _blank_repeated(self, batch: dict[str, Any]) -> None:
        """Take the labels from windows that this rank reads for the second time in an epoch.

        Ranks need equally large batches, so accelerate fills the last ones up with the first windows of the epoch.
        Without labels they train nothing, and several processes do what one does.
        """
        assert self.train_dataset is not None
        size, ranks, rank = len(batch["item_ids"]), self.args.world_size, self.args.process_index
        left = len(self.train_dataset) % (size * ranks) or size * ranks
        repeated = slice(max(left - size * rank, 0), None)
        for values in batch["labels"].values():
            values[repeated] = float("nan")
        blank(batch.get("teacher") or {}, repeated)
        if self._unwrapped.objectives:
            batch["item_ids"][repeated] = PADDING_ITEM  # without labels, only objectives read these histories

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: dict[str, Tensor] | None = None,
    ) -> Any:
        """The weighted objective; with DDP multiplied by the number of ranks, because DDP averages gradients."""
        step = LossStep(num_items_in_batch, 1.0 if num_items_in_batch is None else self._window.share, self._progress)
        outputs = model(**inputs, step=step)
        if model.training and num_items_in_batch is not None:
            self._remember(inputs, outputs, num_items_in_batch)
        loss = outputs.loss * self.args.world_size if num_items_in_batch is not None else outputs.loss
        return (loss, outputs) if return_outputs else loss

    def _remember(self, inputs: dict[str, Any], outputs: PolyRecOutput, counts: dict[str, Tensor]) -> None:
        """Keep what the log and the loss weighting want to know of a batch."""
        assert outputs.losses is not None  # there are labels
        assert outputs.weights is not None
        weighting, names = self._unwrapped.weighting, self._task_log.names
        loss_T = torch.stack([mean_loss(outputs.losses[name].detach(), counts[name]) for name in names])
        weight_T = torch.stack(list(weighting.scaled({name: outputs.weights[name] for name in names}).values()))
        self._task_log.add(loss_T, weight_T, outputs.gramian)
        self._step_log.add(inputs, outputs.gates)
        if outputs.objectives is not None:
            weights = [self._unwrapped.objectives[name].weight for name in self._objective_log.names]
            losses = [outputs.objectives[name].detach() for name in self._objective_log.names]
            self._objective_log.add(torch.stack(losses), torch.tensor(weights))
        if outputs.soft:
            assert self._unwrapped.soft_losses is not None  # it made them
            alphas = self._unwrapped.soft_losses.alphas(self._progress)
            soft_T = torch.stack([outputs.soft[name].detach() for name in self._soft_log.names])
            self._soft_log.add(soft_T, torch.tensor([alphas[name] for name in self._soft_log.names]))
        self._window.add(loss_T, outputs.gramian)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: dict[str, Tensor] | None = None
    ) -> Tensor:
        """One batch; with the last one of an optimizer step the loss weighting learns from the step."""
        self._step_log.begin()
        assert self.optimizer is not None  # train() made it
        self._rates = learning_rates(self.optimizer)  # of this step; when it is logged, the scheduler has gone on
        loss = super().training_step(model, inputs, num_items_in_batch)
        weighting = self._unwrapped.weighting
        if self.accelerator.sync_gradients and weighting.observes and num_items_in_batch is not None:
            window = self._window
            values = self._reduce(window.loss_T).tolist() if self.args.world_size > 1 else window.loss_T.tolist()
            counts = torch.stack([num_items_in_batch[name] for name in self._task_log.names]).tolist()
            found = zip(self._task_log.names, values, counts, strict=True)
            weighting.observe({name: value for name, value, count in found if count > 0}, window.gramian)
        return loss

    @property
    def _progress(self) -> float:
        """Share of the training that is done."""
        return self.state.global_step / max(self.state.max_steps, 1)

    def _reduce(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, reduction="sum")

    def _score_by_teacher(self, teacher: Teacher, batch: dict[str, Any], number: int) -> None:
        """Add the teacher's outputs to a batch, the number-th of this step, and the sampled candidates that only it
        scores."""
        soft_losses = self._unwrapped.soft_losses
        assert soft_losses is not None  # without a plan a teacher is refused
        if not (unlabelled := soft_losses.config.unlabelled):
            batch["teacher"] = teacher.score(batch)
            return
        processor = self.processing_class
        assert isinstance(processor, PolyRecProcessor)  # a teacher needs one
        seed = (self.args.seed, self.state.global_step, number, self.args.process_index)
        generator = torch.Generator().manual_seed(hash(seed) % 2**63)
        drawn = teacher.draw(batch, unlabelled, processor.num_items, generator)
        batch.update(with_unlabelled(batch, drawn))
        batch["teacher"] = teacher.score({**batch, "drawn": drawn})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the tasks did since the last log, see [`TaskLog`]."""
        if "loss" in logs and self._task_log.batches:
            steps = max(self.state.global_step - self._task_logged_step, 1)
            reduce = self._reduce if self.args.world_size > 1 else None
            for log in (self._task_log, self._objective_log, self._soft_log):
                logs |= log.line(steps, reduce if log.names else None)
                log.clear()
            logs |= self._step_log.line(steps, reduce) | memory(self.args.device, peak_memory())
            logs |= self._rates
            self._step_log.clear()
            self._task_logged_step = self.state.global_step
        super().log(logs, start_time)


class _Window:
    """What the batches of one optimizer step were, on this rank."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.loss_T = torch.zeros(())
        self.gramian: Tensor | None = None

    def add(self, loss_T: Tensor, gramian: Tensor | None) -> None:
        self.loss_T = self.loss_T.to(loss_T) + loss_T
        if gramian is not None:
            self.gramian = gramian if self.gramian is None else self.gramian + gramian


def _known(batch: dict[str, Any], head: TaskHead) -> Tensor:
    """Number, or weight, of the labels of a batch that count in a head's loss, a float scalar."""
    labels = batch["labels"].get(head.task.name)
    if labels is None:
        return torch.zeros(())
    weight = (batch.get("sample_weight") or {}).get(head.task.name)
    return known_weight(head.known(labels, batch["candidate_ids"]), weight).sum()
