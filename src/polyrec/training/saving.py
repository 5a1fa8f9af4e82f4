"""What a training has on disk beside weights, and the averaged weights that are evaluated and saved."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from polyrec.core.bars import without_bars
from polyrec.core.secrets import without_secrets
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.training.callbacks import CheckpointedCallback, WeightAveraging
from polyrec.training.resuming import ResumesSafely

CALLBACK_STATES = "callbacks.safetensors"


class SavesAverages(ResumesSafely):
    """A Trainer that saves processor, arguments without secrets and the state of callbacks; no file is a pickle."""

    _bare: tuple[Any, PolyRecForRecommendation] | None = None  # see `_unwrapped`

    @property
    def _checkpointed_callbacks(self) -> list[CheckpointedCallback]:
        return [c for c in self.callback_handler.callbacks if isinstance(c, CheckpointedCallback)]

    def _averaged(self) -> AbstractContextManager[None]:
        """Inside, the model has averaged weights, if weights are averaged."""
        found = [c for c in self._checkpointed_callbacks if isinstance(c, WeightAveraging)]
        return found[0].applied(self._unwrapped) if found else nullcontext()

    @property
    def _unwrapped(self) -> PolyRecForRecommendation:
        """The bare model; it is looked for once, as accelerate walks through all modules each time."""
        if self._bare is None or self._bare[0] is not self.model:
            self._bare = self.model, self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return self._bare[1]

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save model and processor; training arguments as JSON, because transformers' own file is a pickle."""
        with self._averaged(), without_bars(self.args.disable_tqdm):
            super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        (folder / "training_args.bin").unlink(missing_ok=True)
        written = json.dumps(without_secrets(self.args.to_dict()), indent=2)
        (folder / "training_args.json").write_text(written + "\n", encoding="utf-8")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self._checkpointed_callbacks:
            states = {
                f"{type(callback).__name__}/{key}": value.contiguous()
                for callback in self._checkpointed_callbacks
                for key, value in callback.tensors(self._unwrapped).items()
            }
            save_file(states, Path(output_dir) / CALLBACK_STATES)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not (path := Path(checkpoint) / CALLBACK_STATES).exists():
            return
        states = load_file(path, device=str(self.args.device))
        for callback in self._checkpointed_callbacks:
            start = f"{type(callback).__name__}/"
            own = {key.removeprefix(start): value for key, value in states.items() if key.startswith(start)}
            if own:
                callback.load_tensors(self._unwrapped, own)
