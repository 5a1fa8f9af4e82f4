"""Pushing while training: transformers' `push_to_hub` and `hub_strategy`, without what must not leave."""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress, logging

from polyrec.hub.push import hub_api, push_folder

logger = logging.get_logger(__name__)
LAST_CHECKPOINT = "last-checkpoint"


class PushesToHub(Trainer):
    """A Trainer whose pushes are polyrec's: one commit of model, processor and card.

    `push_to_hub=True`, `hub_model_id`, `hub_strategy`, `hub_token`, `hub_private_repo`, `hub_revision` and
    `hub_always_push` mean what they mean for transformers. That one uploads the output folder as it is: with it
    would go pickled arguments and the hashes of training rows.
    """

    push_in_progress: PushInProgress | None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **options: Any,
    ) -> Any:
        """Save the model and share it; see [`~transformers.Trainer.push_to_hub`].

        Args:
            options: further ones of [`~polyrec.hub.push.push_folder`], e.g. `tags`.

        Returns:
            what was committed; with `blocking=False` a future of it.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = self.args.hub_token if token is None else token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        where = {"token": token, "revision": revision or self.args.hub_revision}
        job = hub_api().run_as_future(
            push_folder,
            self.args.output_dir,
            self.hub_model_id,
            **{"commit_message": commit_message, "load": False, **where, **options},
        )
        return job.result() if blocking else job

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        if busy:
            self._finish_current_push()  # the next commit goes on top of it
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        steps = self.args.save_strategy == SaveStrategy.STEPS
        when = f"step {self.state.global_step}" if steps else f"epoch {int(self.state.epoch)}"
        names = {
            HubStrategy.CHECKPOINT: LAST_CHECKPOINT,
            HubStrategy.ALL_CHECKPOINTS: Path(checkpoint_folder).name,
        }
        # The training goes on meanwhile, and may delete the checkpoint.
        copied = Path(tempfile.mkdtemp()) / "run"
        shutil.copytree(checkpoint_folder, copied)
        job = hub_api().run_as_future(
            _push_and_delete,
            copied,
            self.hub_model_id,
            commit_message=f"Training in progress, {when}",
            token=self.args.hub_token,
            revision=self.args.hub_revision,
            checkpoint=names.get(strategy),
            load=False,  # beside the training, which holds the very model
        )
        job.add_done_callback(_report)
        self.push_in_progress = PushInProgress([job])


def _report(job: Future) -> None:
    """A training does not end because the Hub is away, but nobody waits for this job's error either."""
    if (error := job.exception()) is not None:
        logger.warning(f"a checkpoint was not pushed: {error}")


def _push_and_delete(folder: Path, *arguments: Any, **options: Any) -> Any:
    try:
        return push_folder(folder, *arguments, **options)
    finally:
        shutil.rmtree(folder.parent)
