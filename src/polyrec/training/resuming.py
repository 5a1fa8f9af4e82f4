"""Checkpoints of a Trainer that are whole, and resuming that cannot mix two trainings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import logging

from polyrec.training.arguments import PolyRecTrainingArguments
from polyrec.training.checkpoints import (
    STATE_NAME,
    clear_leftovers,
    damage,
    disk_error,
    facts_of,
    finish_checkpoint,
    keep_newest,
    newest_checkpoint,
    unfinished,
)
from polyrec.training.hub import PushesToHub

logger = logging.get_logger(__name__)


class ResumesSafely(PushesToHub):
    """A Trainer whose checkpoints appear under their names when they are complete, each with a manifest.

    * `train(resume_from_checkpoint=True)` takes the newest complete checkpoint and names damaged ones.
    * A checkpoint of other data or another processor is refused.
    * `load_best_model_at_end` fails if the best checkpoint is damaged, instead of keeping the last weights.
    * `save_total_limit` spares the newest checkpoint and the best one.
    """

    args: PolyRecTrainingArguments
    facts: dict[str, Any] = {}  # what checkpoints say beside the fingerprints of data and processor, e.g. the recipe
    _writing_in: Path | None = None  # the folder of an unfinished checkpoint

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; see [`~transformers.Trainer.train`].

        Args:
            resume_from_checkpoint: a folder, or True: the newest complete checkpoint of the output folder.

        Raises:
            ValueError: the checkpoint is damaged, or was made from other data or with another processor.
        """
        if resume_from_checkpoint is True:
            found = newest_checkpoint(self.args.output_dir)
            if found is None:
                raise ValueError(f"no complete checkpoint to resume from in {self.args.output_dir}")
            resume_from_checkpoint = str(found)
        if resume_from_checkpoint:
            self._check_checkpoint(Path(resume_from_checkpoint))
            logger.info(f"training goes on from {resume_from_checkpoint}")
        if self.args.should_save:
            clear_leftovers(Path(self.args.output_dir))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _check_checkpoint(self, checkpoint: Path) -> None:
        problem = damage(checkpoint) if checkpoint.is_dir() else "there is no such folder"
        if problem:
            raise ValueError(f"cannot resume from {checkpoint}: {problem}")
        held, own = facts_of(checkpoint).get("fingerprints"), self.args.fingerprints or {}
        changed = [name for name, value in own.items() if held and held.get(name) != value]
        if changed:
            raise ValueError(
                f"cannot resume from {checkpoint}: it was begun with another {' and another '.join(changed)}, so its "
                "weights belong to other items or inputs; give the data that it was begun with, or train anew"
            )

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._init_training_state(*args, **kwargs)
        resumed = kwargs.get("resume_from_checkpoint", args[3] if len(args) > 3 else None)
        if resumed is not None:
            best_path = json.loads((Path(resumed) / STATE_NAME).read_text(encoding="utf-8"))["best_model_checkpoint"]
            # The best one lies beside the one that is gone on with, wherever the folder has moved to.
            best = None if best_path is None else Path(resumed).parent / Path(best_path).name
            if best is not None and self.args.load_best_model_at_end:
                self._check_best(best)
            self.state.best_model_checkpoint = None if best is None or not best.is_dir() else str(best)
        return found

    @staticmethod
    def _check_best(best: Path) -> None:
        """Training must not end with other weights than the best ones without a word."""
        problem = damage(best) if best.is_dir() else "there is no such folder"
        if problem:
            raise ValueError(
                f"the best checkpoint so far, {best}, cannot be used: {problem}; train anew, or resume an earlier one "
                "with load_best_model_at_end=False"
            )

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None  # the Trainer checks before
        self._check_best(Path(self.state.best_model_checkpoint))
        super()._load_best_model()

    def _get_output_dir(self, trial: Any) -> str:
        """Where checkpoints lie; the one that is being written lies in a folder of its own."""
        return super()._get_output_dir(trial) if self._writing_in is None else str(self._writing_in)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint beside its place, with a manifest, and rename it when it is whole."""
        folder, name = Path(self._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        best, pushing = self.state.best_model_checkpoint, self.args.push_to_hub
        self._writing_in, self.args.push_to_hub = unfinished(folder, name), False
        try:
            if self.args.should_save:
                shutil.rmtree(self._writing_in, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each rank has written its states
            newest = self.state.best_global_step == self.state.global_step
            self.state.best_model_checkpoint = str(folder / name) if newest else best
            if self.args.should_save:
                self.state.save_to_json(str(self._writing_in / name / STATE_NAME))
                finish_checkpoint(folder, name, {"fingerprints": self.args.fingerprints, **self.facts})
                kept = self.state.best_model_checkpoint
                keep_newest(folder, self.args.save_total_limit, {name} | ({Path(kept).name} if kept else set()))
        except Exception as error:
            if self.args.should_save:
                shutil.rmtree(self._writing_in, ignore_errors=True)
            known = disk_error(error, folder / name)
            if known is None:
                raise
            raise known from error
        finally:
            self._writing_in, self.args.push_to_hub = None, pushing
        self.accelerator.wait_for_everyone()
        if pushing:
            self._push_from_checkpoint(str(folder / name))
