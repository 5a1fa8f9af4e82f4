"""How a student learns from a teacher, task by task: strict values that travel with the model's configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from polyrec.core.ranges import AT_LEAST_ONE, BELOW_ONE, NOT_NEGATIVE, POSITIVE
from polyrec.core.registry import nearest
from polyrec.core.schema import from_dict
from polyrec.core.settings import SettingError, conform, shown


@dataclass(frozen=True)
class TaskDistillation:
    r"""How one task learns from the teacher's outputs beside its labels.

        L = h(t) * hard + alpha(t) * soft,   h = 1 - alpha(t) unless `hard_share` says otherwise

    where both are means over what the batch knows (labels; the teacher's outputs), and a soft loss of probabilities is
    multiplied by temperature^2, which keeps its gradient as large as without (Hinton et al., 2015, "Distilling the
    Knowledge in a Neural Network").

    Args:
        loss: of the soft labels; "auto": the one that fits the head (KL of probabilities, squares of numbers).
        temperature: by which logits of both sides are divided; > 1 shows more of what the teacher thinks of unlikely
            outputs. Numbers have none.
        alpha: weight of the soft loss; 0 is plain training, bit by bit.
        hard_share: weight of the hard loss; None: 1 - alpha(t).
        schedule: "constant", or how alpha falls to 0 until the end of training: "linear", "cosine".
        warmup: share of training in which alpha rises from 0.
        top_k: items per list of teacher outputs of a retrieval task.
        options: of the loss.

    Example:
        >>> plan = TaskDistillation(alpha=0.8, schedule="linear", warmup=0.1)
        >>> [round(plan.alpha_at(t), 2) for t in (0, 0.05, 0.1, 0.55, 1)]
        [0.0, 0.4, 0.8, 0.4, 0.0]
    """

    loss: str = "auto"
    temperature: Annotated[float, POSITIVE] = 1.0
    alpha: Annotated[float, NOT_NEGATIVE] = 0.5
    hard_share: Annotated[float, NOT_NEGATIVE] | None = None
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Annotated[float, BELOW_ONE] = 0.0
    top_k: Annotated[int, AT_LEAST_ONE] = 100
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        conform(self)
        if self.hard_share is None and self.alpha > 1:
            raise ValueError(f"alpha is {self.alpha}; it must be in [0, 1], or give hard_share beside it")

    @property
    def acts(self) -> bool:
        """Whether it changes anything."""
        return self.alpha > 0 or self.hard_share is not None

    def alpha_at(self, progress: float) -> float:
        """Weight of the soft loss when this share of training is done."""
        if progress < self.warmup:
            return self.alpha * progress / self.warmup
        left = 1 - min((progress - self.warmup) / (1 - self.warmup), 1.0)
        falling = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}
        return self.alpha * falling[self.schedule]

    def hard_share_at(self, progress: float) -> float:
        """Weight of the hard loss when this share of training is done."""
        return 1 - self.alpha_at(progress) if self.hard_share is None else self.hard_share


@dataclass(frozen=True)
class StateDistillation:
    """Learning from the teacher's states, see `polyrec.distillation.representation`.

    Args:
        loss: "projection" (squares, after a linear map), "experts" (distillation experts) or "relation" (distances and
            angles among the batch's states).
        teacher_width: of the teacher's states.
        weight: of the loss.
        options: of the loss.
    """

    teacher_width: Annotated[int, AT_LEAST_ONE]
    loss: Literal["projection", "experts", "relation"] = "projection"
    weight: Annotated[float, POSITIVE] = 0.1
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        conform(self, where="states")


@dataclass(frozen=True)
class DistillationConfig:
    """What a student learns from its teacher.

    Args:
        tasks: {task: how}; tasks that are not in it learn from their labels alone.
        separate: let the loss weighting see the hard losses alone, and add the soft ones with constant weights
            (lambda * alpha). By default both are one task's loss.
        states: of states, or None.
        gates: weight of the KL between the gates of teacher and student, whose experts must be the same; 0 = none.
        unlabelled: items sampled per window that only the teacher labels: soft targets for items without
            labels. Stored outputs have some if they were asked for (`polyrec score --unlabelled`).
        teacher: what taught it, for the record.

    Example:
        >>> DistillationConfig.parse({"tasks": {"like": {"alpha": 0.7}}}, ["like"]).tasks["like"].alpha
        0.7
        >>> DistillationConfig.parse({"tasks": {"likes": {}}}, ["like"])
        Traceback (most recent call last):
            ...
        ValueError: distillation: unknown task 'likes'; did you mean 'like'? known: like
    """

    tasks: dict[str, TaskDistillation]
    separate: bool = False
    states: StateDistillation | None = None
    gates: Annotated[float, NOT_NEGATIVE] = 0.0
    unlabelled: Annotated[int, NOT_NEGATIVE] = 0
    teacher: str | None = None

    def __post_init__(self) -> None:
        conform(self, where="distillation")

    @classmethod
    def parse(cls, values: DistillationConfig | Mapping[str, Any], task_names: Iterable[str]) -> DistillationConfig:
        """From plain values, strictly."""
        names = list(task_names)
        plain = asdict(values) if isinstance(values, DistillationConfig) else dict(values)
        tasks = {}
        given = plain.pop("tasks", {})
        if not isinstance(given, Mapping):
            raise SettingError(
                "distillation.tasks", f"is {shown(given)}; it must be a mapping such as {{like: {{alpha: 0.5}}}}"
            )
        for name, own in given.items():
            if f"{name}_soft" in names:
                raise ValueError(f"distillation: the soft loss of {name!r} has the name of the task '{name}_soft'")
            if name not in names:
                raise ValueError(f"distillation: unknown task {name!r}; {nearest(name, names)}")
            try:
                tasks[name] = from_dict(TaskDistillation, own or {})
            except ValueError as error:
                raise ValueError(f"distillation of task {name!r}: {error}") from error
        states = plain.pop("states", None)
        found = None if states is None else from_dict(StateDistillation, states)
        return from_dict(cls, {**plain, "tasks": tasks, "states": found})
