"""Tiny cross-encoders over the synthetic log."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from model_fixtures import COLUMNS, TASKS, synthetic_log
from text_fixtures import SPECIAL, WORDS, tiny_bert
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from polyrec import PolyRecCrossEncoder, PolyRecCrossEncoderProcessor, Splits
from polyrec.models.cross_encoder.collator import collate
from polyrec.models.cross_encoder.sampling import CandidateSample

PROMPT = {"max_length": 40, "item_tokens": 6}


@functools.cache
def tiny_llama() -> Path:
    """A folder with a causal language model of width 32 and a tokenizer of words that begins texts with one token."""
    folder = Path(tempfile.mkdtemp())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[CLS]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def fit_prompts(
    log: dict[str, Any] | None = None,
    tasks: list[dict[str, Any]] = TASKS,
    backbone: Path | None = None,
    prompt: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[PolyRecCrossEncoderProcessor, Splits]:
    """A fitted processor and the split of its log by time."""
    log = synthetic_log() if log is None else log
    processor = PolyRecCrossEncoderProcessor.fit(
        **log,
        tasks=tasks,
        text={"model": str(backbone or tiny_bert()), "template": "{title} {genre}"},
        prompt=PROMPT if prompt is None else prompt,
        **{"columns": COLUMNS, "max_history": 8, **options},
    )
    return processor, processor.split(log["interactions"])


def tiny_cross_encoder(processor: PolyRecCrossEncoderProcessor, seed: int = 0, **overrides: Any) -> PolyRecCrossEncoder:
    """A tiny model that holds the items' counts, in evaluation mode."""
    torch.manual_seed(seed)
    defaults = {
        "hidden_size": 8,
        "dropout": 0.0,
        "numeric_bins": 4,
        "initializer_range": 0.2,
        "text": {"tuning": "full"},
    }
    model = PolyRecCrossEncoder(processor.model_config(**(defaults | overrides)))
    model.load_processor(processor)
    return model.eval()


def prompted(
    processor: PolyRecCrossEncoderProcessor, splits: Splits, windows: int = 6, **sample: Any
) -> dict[str, Any]:
    """A training batch as the model reads it."""
    data = CandidateSample(splits.train, processor.num_items, ["next_item"], **sample)
    batch = processor.with_prompts(collate([data[i] for i in range(windows)]))
    return {name: values for name, values in batch.items() if name != "candidate_rows"}
