"""How much a teacher counts, by its outputs on the validation set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from polyrec.core.distillation_config import DistillationConfig


@dataclass(frozen=True)
class AlphaSelection:
    """Why a task has its alpha.

    Args:
        teacher: how good the teacher is, as `mean_improvement` counts it for one task; None = not judged.
        baseline: the same of a prediction that knows no user: a constant (0), or popularity.
        alone: the same of the student without a teacher; None = not trained.
        planned, alpha: before and after.
        reason: in words.
    """

    teacher: float | None
    baseline: float
    alone: float | None
    planned: float
    alpha: float
    reason: str


def select_alpha(planned: float, teacher: float | None, baseline: float, alone: float | None) -> AlphaSelection:
    r"""The alpha of a task.

        alpha = planned * clip((teacher - baseline) / (alone - baseline), 0, 1)

    i.e. all of it where the teacher is as good as the student alone, nothing where it is no better than a prediction
    that knows no user, and in between by the share of the student's improvement that the teacher reaches. Without a
    student alone, all or nothing.

    Example:
        >>> select_alpha(0.5, teacher=0.15, baseline=0.1, alone=0.2).alpha
        0.25
        >>> select_alpha(0.5, teacher=0.1, baseline=0.1, alone=None).reason
        'no better than a prediction that knows no user'
    """
    teacher, alone = (None if value is None or not math.isfinite(value) else value for value in (teacher, alone))
    if teacher is None:
        return AlphaSelection(
            teacher,
            baseline,
            alone,
            planned,
            planned,
            "not judged: validation has no outputs, or labels of one value",
        )
    if not teacher > baseline:
        return AlphaSelection(teacher, baseline, alone, planned, 0.0, "no better than a prediction that knows no user")
    if alone is not None and teacher < alone:
        share = (teacher - baseline) / (alone - baseline)
        reason = f"worse than the student alone: {share:.0%} of its improvement"
        return AlphaSelection(teacher, baseline, alone, planned, round(planned * share, 12), reason)
    return AlphaSelection(teacher, baseline, alone, planned, planned, "as planned")


def gated(plan: DistillationConfig, alphas: Mapping[str, AlphaSelection]) -> DistillationConfig:
    """The plan with the alphas that were found; a task that is not taught any more learns from its labels in full."""
    tasks = {}
    for name, own in plan.tasks.items():
        alpha = alphas[name].alpha
        tasks[name] = replace(own, alpha=alpha, hard_share=own.hard_share if alpha else None)
    return DistillationConfig.parse({**asdict(plan), "tasks": {n: asdict(t) for n, t in tasks.items()}}, plan.tasks)
