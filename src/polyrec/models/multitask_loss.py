"""`MultiTaskLoss`: what the labels of a batch, a teacher and the objectives add up to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polyrec.core.reduction import mean_loss
from polyrec.models.pretrained import PolyRecOutput
from polyrec.models.teaching import FurtherLosses, Sums
from polyrec.models.training_pass import LossStep, SampledItems, TrainingPass
from polyrec.modules.coupling.base import CoupledTask
from polyrec.modules.encoders.shared import gramian
from polyrec.modules.objectives.base import mean_losses
from polyrec.modules.weighting.base import StepContext


class MultiTaskLoss:
    r"""The loss of a batch, L = weighting({task: h sum_hard / n + alpha sum_soft / m}) + further + objectives.

    A task's sum of losses is divided by its known labels (n) and that of its soft loss by the teacher's outputs (m), of
    the whole optimizer step. The weighting makes one scalar of the tasks' means; what a teacher says of states and
    gates, the experts' penalty and the objectives are added with constant weights.

    It holds modules of a model and none of its own. A subclass says what a retrieval task loses, `state_loss`.

    Args:
        heads, couplings: {task: module}.
        parents: {task: parent}.
        weighting: of the model.
        soft_losses: what a trainer has attached, see `polyrec.distillation.student`.
        objectives: {name: objective}; none outside of training.
    """

    def __init__(
        self,
        heads: Mapping[str, Any],
        couplings: Mapping[str, Any],
        parents: Mapping[str, str],
        weighting: Any,
        soft_losses: FurtherLosses | None = None,
        objectives: Mapping[str, Any] | None = None,
    ) -> None:
        self.heads, self.couplings, self.parents = heads, couplings, parents
        self.weighting, self.soft_losses, self.objectives = weighting, soft_losses, objectives or {}

    def __call__(self, output: PolyRecOutput, found: TrainingPass, step: LossStep) -> None:
        """Put `loss` and all that it is made of into the output of a forward pass."""
        soft_losses = self.soft_losses if found.teacher else None
        student = None if soft_losses is None else found.student(self.heads)
        hard: Sums = {}
        soft: Sums | None = None
        if soft_losses is not None and student is not None:
            targets = self.targets(found)
            hard, soft = soft_losses.beside_labels(student, targets, step.denominators, step.progress)
        sums = {name: hard[name] if name in hard else self.task_loss(name, found) for name in self.heads}
        if soft_losses is not None and student is not None:
            soft = soft_losses(student, step.progress, soft)
        output.losses = {name: total for name, (total, _) in sums.items()}
        output.counts = {name: count for name, (_, count) in sums.items()}
        self._combine(output, found, step, soft)
        if self.objectives and found.reading is not None:
            output.objectives = mean_losses(self.objectives, found.reading, found.drawn, step.denominators)
            weighted = (self.objectives[name].weight * loss for name, loss in output.objectives.items())
            output.loss = output.loss + sum(weighted)

    def task_loss(self, name: str, found: TrainingPass) -> tuple[Tensor, Tensor]:
        """Sum of a task's losses and the number (or weight) of its known labels.

        A task that is not in the labels of a batch (of another data set) contributes 0, with a gradient of 0.
        """
        if name in self.parents:
            return self._coupled_loss(name, found)
        is_pair_task = self.heads[name].reads == "pair"
        if name not in found.labels:
            return nothing((found.pair_output.logits if is_pair_task else found.logits)[name])
        if not is_pair_task:
            return self.state_loss(name, found)
        weight = found.packed(found.sample_weight, name)
        return self.heads[name].loss(found.pair_output.logits[name], found.packed(found.labels, name), weight)

    def sample(self, item_encoder: Any, teacher: Mapping[str, Any]) -> SampledItems:
        """Draw the items that have to be encoded beside those of the batch, before anything is encoded."""
        return SampledItems()

    def state_loss(self, name: str, found: Any) -> tuple[Tensor, Tensor]:
        """The same of a retrieval task that has labels."""
        raise NotImplementedError

    def targets(self, found: Any) -> dict[str, tuple[Tensor, Tensor | None]]:
        """{retrieval task: (positives, 0 = not or unknown, [B, C], and their weights)}."""
        return {}

    def _coupled_loss(self, name: str, found: TrainingPass) -> tuple[Tensor, Tensor]:
        own, parent = found.pair_output, self.parents[name]
        unknown = torch.full((1, len(found.pairs.index_M)), float("nan"), device=own.logits[name].device)
        labels, parent_labels = (found.packed(found.labels, task) for task in (name, parent))
        task = CoupledTask(
            self.heads[name],
            own.experts.hidden[name],
            own.own_logits[name],
            own.logits[name],
            own.logits[parent],
            unknown if labels is None else labels,
            unknown if parent_labels is None else parent_labels,
            found.packed(found.sample_weight, name),
        )
        return self.couplings[name].loss(task)

    def _combine(self, output: PolyRecOutput, found: TrainingPass, step: LossStep, soft: Sums | None) -> None:
        """Make the objective of the tasks' `losses` and `counts` in the output."""
        assert output.losses is not None
        assert output.counts is not None
        divisors = output.counts if step.denominators is None else step.denominators
        means = {name: mean_loss(total, divisors[name]) for name, total in output.losses.items()}
        added, active = list[Tensor](), {name: divisors[name] > 0 for name in means}
        if soft is not None and self.soft_losses is not None:
            output.soft = self.soft_losses.means(soft, step.denominators)
            means, apart = self.soft_losses.join(means, output.soft, step.progress)
            for task, taught in self.soft_losses.taught(soft, step.denominators).items():
                if task not in apart:
                    active[task] = active[task] | taught
            added = [*self.weighting.scaled(apart).values(), *self.soft_losses.further(output.soft)]
        means = self.weighting.scaled(means)
        context = StepContext(step.share, active)
        if self.weighting.needs_gradients and torch.is_grad_enabled():
            output.gramian = context.gramian = gramian(means, found.meeting)
        output.loss, output.weights = self.weighting(means, context)
        for more in added:
            output.loss = output.loss + more
        if (penalty := found.pair_output.experts.penalty) is not None:
            output.loss = output.loss + step.share * penalty


def nothing(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of a task without labels in a batch: 0, with a gradient of 0, of 0 labels."""
    total = 0.0 * logits.sum()
    return total, total.new_zeros(())
