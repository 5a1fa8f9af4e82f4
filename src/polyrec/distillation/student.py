"""What a student learns from a teacher's outputs in one batch: a soft loss per task, beside the hard one.

Letters: B users, C candidates, M rows of some subset, D width, K numbers of an output or items of a list, N items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.reduction import known_weight, mean_loss
from polyrec.distillation.representation import gate_kl, state_loss
from polyrec.distillation.soft_losses.base import checked_plan, kind_of, scored
from polyrec.models.multitask import MultiTaskModel
from polyrec.models.teaching import FurtherLosses, StudentOutput, Sums
from polyrec.modules.encoders.item import PADDING_ITEM

STATES, GATES = "distilled_states", "distilled_gates"


class SoftLosses(FurtherLosses):
    r"""The soft losses of a configuration's `distillation`: (sum, count) per task, and how they join the hard ones.

    By default a task's loss is h(t) * hard + alpha(t) * soft, which the loss weighting sees as one; both are means over
    what the whole optimizer step knows, so that batches cut otherwise, accumulated or spread over ranks give the same
    gradient. A task whose alpha is 0 is trained as if there were no teacher, bit by bit.

    Losses of states and gates are added with constant weights. Names: the soft loss of the task `like` is `like_soft`,
    those of states and gates are `distilled_states` and `distilled_gates`.

    Args:
        heads: {task: head} of the student.
    """

    def __init__(self, config: PolyRecConfig, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        found = config.student_of
        assert found is not None  # there would be nothing to build
        self.config = found
        self.plans = {name: checked_plan(heads[name], own) for name, own in sorted(found.tasks.items()) if own.acts}
        self.states = None if found.states is None else state_loss(found.states, config.hidden_size)
        self.weights = {} if found.states is None else {STATES: found.states.weight}
        self.weights |= {GATES: found.gates} if found.gates else {}

    @property
    def names(self) -> list[str]:
        """Names of the soft losses."""
        return [*(soft_name(task) for task in self.plans), *self.weights]

    def counts(self, batch: Mapping[str, Any], heads: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """How many outputs of the teacher count, {soft name: float scalar}, before anything is computed."""
        teacher, found = batch.get("teacher") or {}, {}
        real_BC = batch["candidate_ids"] != PADDING_ITEM
        for task in self.plans:
            scored_BC = _scored(heads[task], task, teacher)
            found[soft_name(task)] = torch.zeros(()) if scored_BC is None else (scored_BC & real_BC).sum().float()
        if STATES in self.weights:
            found[STATES] = (_known(teacher, "teacher_states") & real_BC).sum().float()
        if GATES in self.weights:
            gates = _given(teacher, "teacher_gates").values()
            found[GATES] = sum(((~torch.isnan(g).any(-1) & real_BC).sum() for g in gates), torch.zeros(())).float()
        return found

    def beside_labels(
        self,
        student: StudentOutput,
        known: Mapping[str, tuple[Tensor, Tensor | None]],
        denominators: Mapping[str, Tensor] | None,
        progress: float = 0.0,
    ) -> tuple[Sums, Sums]:
        """Hard and soft losses of tasks whose labels and lists can be judged in one pass over the catalog.

        Args:
            known: {task: (items that were taken, int64 [B, C], 0 = no label; weights [B, C] or None)}.
            denominators: see the model's `forward`.
        """
        hard: Sums = {}
        soft: Sums = {}
        for task, (targets_BC, weight_BC) in known.items():
            plan, head, name = self.plans.get(task), student.heads[task], soft_name(task)
            scored_BC = _scored(head, task, student.teacher)
            if plan is None or scored_BC is None or self.config.separate or not kind_of(head).beside_labels(head, plan):
                continue
            hard_share, alpha = plan.hard_share_at(progress), plan.alpha_at(progress)
            if not hard_share > 0 or not alpha > 0 or student.items.rows_M is not None:
                continue
            scored_BC = scored_BC & student.real_BC
            counts = torch.stack([known_weight(targets_BC > 0, weight_BC).sum(), scored_BC.sum().float()])
            if denominators is not None:
                counts = torch.stack([denominators[task], denominators[name]])
            each = torch.tensor([hard_share, alpha], device=counts.device) / torch.where(counts > 0, counts, 1.0)
            rows_M = ((targets_BC > 0) | scored_BC).flatten().nonzero().squeeze(-1)
            rows = _Rows(rows_M, task, student)
            unscored_M1 = ~scored_BC.flatten()[rows_M].unsqueeze(1)
            hard[task], soft[name] = kind_of(head).with_labels(
                head,
                plan,
                rows.query_state_MD,
                targets_BC.flatten()[rows_M],
                rows.listed_MK,
                rows.teacher_MK1.masked_fill(unscored_M1, float("nan")),
                student.items,
                each[1] / each[0],
                None if weight_BC is None else weight_BC.flatten()[rows_M],
                rows.own_M,
                rows.context,
            )
        return hard, soft

    def forward(self, student: StudentOutput, progress: float = 0.0, found: Sums | None = None) -> Sums:
        """Soft losses of a batch, (sum, count) each; zeros, with a gradient, where the teacher said nothing.

        Args:
            found: those that are there already.
        """
        found, teacher = dict(found or {}), student.teacher
        for task, plan in self.plans.items():
            head = student.heads[task]
            if soft_name(task) in found:
                continue
            if head.reads == "state":
                found[soft_name(task)] = self._list(task, student)
            elif task in (teacher.get("teacher_logits") or {}):
                canonical = student.pairs.pack(teacher["teacher_logits"][task])
                found[soft_name(task)] = kind_of(head).loss(
                    head, student.logits[task], canonical, plan, None, student.labels.get(task)
                )
            else:
                nothing = 0.0 * student.logits[task].sum()
                found[soft_name(task)] = nothing, nothing.new_zeros(())
        if self.states is not None:
            mine, theirs = (student.pairs.pack(x) for x in (student.state_BCD, _given(teacher, "teacher_states")))
            found[STATES] = self.states(mine, theirs, progress=progress)
        if GATES in self.weights:
            gates = {n: student.pairs.pack(gate) for n, gate in _given(teacher, "teacher_gates").items()}
            parts = [gate_kl(student.gates[name], gates[name]) for name in sorted(gates)]
            found[GATES] = sum(part[0] for part in parts), sum(part[1] for part in parts)
        return found

    def _list(self, task: str, student: StudentOutput) -> tuple[Tensor, Tensor]:
        head = student.heads[task]
        scored_BC = _scored(head, task, student.teacher)
        rows_M = torch.zeros(0, dtype=torch.int64, device=student.state_BCD.device)
        if scored_BC is not None:
            rows_M = (scored_BC & student.real_BC).flatten().nonzero().squeeze(-1)
        if not len(rows_M):
            nothing = 0.0 * student.state_BCD.sum()
            return nothing, nothing.new_zeros(())
        rows = _Rows(rows_M, task, student)
        return kind_of(head).lists(
            head,
            self.plans[task],
            rows.query_state_MD,
            rows.listed_MK,
            rows.teacher_MK1,
            student.items,
            student.counts_N,
            student.negatives.get(task),
            rows.own_M,
            rows.context,
        )

    def means(self, found: Sums, divisors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Sums divided by the counts of the whole optimizer step, or by their own."""
        return {n: mean_loss(total, count if divisors is None else divisors[n]) for n, (total, count) in found.items()}

    def taught(self, found: Sums, divisors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """{task: whether the teacher has scored anything, bool scalar}: its outputs are labels, too."""
        names = {task: soft_name(task) for task in self.plans}
        return {t: (found[name][1] if divisors is None else divisors[name]) > 0 for t, name in names.items()}

    def alphas(self, progress: float) -> dict[str, float]:
        """{soft name: weight of that loss in its task's}."""
        return {soft_name(task): plan.alpha_at(progress) for task, plan in self.plans.items()} | self.weights

    def join(
        self, hard: Mapping[str, Tensor], soft: Mapping[str, Tensor], progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Mean losses of the tasks with the soft ones in them, and, if they are kept apart, those to be added.

        Args:
            hard: {task: mean loss of its labels}.
            soft: {soft name: mean loss}.
            progress: share of the training that is done.
        """
        joined, apart = dict(hard), {}
        for task, plan in self.plans.items():
            alpha, own = plan.alpha_at(progress), soft[soft_name(task)]
            joined[task] = plan.hard_share_at(progress) * hard[task]
            if self.config.separate:
                apart[task] = alpha * own
            else:
                joined[task] = joined[task] + alpha * own
        return joined, apart

    def further(self, soft: Mapping[str, Tensor]) -> list[Tensor]:
        """Weighted losses of what is no task."""
        return [weight * soft[name] for name, weight in self.weights.items()]


class _Rows:
    """What soft losses of a head that scores the catalog read of some candidates of a batch, and what the teacher
    says."""

    def __init__(self, rows_M: Tensor, task: str, student: StudentOutput) -> None:
        def of(values_BC: Tensor | None) -> Tensor | None:
            return None if values_BC is None else values_BC.flatten(0, 1).index_select(0, rows_M)

        head, queries, teacher = student.heads[task], student.queries, student.teacher
        self.listed_MK = teacher["teacher_items"][task].flatten(0, 1).index_select(0, rows_M)
        self.teacher_MK1 = teacher["teacher_scores"][task].flatten(0, 1).index_select(0, rows_M)
        self.context = student.context.rows(rows_M)
        self.query_state_MD = head.query_state(
            of(student.state_BCD), None if queries is None else of(queries.vectors_BCD)
        )
        self.own_M = of(queries.own_items_BC) if queries is not None and head.excludes == "own item" else None


def attach_soft_losses(model: MultiTaskModel, seed: int = 0) -> None:
    """Let a model's `forward` add what its configuration says that it learns of a teacher (`distillation`).

    Their parameters are trained with the model and saved with its checkpoints; a model that is loaded does without.

    Args:
        model: of which the losses become a part, `model.soft_losses`.
        seed: of their parameters.
    """
    if not model.config.distillation or model.soft_losses is not None:
        return
    with torch.random.fork_rng(devices=[]):  # a student's other draws are those of the model without a teacher
        torch.manual_seed(seed)
        losses = SoftLosses(model.config, model.heads)
        for module in losses.modules():
            model._init_weights(module)
    model.soft_losses = losses.to(model.device, model.dtype)


def soft_name(task: str) -> str:
    """Name of the soft loss of a task, in logs and counts."""
    return f"{task}_soft"


def blank(teacher: Mapping[str, Any], rows: slice) -> None:
    """Take the outputs for some windows back, in place."""
    for kind in ("teacher_logits", "teacher_scores", "teacher_gates"):
        for values in (teacher.get(kind) or {}).values():
            values[rows] = float("nan")
    if "teacher_states" in teacher:
        teacher["teacher_states"][rows] = float("nan")


def _scored(head: Any, task: str, teacher: Mapping[str, Any]) -> Tensor | None:
    """Which candidates the teacher scored, bool [B, C]; None = it does not know the task."""
    if head.reads == "pair":
        logits = (teacher.get("teacher_logits") or {}).get(task)
        return None if logits is None else scored(head, logits)
    scores = (teacher.get("teacher_scores") or {}).get(task)
    return None if scores is None else ~torch.isnan(scores).any(-1)


def _given(teacher: Mapping[str, Any], kind: str) -> Any:
    if kind not in teacher:
        name = kind.removeprefix("teacher_")
        raise ValueError(
            f"the student learns from {name}, which the teacher does not give: LiveTeacher(..., {name}=True)"
        )
    return teacher[kind]


def _known(teacher: Mapping[str, Any], kind: str) -> Tensor:
    return ~torch.isnan(_given(teacher, kind)).any(-1)
