"""What `polyrec distill` is asked for, and the teacher and plan that follow from it. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from polyrec.core.ranges import Range
from polyrec.core.settings import conform

INITIAL_WEIGHTS = ("random", "teacher")


@dataclass(frozen=True)
class DistillSettings:
    """How a student is made.

    Args:
        teachers: folders of trained runs.
        classical: names of classical recommenders, fitted on the training set.
        teacher_outputs: folder of stored outputs on the training set.
        target_parameters, target_latency: the student's size: parameters, or milliseconds for one user. None: that of
            the recipe.
        temperature, alpha: of every task that has them; None: those of the recipe's plan, else the defaults.
        init_from: "random", or "teacher": from the weights of the first run among the teachers.
        baseline: also train the student without a teacher, to compare.
        ablations: also train it without each soft loss.
        resamples: of the bootstrap over users.
        skip_overlap_check: accept teachers whose training rows are unknown.
    """

    teachers: tuple[str, ...] = ()
    classical: tuple[str, ...] = ()
    teacher_outputs: str | None = None
    target_parameters: int | None = None
    target_latency: float | None = None
    temperature: float | None = None
    alpha: float | None = None
    init_from: str = "random"
    baseline: bool = True
    ablations: bool = False
    resamples: Annotated[int, Range(1, 1_000_000)] = 1000
    skip_overlap_check: bool = False

    def __post_init__(self) -> None:
        conform(self, where="distill")
        if not (self.teachers or self.classical or self.teacher_outputs):
            raise ValueError(
                "no teacher given: pass --teacher RUN, --classical NAME (e.g. ease) or --teacher-outputs FOLDER"
            )
        if self.target_parameters is not None and self.target_latency is not None:
            raise ValueError("give one of --target-parameters and --target-latency, not both")
        for name in ("target_parameters", "target_latency", "temperature", "resamples"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be > 0")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"--alpha is {self.alpha}; it must be in [0, 1]")
        if self.init_from not in INITIAL_WEIGHTS:
            raise ValueError(f"--init-from is {self.init_from!r}; it must be one of {', '.join(INITIAL_WEIGHTS)}")
        if self.init_from == "teacher" and not self.teachers:
            raise ValueError("--init-from teacher needs a run as a teacher: --teacher RUN")
