"""Settings of `polyrec finetune` and `polyrec update`. Light to import: flags are made of these fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from polyrec.core.ranges import NOT_NEGATIVE, POSITIVE, SHARE, Range
from polyrec.core.settings import conform

_SEED = Range(0, 2**32 - 1)


@dataclass(frozen=True)
class FinetuneSettings:
    """How one task goes on.

    Args:
        task: the task.
        scope: what is trained (default: task). "task": its head, its linear skip and a low-rank adapter before the
            head; everything else stays. "all": every weight, by this task's loss alone: others change, and the report
            says by how much.
        rank: rank of the adapter, 0 = none.
        epochs: epochs; the one that is best on the validation set is kept.
        learning_rate: peak learning rate.
        seed: of the adapter and of training.
    """

    task: str
    scope: Literal["task", "all"] = "task"
    rank: Annotated[int, Range(0, 65_536)] = 8
    epochs: Annotated[int, Range(1, 100_000)] = 3
    learning_rate: Annotated[float, POSITIVE] = 1e-3
    seed: Annotated[int, _SEED] = 0

    def __post_init__(self) -> None:
        conform(self, where="finetune")


@dataclass(frozen=True)
class UpdateSettings:
    """How a model learns new events; the defaults were chosen on ml-100k, before its test set (`model_cards`).

    Args:
        epochs: epochs over new and replayed events.
        learning_rate: peak learning rate (default: 0.3 of the run's). None: `rate_share` of it.
        rate_share: share of the run's rate that is the peak where `learning_rate` is None.
        replay: share of old windows to replay. See `polyrec.data.replay`.
        members: number of short trainings whose weights are averaged. They begin at the same weights, each with a
            replay and an order of its own. One of them is noisy, as its events are few, and the mean gained more than
            any (Wortsman et al., 2022, "Model Soups: Averaging Weights of Multiple Fine-Tuned Models Improves Accuracy
            without Increasing Inference Time"). The cost is theirs together.
        freeze_skip: freeze the linear skip from running statistics (`LinearSkip`). Statistics are as fresh as the
            events themselves; letting a few events change what they mean cost whole steps (measured,
            `model_cards/update.md`).
        holdout: share of the new events, the latest, to hold out. Without any, nobody knows whether the update helped.
        max_regression: relative drop of a metric that is allowed on any slice. Beyond it, an update does not replace
            the old model.
        confidence: count only drops whose paired interval over users, at this level, holds no gain, and those of
            metrics without an interval; of a few events most drops are chance. None (default): count all.
        seed: of the draw of replayed windows and of training.
    """

    epochs: Annotated[int, Range(1, 100_000)] = 1
    learning_rate: Annotated[float, POSITIVE] | None = None
    rate_share: Annotated[float, POSITIVE] = 0.3
    replay: Annotated[float, SHARE] = 0.2
    members: Annotated[int, Range(1, 1_000)] = 3
    freeze_skip: bool = True
    holdout: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.1
    max_regression: Annotated[float, NOT_NEGATIVE] = 0.05
    confidence: Annotated[float, Range(0, 1, open_low=True, open_high=True)] | None = None
    seed: Annotated[int, _SEED] = 0

    def __post_init__(self) -> None:
        conform(self, where="update")
