"""`PolyRecCrossEncoderConfig`: everything needed to rebuild a cross-encoder, strict about its keys."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig

from polyrec.core.backbones import TextConfig
from polyrec.core.configuration_multitask import RANGES, MultiTaskConfig
from polyrec.core.settings import reads_arguments

# Of a text encoder of items; a cross-encoder keeps no table of vectors and reads no queries.
UNREAD = ("live_items", "catalog_negatives", "refresh_every", "fusion", "start")


@reads_arguments(RANGES)
@strict
class PolyRecCrossEncoderConfig(MultiTaskConfig):
    """Configuration of [`PolyRecCrossEncoder`].

    `processor.model_config(hidden_size=128, text={"tuning": "lora"}, ...)` fills `tasks`, `features`, `num_items` and
    `text` from the data. Beside the arguments of [`MultiTaskConfig`]:

    Args:
        text: the pretrained encoder or decoder that reads prompts and how it is tuned, see [`TextConfig`]; its
            `chunk_tokens` bound the memory of a batch.
        hidden_size: width of what experts and heads read.

    Example:
        >>> config = PolyRecCrossEncoderConfig(tasks=[{"name": "buy", "head": "binary"}], hidden_sise=8)
        Traceback (most recent call last):
            ...
        ValueError: unknown key 'hidden_sise' in PolyRecCrossEncoderConfig; did you mean 'hidden_size'? known: ...
    """

    model_type = "polyrec_cross_encoder"

    hidden_size: int = 128

    def _check(self) -> None:
        super()._check()
        if self.text is None:
            raise ValueError("a cross-encoder needs a pretrained backbone: pass text={'model': ...}")
        if self.distillation is not None:
            raise ValueError(
                "a cross-encoder teaches and is not taught: leave out `distillation`, or give it to the configuration "
                "of a PolyRecForRecommendation that a CrossEncoderTeacher teaches"
            )
        for task in self.task_configs:
            if task.head == "search":
                raise ValueError(f"task {task.name!r} is a search, which a cross-encoder cannot do: leave it out")
        defaults: dict[str, Any] = {f.name: f.default for f in fields(TextConfig)}
        given = asdict(self.text)
        unread = [name for name in UNREAD if given[name] != defaults[name]]
        if unread:
            raise ValueError(f"text: a cross-encoder does not read {', '.join(unread)}: leave them out")


AutoConfig.register("polyrec_cross_encoder", PolyRecCrossEncoderConfig, exist_ok=True)
