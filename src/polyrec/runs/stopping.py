"""Trainings that stop on Ctrl-C or SIGTERM with a checkpoint, in one line instead of a traceback."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from polyrec.core.bars import without_bars
from polyrec.core.signals import Interrupted, handled
from polyrec.training.checkpoints import newest_checkpoint
from polyrec.training.trainer import PolyRecTrainer


class StopAtStep(TrainerCallback):
    """Lets a training end after the step in which a signal came, with a checkpoint."""

    def __init__(self) -> None:
        self.number: int | None = None  # of the signal

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Request a checkpoint."""
        if self.number is not None:
            control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End when it is written."""
        if self.number is not None:
            raise Interrupted(self.number)


def train_safely(trainer: PolyRecTrainer, checkpoint: Path | None, again: str = "--resume") -> None:
    """Train; a signal ends the training after the current step, a second one at once.

    Args:
        checkpoint: to go on from.
        again: how the user goes on with it.

    Raises:
        Interrupted: says how far the training is saved.
    """
    if checkpoint is not None and trainer.is_world_process_zero():
        print(f"training goes on from {checkpoint.name}")
    stop = StopAtStep()
    trainer.add_callback(stop)
    try:
        with without_bars(when=True), _heard(stop, trainer.args.world_size == 1):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if stop.number is not None:
            raise Interrupted(stop.number)
    except KeyboardInterrupt as error:
        saved = newest_checkpoint(trainer.args.output_dir)
        how = f"{saved.name} is complete: go on with {again}" if saved else "there was no checkpoint yet"
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        raise Interrupted(number, f"interrupted at step {trainer.state.global_step}; {how}") from error
    finally:
        trainer.remove_callback(stop)


@contextmanager
def _heard(stop: StopAtStep, waits: bool) -> Iterator[None]:
    """Inside, the first signal only tells `stop`.

    Args:
        waits: False: of several processes each hears it at another step, so that they would wait for each other.
    """
    if not waits:
        yield
        return

    def hear(number: int, frame: FrameType | None) -> None:
        if stop.number is not None:
            raise Interrupted(number)
        stop.number = number
        print("stopping after this step, with a checkpoint (a second signal stops at once)", file=sys.stderr)

    with handled(hear):
        yield
