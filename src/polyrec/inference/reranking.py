"""A few items in the order of a cross-encoder, for one user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate.utils import send_to_device

from polyrec.core.offers import offer
from polyrec.core.registry import nearest
from polyrec.data.request_reader import read_ids, read_scalar
from polyrec.inference.unknown_ids import warn_of_unknown_ids
from polyrec.models.cross_encoder.collator import collate
from polyrec.models.cross_encoder.modeling_cross_encoder import PolyRecCrossEncoder, PolyRecCrossEncoderOutput
from polyrec.models.cross_encoder.processing_cross_encoder import PolyRecCrossEncoderProcessor
from polyrec.models.cross_encoder.sampling import FIRST_ITEM


@offer
@torch.no_grad()
def rerank(
    model: PolyRecCrossEncoder,
    processor: PolyRecCrossEncoderProcessor,
    history: Any,
    candidates: Sequence[Any],
    *,
    task: str | None = None,
    blend: float = 0.0,
    user: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
    time: Any = None,
) -> list[dict[str, Any]]:
    """Order given items for one user.

    Args:
        history: the user's events, oldest first, as for `recommend`.
        candidates: item ids, or what `recommend` of a first stage returned; best first, if `blend` is to mean anything.
        task: by which to order; default: the first retrieval task, or the first task if there is none.
        blend: how much the given order counts, see `polyrec.evaluation.reranked.rerank_lists`.
        user, context, time: of the request, as for `recommend`.

    Returns:
        One dict per candidate, best first: `rank`, `item`, `title` (if the catalog has one), `score` and one entry per
        other task.
    """
    task, blend = read_scalar("task", task), read_scalar("blend", blend)
    ranking_task = task or next(iter(model.state_tasks or model.pair_tasks))
    if ranking_task not in model.heads:
        raise ValueError(f"unknown task {ranking_task!r}; {nearest(ranking_task, list(model.heads))}")
    if isinstance(candidates, Sequence) and not isinstance(candidates, str):
        candidates = [c.get("item") if isinstance(c, Mapping) else c for c in candidates]
    ids = read_ids(candidates, "candidates")
    if not ids:
        return []
    rows = processor.items.rows(pa.array(ids))
    if unknown := [i for i, row in zip(ids, rows, strict=True) if row < FIRST_ITEM]:
        raise ValueError(
            f"candidates: {len(unknown)} are not in the catalog: {unknown[:5]}; extend the processor first"
        )
    window = processor.request(history, rows, user=user, context=context, time=time)
    warn_of_unknown_ids(processor, {"history": history}, window.pop("history_items"))
    batch = processor.with_prompts(collate([window]))
    with model.eval_mode() as model:
        logits = scored(model, batch).logits or {}
    predictions = {name: model.heads[name].predict(z)[0].float().cpu().numpy() for name, z in logits.items()}
    scores = predictions.pop(ranking_task) - blend * np.log1p(np.arange(len(ids)))
    return [
        {
            "rank": n + 1,
            **processor.describe(int(rows[at])),
            "score": float(scores[at]),
            **{name: float(values[at]) for name, values in predictions.items()},
        }
        for n, at in enumerate(np.argsort(-scores, kind="stable"))
    ]


def scored(model: PolyRecCrossEncoder, batch: dict[str, Any]) -> PolyRecCrossEncoderOutput:
    """What a model says of a batch with prompts."""
    inputs = {name: values for name, values in batch.items() if name not in ("candidate_rows", "labels")}
    return model(**send_to_device(inputs, model.device))
