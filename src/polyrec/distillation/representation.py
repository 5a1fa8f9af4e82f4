"""Losses of what lies below the outputs: states, relations among them, and the gates of experts.

As with soft losses of outputs: a teacher's NaN counts as nothing, gradients reach the student alone, and all return
(sum, number or weight of the rows there are), both scalars.

Letters: D width of the student's states, Dt of the teacher's, E experts or sources of a gate, R rows compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyrec.core.distillation_config import StateDistillation
from polyrec.core.reduction import known_weight, masked_sum
from polyrec.core.registry import checked_options
from polyrec.distillation.losses import at_least_single

_SMALLEST = 1e-12  # of a gate


class StateLoss(nn.Module):
    """Base of losses of states: `forward(student [..., D], teacher [..., Dt]) -> (sum, count)`.

    Subclasses declare `default_options`. What a loss needs beside the student, as a projection, is trained with it and
    of no use afterwards.
    """

    default_options: ClassVar[dict[str, Any]] = {}

    def __init__(self, plan: StateDistillation, width: int) -> None:
        super().__init__()
        self.options = checked_options(plan.options, self.default_options, f"loss of states {plan.loss!r}")

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, progress: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Compare states.

        Args:
            student: [..., D].
            teacher: [..., Dt], NaN = no output.
            weight: [...].
            progress: which share of training is done, 0..1.
        """
        raise NotImplementedError

    def option_error(self, option: str, rule: str) -> ValueError:
        """The error that an option breaks a rule."""
        return ValueError(f"option {option!r} of a loss of states is {self.options[option]!r}; {rule}")


class StateProjection(StateLoss):
    r"""Squares after a linear map, L = sum_i w_i 1/Dt |W s_i + c - n(t_i)|^2.

    n scales each of the teacher's states to mean 0 and variance 1 (a layer normalisation without weights), so that the
    loss is about 1 at the start whatever the teacher's scale (Romero et al., 2015, "FitNets: Hints for Thin Deep Nets";
    there without n).

    Args:
        plan: option `normalize` (False: n(t) = t).
        width: D.

    Shapes: student [..., D], teacher [..., Dt], weight [...] -> scalars.

    Example:
        >>> loss = StateProjection(StateDistillation(teacher_width=6), width=4)
        >>> total, count = loss(torch.zeros(3, 4), torch.randn(3, 6))
        >>> count.item()
        3.0
    """

    default_options: ClassVar[dict[str, Any]] = {"normalize": True}

    def __init__(self, plan: StateDistillation, width: int) -> None:
        super().__init__(plan, width)
        self.project = nn.Linear(width, plan.teacher_width)

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, progress: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Mean squares over the teacher's width: (sum, count)."""
        target, known = _target(teacher, self.options["normalize"])
        losses = (at_least_single(self.project(student)) - target).square().mean(-1)
        return masked_sum(losses, known, weight)


class DistillationExperts(StateLoss):
    r"""Squares after the expert that the teacher's state selects, L = sum_i w_i 1/Dt |sum_e g_ie f_e(s_i) - n(t_i)|^2.

        g_i = softmax((log softmax(V n(t_i)) + G_i) / tau),   f_e = W_e2 relu(W_e1 s)

    (DE: Kang et al., 2020, "DE-RRD: A Knowledge Distillation Framework for Recommender System"). A small student
    cannot follow one map for all users: similar ones share an expert, others do not disturb it. G is Gumbel noise
    while training (Jang, Gu and Poole, 2017, "Categorical Reparameterization with Gumbel-Softmax"), and tau falls from
    `hottest` to `coldest` as training goes on, hottest (coldest / hottest)^progress: a mixture at first, one expert in
    the end. In evaluation there is no noise. Selection is by the teacher's state alone, so that it cannot be bent to
    what the student says already. n is that of `StateProjection`.

    Args:
        plan: options `experts` (E), `hidden` (units of an expert; None: the mean of D and Dt), `hottest`, `coldest`,
            `normalize`.
        width: D.

    Shapes: student [..., D], teacher [..., Dt], weight [...] -> scalars.

    Example:
        >>> plan = StateDistillation(teacher_width=6, loss="experts", options={"experts": 3})
        >>> loss = DistillationExperts(plan, width=4)
        >>> total, count = loss(torch.zeros(3, 4), torch.randn(3, 6), progress=0.5)
        >>> count.item()
        3.0
    """

    default_options: ClassVar[dict[str, Any]] = {
        "experts": 4,
        "hidden": None,
        "hottest": 1.0,
        "coldest": 0.01,
        "normalize": True,
    }

    def __init__(self, plan: StateDistillation, width: int) -> None:
        super().__init__(plan, width)
        experts, hidden = self.options["experts"], self.options["hidden"]
        if not (type(experts) is int and experts >= 1):
            raise self.option_error("experts", "it must be a whole number >= 1")
        hidden = (width + plan.teacher_width) // 2 if hidden is None else hidden
        if not (type(hidden) is int and hidden >= 1):
            raise self.option_error("hidden", "it must be a whole number >= 1, or None")
        if not 0 < self.options["coldest"] <= self.options["hottest"]:
            raise self.option_error("coldest", f"it must be > 0 and at most hottest, {self.options['hottest']}")
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, plan.teacher_width))
            for _ in range(experts)
        )
        self.select = nn.Linear(plan.teacher_width, experts)

    def temperature(self, progress: float) -> float:
        """How soft the selection is, tau."""
        hottest, coldest = self.options["hottest"], self.options["coldest"]
        return hottest * (coldest / hottest) ** min(max(progress, 0.0), 1.0)

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, progress: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Mean squares over the teacher's width: (sum, count)."""
        target, known = _target(teacher, self.options["normalize"])
        logits = F.log_softmax(at_least_single(self.select(target.to(self.select.weight.dtype))), dim=-1)
        if self.training:
            logits = logits - torch.empty_like(logits).exponential_().log()
        gate = torch.softmax(logits / self.temperature(progress), dim=-1).unsqueeze(-2)
        outputs = at_least_single(torch.stack([expert(student) for expert in self.experts], dim=-1))
        return masked_sum(((gate * outputs).sum(-1) - target).square().mean(-1), known, weight)


class Relations(StateLoss):
    r"""Distances and angles among the batch's states, whatever space they are in.

        L = n mean_{i != j} H(d_ij^s - d_ij^t) + n a mean_{i, j, k} H(cos_ijk^s - cos_ijk^t)

    d_ij is the distance of two states over the mean distance, cos_ijk the cosine of the angle at j between i and k, and
    H Huber's loss, e^2 / 2 up to 1 (RKD: Park et al., 2019, "Relational Knowledge Distillation"). No projection is
    needed. Of more than `rows` states as many are compared, evenly spaced, and stand for all n: angles cost rows^3.

    A part of a batch has fewer relations, so that sums over parts of a batch do not add up to the whole, and a state of
    weight 0 is left out while other weights only scale n.

    Args:
        plan: options `angle` (a; 0 = distances alone) and `rows`.
        width: D.

    Shapes: student [..., D], teacher [..., Dt], weight [...] -> scalars.

    Example:
        >>> loss = Relations(StateDistillation(teacher_width=3, loss="relation"), width=2)
        >>> states = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> rotated_and_larger = 5 * torch.cat([states.flip(1), torch.ones(3, 1)], dim=1)
        >>> total, count = loss(states, rotated_and_larger)
        >>> round(total.item(), 6), count.item()
        (0.0, 3.0)
    """

    default_options: ClassVar[dict[str, Any]] = {"angle": 2.0, "rows": 64}

    def __init__(self, plan: StateDistillation, width: int) -> None:
        super().__init__(plan, width)
        if not self.options["angle"] >= 0:
            raise self.option_error("angle", "it must be a weight >= 0")
        if not (type(self.options["rows"]) is int and self.options["rows"] >= 3):
            raise self.option_error("rows", "it must be a whole number >= 3")

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, progress: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Mean losses of relations, times the number of states: (sum, count)."""
        known = ~torch.isnan(teacher).any(-1)
        scale = known_weight(known, weight).flatten()
        at = scale.nonzero().squeeze(-1)
        if len(at) > self.options["rows"]:
            at = at[torch.linspace(0, len(at) - 1, self.options["rows"], device=at.device).long()]
        mine, theirs = (
            _Relation(at_least_single(side.flatten(0, -2).index_select(0, at))) for side in (student, teacher.detach())
        )
        rows = len(at)
        loss = F.huber_loss(mine.distances, theirs.distances, reduction="sum") / max(rows * (rows - 1), 1)
        if self.options["angle"]:
            between = F.huber_loss(mine.angles(), theirs.angles(), reduction="sum")
            loss = loss + self.options["angle"] * between / max(rows * (rows - 1) * (rows - 2), 1)
        return loss * scale.sum(), scale.sum()


class _Relation:
    """Differences among rows [R, D], and their lengths over the mean length, [R, R]; equal rows have length 0."""

    def __init__(self, states: Tensor) -> None:
        self.apart_RRD = states.unsqueeze(0) - states.unsqueeze(1)
        self.length_RR = torch.linalg.vector_norm(self.apart_RRD, dim=-1)
        mean = self.length_RR.sum() / (self.length_RR > 0).sum().clamp(min=1)
        self.distances = self.length_RR / torch.where(mean > 0, mean, 1.0)

    def angles(self) -> Tensor:
        """Cosines at the first of three rows, [R, R, R]; 0 where two of them are equal."""
        # Not F.normalize: where two rows are equal its gradient is about 1e12.
        direction_RRD = self.apart_RRD / torch.where(self.length_RR > 0, self.length_RR, 1.0).unsqueeze(-1)
        return direction_RRD @ direction_RRD.mT


STATE_LOSSES: Mapping[str, type[StateLoss]] = {
    "projection": StateProjection,
    "experts": DistillationExperts,
    "relation": Relations,
}


def state_loss(plan: StateDistillation, width: int) -> StateLoss:
    """The loss that a plan names.

    Args:
        plan: of states.
        width: D, of the student's states.
    """
    return STATE_LOSSES[plan.loss](plan, width)


def gate_kl(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""How much of each source a task takes, L = sum_i w_i KL(g_i^t || g_i^s), of gates that sum to 1.

    Attention transfer (Zagoruyko and Komodakis, 2017, "Paying More Attention to Attention") for gates: the student
    learns which source to weigh. That makes sense where both weigh the same sources, see `same_sources`, and these
    mean the same, as in a student that began with the teacher's experts.

    Shapes: gates [B, C, E], weight [B, C] -> scalars.

    Example:
        >>> total, count = gate_kl(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]]))
        >>> round(total.item(), 4), count.item()  # log 2
        (0.6931, 1.0)
    """
    student, teacher = at_least_single(student), at_least_single(teacher.detach())
    known = ~torch.isnan(teacher).any(-1)
    gate = torch.where(known.unsqueeze(-1), teacher, 0.0)
    losses = (torch.xlogy(gate, gate) - gate * student.clamp(min=_SMALLEST).log()).sum(-1)
    return masked_sum(losses, known, weight)


def same_sources(student: Mapping[str, Sequence[str]], teacher: Mapping[str, Sequence[str]]) -> None:
    """Refuse gates {task: names of sources} that cannot be compared.

    Example:
        >>> same_sources({"like": ["expert 0", "expert 1"]}, {"like": ["expert 0", "expert 1", "expert 2"]})
        Traceback (most recent call last):
            ...
        ValueError: the gates of teacher and student weigh different sources: task 'like': expert 0, expert 1 (student)
        and expert 0, expert 1, expert 2 (teacher): use the teacher's experts and expert_options, or set gates=0
    """

    def listed(names: Sequence[str]) -> str:
        return ", ".join(names) or "none"

    differing = [
        f"task {task!r}: {listed(names)} (student) and {listed(teacher.get(task, []))} (teacher)"
        for task, names in student.items()
        if list(names) != list(teacher.get(task, []))
    ]
    if differing or not student:
        found = "; ".join(differing) or "the student has none"
        raise ValueError(
            f"the gates of teacher and student weigh different sources: {found}: use the teacher's experts and "
            "expert_options, or set gates=0"
        )


def _target(teacher: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """The teacher's states, in single precision, without gradient and NaN, and which there are."""
    teacher = at_least_single(teacher.detach())
    known = ~torch.isnan(teacher).any(-1)
    target = torch.where(known.unsqueeze(-1), teacher, 0.0)
    return (F.layer_norm(target, target.shape[-1:]) if normalize else target), known
