"""Which attributes of an item, and which words of its text, explain a score: each is removed in turn.

Letters: C candidate items, N items, D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from polyrec.data.texts import render, tokenize
from polyrec.inference.explanation.explained import ExplainedRequest
from polyrec.modules.encoders.features import module_name
from polyrec.modules.encoders.item import FIRST_ITEM, UNKNOWN_ITEM, ItemRows

ID = "id"  # the item's id embedding
TEXT = "text"
_WORD = re.compile(r"\w[\w'’-]*")


@torch.no_grad()
def attribute_effects(explained: ExplainedRequest) -> dict[str, np.ndarray]:
    """{attribute: what each item's answer loses if that attribute were missing, float64 [C]}.

    Attributes are the inputs of the item encoder, "id" (the item's own vector, instead of which that of an unknown
    item is read, as for cold-start items) and "text". Running statistics of an attribute stay as they are.
    """
    model, items = explained.model, explained.items
    encoder = model.item_encoder
    rows_C = torch.from_numpy(explained.rows).to(model.device)
    batch = next(iter(explained.batches()))
    before = explained.scores(batch)[0]
    found = {}
    features = encoder.attributes.features
    values = {f.name: encoder.catalog.get_buffer(module_name(f.name))[rows_C] for f in features}
    whole_CD = encoder.attributes(values)
    for feature in features:
        gone = explained.processor.items.encoders[feature.name].missing(len(rows_C))
        other_CD = encoder.attributes({**values, feature.name: torch.from_numpy(gone).to(values[feature.name])})
        found[feature.name] = _lost(explained, batch, before, other_CD - whole_CD)
    if encoder.id_embedding is not None:
        nobody_C = torch.full_like(rows_C, UNKNOWN_ITEM)
        found[ID] = _lost(explained, batch, before, encoder.encode(rows_C, nobody_C) - items.lookup(rows_C))
    if encoder.text is not None:
        text_CD = encoder.text(rows_C) * _reads_text(explained, rows_C)
        found[TEXT] = _lost(explained, batch, before, -text_CD)
    return found


@torch.no_grad()
def word_effects(explained: ExplainedRequest, most: int = 64) -> list[dict[str, float]]:
    """Of each item, {word of its text: what its answer loses if the text lacked it}; empty without a text encoder.

    Words are those of the text that the encoder reads (`TextConfig.template`); one that occurs twice is left out in
    both places.

    Args:
        most: words looked at per item, the first ones.
    """
    model, processor = explained.model, explained.processor
    text, settings = model.item_encoder.text, processor.text
    if text is None or settings is None:
        return [{} for _ in explained.rows]
    rows_C = torch.from_numpy(explained.rows).to(model.device)
    table = processor.items.table.take((explained.rows - FIRST_ITEM).tolist())
    texts = render(table, settings.template)
    words = [list(dict.fromkeys(_WORD.findall(whole)))[:most] for whole in texts]
    shortened = [
        [re.sub(rf"(?<!\w){re.escape(w)}(?!\w)", "", whole) for w in own]
        for whole, own in zip(texts, words, strict=True)
    ]
    tokens = tokenize(
        processor.tokenizer, [*texts, *(t for own in shortened for t in own)], settings, what="item texts"
    )
    batch = next(iter(explained.batches()))
    before = explained.scores(batch)[0]
    vectors_MD = text.project(text.encoder(tokens, None, model.device).to(text.vectors.dtype))
    reads_C1 = _reads_text(explained, rows_C)
    found: list[dict[str, float]] = [{} for _ in texts]
    ends = len(texts) + np.cumsum([len(own) for own in words])
    for n in range(max((len(own) for own in words), default=0)):  # the n-th word of all items at once
        change_CD = torch.zeros(len(texts), vectors_MD.shape[1], device=model.device)
        for c, own in enumerate(words):
            if n < len(own):
                change_CD[c] = vectors_MD[ends[c] - len(own) + n] - vectors_MD[c]
        lost = _lost(explained, batch, before, change_CD * reads_C1)
        for c, own in enumerate(words):
            if n < len(own):
                found[c][own[n]] = float(lost[c])
    return found


def _reads_text(explained: ExplainedRequest, rows_C: torch.Tensor) -> torch.Tensor:
    """Which items' vectors hold their texts, [C, 1]; where texts stand in for ids, only those of items without one."""
    text, encoder = explained.model.item_encoder.text, explained.model.item_encoder
    assert text is not None
    reads_C = encoder.id_rows(rows_C) == UNKNOWN_ITEM if text.fallback else torch.ones_like(rows_C, dtype=torch.bool)
    return reads_C.unsqueeze(-1)


def _lost(
    explained: ExplainedRequest, batch: Mapping[str, Any], before_C: torch.Tensor, change_CD: torch.Tensor
) -> np.ndarray:
    """How the items' scores fall if their embeddings change so, the history staying as it is, [C]."""
    vectors_ND = explained.items.vectors_MD.clone()
    rows_C = batch["candidate_ids"][0]
    vectors_ND[rows_C] += change_CD.to(vectors_ND.dtype)
    changed = ItemRows(vectors_ND, id_rows_M=explained.items.id_rows_M)
    inputs_BLD = explained.inputs(batch)
    return (before_C - explained.scores(batch, changed, inputs_embeds=inputs_BLD)[0]).cpu().double().numpy()
