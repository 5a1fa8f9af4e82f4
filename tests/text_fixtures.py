"""Tiny text models on disk, made at random: no network, no weights in the repository."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

from polyrec import PolyRecProcessor

os.environ.setdefault("POLYREC_CACHE", tempfile.mkdtemp())  # stored vectors of tests are no one else's
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["title", "action", "comedy", "drama", *map(str, range(60))]


@functools.cache
def tiny_bert(head: bool = False) -> Path:
    """A folder with a BERT of width 32 and a tokenizer of words.

    Args:
        head: with its head for masked tokens.
    """
    folder = Path(tempfile.mkdtemp())
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    model = BertForMaskedLM(config) if head else BertModel(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))  # biases and norms, too, so that each of them matters
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names).save_pretrained(folder)
    return folder


@functools.cache
def text_processor(num_items: int, head: bool = False) -> PolyRecProcessor:
    """A processor of items with titles of two or three words; the last item has none."""
    count = num_items - 2
    titles: list[str | None] = [f"title {i} {WORDS[1 + i % 3]}"[: 20 if i % 2 else 8] for i in range(count)]
    titles[-1] = None
    interactions = {"user_id": [1, 1, 2, 2], "item_id": [0, 1, 1, 2], "timestamp": [1, 2, 3, 4]}
    return PolyRecProcessor.fit(
        interactions,
        {"item_id": list(range(count)), "title": titles},
        tasks=[{"name": "next_item", "head": "retrieval"}],
        text={"model": str(tiny_bert(head)), "template": "{title}"},
    )
