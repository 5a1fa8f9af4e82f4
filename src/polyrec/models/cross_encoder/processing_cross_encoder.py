"""`PolyRecCrossEncoderProcessor`: raw tables in, prompts out; saved beside the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import AutoProcessor

from polyrec.core.backbones import TextConfig, resolve
from polyrec.core.files import write_atomically
from polyrec.core.schema import TaskConfig, from_dict
from polyrec.data.collator import PolyRecCollator
from polyrec.data.sequences import WindowDataset
from polyrec.data.tables import read_json
from polyrec.data.texts import render, tokenize
from polyrec.models.cross_encoder.configuration_cross_encoder import UNREAD, PolyRecCrossEncoderConfig
from polyrec.models.cross_encoder.prompt_config import LAYOUTS, PromptConfig
from polyrec.models.cross_encoder.prompts import PromptBuilder, Prompts
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor

PROMPT_NAME = "prompt_config.json"
# What the model reads of a batch, or the Trainer counts; the rest is in prompts.
_KEPT = (
    "item_ids",
    "candidate_ids",
    "candidate_features",
    "user_features",
    "labels",
    "sample_weight",
    "candidate_rows",
)


class PolyRecCrossEncoderProcessor(PolyRecProcessor):
    """A [`PolyRecProcessor`] that also writes prompts of histories and candidates.

    Args:
        prompt: what prompts say; `text` says how an item reads (`template`) and by which backbone.
        args, options: see [`PolyRecProcessor`].

    Example:
        >>> processor = PolyRecCrossEncoderProcessor.fit(    # doctest: +SKIP
        ...     log, items, tasks=tasks, text={"model": "sentence-transformers/all-MiniLM-L6-v2",
        ...     "template": "{title}. {genres}"}, prompt={"feedback": {"rating": " rated {value}"}})
    """

    def __init__(self, *args: Any, prompt: PromptConfig | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.text is None:
            raise ValueError("prompts need a backbone: fit with text={'model': ..., 'template': '{title}'}")
        self._set_prompt(PromptConfig() if prompt is None else prompt)

    @classmethod
    def fit(
        cls, interactions: Any, *tables: Any, prompt: PromptConfig | Mapping[str, Any] | None = None, **options: Any
    ) -> PolyRecCrossEncoderProcessor:
        """Learn vocabularies and scales, see [`PolyRecProcessor.fit`].

        Args:
            prompt: a [`PromptConfig`] or a dict of its arguments.
        """
        _check_read(options.get("text"))
        processor = super().fit(interactions, *tables, **options)
        assert isinstance(processor, cls)
        processor._set_prompt(_parsed(prompt))
        return processor

    @classmethod
    def of(
        cls,
        processor: PolyRecProcessor,
        text: TextConfig | Mapping[str, Any] | None = None,
        prompt: PromptConfig | Mapping[str, Any] | None = None,
    ) -> PolyRecCrossEncoderProcessor:
        """One for the data of another model, a first stage or a student: rows of items and features are the same.

        Args:
            processor: after its `split`, if there is one: all that it has fitted is shared.
            text: backbone and template; default: those of the processor.
        """
        _check_read(text)
        read = processor.text if text is None else text
        if isinstance(read, Mapping):
            read = from_dict(TextConfig, read)
        found = cls(
            processor.columns,
            processor.tasks,
            processor.items,
            processor.users,
            processor.event_encoders,
            processor.max_history,
            processor.ties,
            processor.statistics,
            None if read is None else resolve(read),
            prompt=_parsed(prompt),
        )
        own = ("text", "tokenizer", "prompt", "prompts")
        vars(found).update({name: known for name, known in vars(processor).items() if name not in own})
        return found

    def _set_prompt(self, prompt: PromptConfig) -> None:
        assert self.text is not None
        if prompt.layout is None:
            prompt = replace(prompt, layout=LAYOUTS["decoder" if self.text.pooling == "last" else "encoder"])
        architecture = self.text.architecture.get("text_config", self.text.architecture)
        longest = min(architecture.get("max_position_embeddings", 1 << 30), self.tokenizer.model_max_length)
        if prompt.max_length is None:
            prompt = replace(prompt, max_length=min(256, longest))
        if prompt.max_length is not None and prompt.max_length > longest:
            raise ValueError(
                f"prompt: max_length is {prompt.max_length} but {self.text.model!r} reads at most {longest} tokens"
            )
        self.prompt = prompt
        self.__dict__.pop("prompts", None)

    @cached_property
    def prompts(self) -> PromptBuilder:
        """Puts prompts together; made of the catalog's texts when it is first needed."""
        assert self.text is not None
        texts = ["", "", *render(self.items.table, self.text.template)]
        tokens = tokenize(self.tokenizer, texts, self.text, prompt="", what="item texts")
        encoders = self.event_encoders["event"] | self.event_encoders["candidate"]
        return PromptBuilder(self.prompt, self.tokenizer, tokens, encoders, list(self.event_encoders["event"]))

    def write(self, batch: Mapping[str, Any]) -> Prompts:
        """Prompts of a batch: of the candidates that are no padding, then of the items in `list_items`, row by row."""
        ids, position = _array(batch["candidate_ids"]), _array(batch["candidate_positions"])
        window, index = np.nonzero(ids)
        about = [(window, position[window, index], ids[window, index])]
        if "list_items" in batch:
            listed = _array(batch["list_items"])
            window, index, _ = filled = np.nonzero(listed)
            about.append((window, position[window, index], listed[filled]))
        events = {name: _array(values) for name, values in batch["event_features"].items()}
        return self.prompts.build(
            _array(batch["item_ids"]), events, *(np.concatenate(parts) for parts in zip(*about, strict=True))
        )

    def with_prompts(self, batch: Mapping[str, Any], prompts: Prompts | None = None) -> dict[str, Any]:
        """A batch of the [`PolyRecCollator`], perhaps with `list_items`, as the model reads it."""
        tokens = (self.write(batch) if prompts is None else prompts).tokens
        kept = {name: batch[name] for name in (*_KEPT, "list_items") if name in batch}
        return kept | {
            "prompt_tokens": torch.from_numpy(tokens.flat),
            "prompt_lengths": torch.from_numpy(tokens.lengths),
        }

    def prompt_report(self, dataset: WindowDataset, batch_size: int = 64) -> dict[str, float]:
        """What prompts of a data set hold: how many there are and are `cut`, mean `tokens` and events `shown`."""
        prompts, cut, tokens, shown = 0, 0, 0, 0
        for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=PolyRecCollator()):
            found = self.write(batch)
            prompts, cut = prompts + len(found.shown), cut + found.cut
            tokens, shown = tokens + len(found.tokens.flat), shown + int(found.shown.sum())
        count = max(prompts, 1)
        return {"prompts": prompts, "cut": cut, "tokens": tokens / count, "told": shown / count}

    def model_config(self, **overrides: Any) -> PolyRecCrossEncoderConfig:
        """A [`PolyRecCrossEncoderConfig`] that fits this data; `overrides` are its arguments.

        Heads start from the training labels, as in [`PolyRecProcessor.model_config`]. Options of retrieval tasks say
        how a catalog's softmax is computed, which a cross-encoder does not: they are left to the first stage.
        """
        _check_read(overrides.get("text"))
        found = super().model_config(text=overrides.pop("text", None))
        tasks = [replace(t, options={} if t.ranks_catalog else _without_trees(t)) for t in found.task_configs]
        read = [f for f in found.feature_configs if f.source in ("candidate", "user")]
        defaults = {"tasks": tasks, "features": read, "num_items": self.num_items, "text": found.text}
        return PolyRecCrossEncoderConfig(**{**defaults, **overrides})

    def extend(self, items: Any = None, users: Any = None) -> None:
        """Add items or users, see [`PolyRecProcessor.extend`]."""
        super().extend(items, users)
        self.__dict__.pop("prompts", None)

    def _write(self, folder: Path, include_users: bool) -> None:
        super()._write(folder, include_users)
        written = json.dumps(asdict(self.prompt), indent=2, ensure_ascii=False)
        write_atomically(folder / PROMPT_NAME, written + "\n")

    @classmethod
    def _read(cls, folder: Path) -> Self:
        processor = super()._read(folder)
        assert isinstance(processor, cls)
        processor._set_prompt(from_dict(PromptConfig, read_json(folder / PROMPT_NAME)))
        return processor


def _without_trees(task: TaskConfig) -> dict[str, Any]:
    """A task's options, without the trees that [`PolyRecProcessor.pair_trees`] grows: no trainer loads them here."""
    return {name: value for name, value in task.options.items() if name != "trees"}


def _parsed(prompt: PromptConfig | Mapping[str, Any] | None) -> PromptConfig:
    return prompt if isinstance(prompt, PromptConfig) else from_dict(PromptConfig, prompt or {})


def _check_read(text: Any) -> None:
    """Refuse arguments of a text encoder that a cross-encoder would not read."""
    given = asdict(text) if isinstance(text, TextConfig) else text or {}
    plain = asdict(TextConfig(model="none"))
    for name in (*UNREAD, "prompt", "query_prompt"):
        if name in given and given[name] not in (plain[name], ""):
            raise ValueError(f"text: a cross-encoder does not read {name!r}: leave it out")


def _array(values: Any) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


AutoProcessor.register(PolyRecCrossEncoderConfig, PolyRecCrossEncoderProcessor, exist_ok=True)
