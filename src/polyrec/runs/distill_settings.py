"""Settings of `polyrec distill` and `polyrec score`. Light to import: flags are made of these fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from polyrec.core.ranges import AT_LEAST_ONE, POSITIVE, SHARE, Range
from polyrec.core.settings import conform


@dataclass(frozen=True)
class DistillSettings:
    """How a student is made.

    Args:
        teachers: folder of a trained run, or several for an ensemble.
        classical: ease, item_knn, als, bpr, popularity, lightgbm (pair tasks only), fitted on the training set.
        teacher_outputs: folder of outputs on the training split, stored by `polyrec score`.
        target_parameters: widest student with at most so many parameters (default: the recipe's size).
        target_latency: widest student that serves one user within so many milliseconds (default: the recipe's size).
        temperature: temperature of the soft losses (default: from the recipe, else 1).
        alpha: weight of the soft losses (default: from the recipe, else 0.5).
        init_from: initial weights of the student: random, or those of the first --teacher.
        baseline: train a student without a teacher to compare with.
        ablations: also train without each soft loss in turn.
        resamples: bootstrap resamples over users.
        skip_overlap_check: accept a teacher whose training rows are unknown: it may have seen the validation or test
            split.
    """

    teachers: tuple[str, ...] = ()
    classical: tuple[str, ...] = ()
    teacher_outputs: str | None = None
    target_parameters: Annotated[int, AT_LEAST_ONE] | None = None
    target_latency: Annotated[float, POSITIVE] | None = None
    temperature: Annotated[float, POSITIVE] | None = None
    alpha: Annotated[float, SHARE] | None = None
    init_from: Literal["random", "teacher"] = "random"
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
        if self.init_from == "teacher" and not self.teachers:
            raise ValueError("--init-from teacher needs a run as a teacher: --teacher RUN")


@dataclass(frozen=True)
class ScoreSettings:
    """How outputs are written.

    Args:
        split: which split to score.
        top_k: items per list (default: from the recipe, else 100).
        temperature: temperature of the student's soft losses (default: from the recipe, else 1).
        shard_rows: candidates per file, about.
        batch_size: windows per batch.
        unlabelled: also score so many sampled items per candidate for pair tasks, for distillation.unlabelled.
        skip_overlap_check: accept a teacher whose training rows are unknown: it may have seen the validation or test
            split.
    """

    split: Literal["train", "valid", "test"] = "train"
    top_k: Annotated[int, Range(1, 1_000_000)] | None = None
    temperature: Annotated[float, POSITIVE] | None = None
    shard_rows: Annotated[int, Range(1, 10**9)] = 100_000
    batch_size: Annotated[int, Range(1, 1_000_000)] = 64
    unlabelled: Annotated[int, Range(0, 1_000_000)] = 0
    skip_overlap_check: bool = False

    def __post_init__(self) -> None:
        conform(self, where="score")
