"""What a training costs, also when it is interrupted and resumed."""

from __future__ import annotations

import time
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from polyrec.evaluation.comparison_runs import Cost


class CostMeter(TrainerCallback, ExportableState):
    """Counts processor and wall seconds of a training, validation included.

    Its count is saved with each checkpoint and restored with it if the training arguments say
    `restore_callback_states_from_checkpoint`; work that an interruption threw away is not counted.

    Args:
        cpu_seconds, wall_seconds: spent before this process took over.
    """

    def __init__(self, cpu_seconds: float = 0.0, wall_seconds: float = 0.0) -> None:
        self._before = (cpu_seconds, wall_seconds)
        self._begin: tuple[float, float] | None = None

    @property
    def seconds(self) -> tuple[float, float]:
        """Processor and wall seconds so far."""
        if self._begin is None:
            return self._before
        cpu, wall = time.process_time() - self._begin[0], time.perf_counter() - self._begin[1]
        return self._before[0] + cpu, self._before[1] + wall

    def on_train_begin(self, *unused: Any, **also_unused: Any) -> None:
        """Start the clock."""
        self._begin = (time.process_time(), time.perf_counter())

    def on_train_end(self, *unused: Any, **also_unused: Any) -> None:
        """Stop it."""
        self._before, self._begin = self.seconds, None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        cpu, wall = self.seconds
        return {"args": {"cpu_seconds": cpu, "wall_seconds": wall}, "attributes": {}}


def cost_of(trainer: Trainer) -> Cost:
    """What the training of a trainer with a [`CostMeter`] took; resuming puts another meter into the place of ours."""
    meter = next(c for c in trainer.callback_handler.callbacks if isinstance(c, CostMeter))
    return Cost(*meter.seconds, epochs=float(trainer.state.epoch or 0), parameters=trainer.model.num_parameters())
