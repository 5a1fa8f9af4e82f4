"""From a history to readable recommendations: rank the catalog, then ask every task about the best items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from polyrec.core.names import ROW_KEYS
from polyrec.core.offers import offer
from polyrec.core.settings import nearest
from polyrec.data.candidates import left_out
from polyrec.data.request_reader import read_scalar
from polyrec.models.batches import as_batch
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import FIRST_ITEM, ItemRows

_BYTES = 1 << 27  # about what the candidates that are answered at a time take


@offer
@torch.no_grad()
def recommend(
    model: PolyRecForRecommendation,
    processor: PolyRecProcessor,
    history: Any = None,
    k: int = 10,
    *,
    user: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
    time: Any = None,
    user_id: Any = None,
    task: str | None = None,
    exclude_seen: bool | None = None,
) -> list[dict[str, Any]]:
    """Recommend items to one person.

    Args:
        history: the person's events, oldest first: item ids, or dicts (or any table) with the item column and
            whatever else is known of an event: feedback, context, time. None or empty: somebody new.
        k: number of recommendations.
        user: attributes of the person, {column: value}.
        context: context of the request, {column: value}.
        time: when the answer is wanted: seconds, ISO text, a date or a timestamp; default: right after the latest event
            that is known.
        user_id: whose stored events are the history (see `PolyRecProcessor.request`); `history` then holds later ones.
        task: the retrieval task that ranks; default: the model's first one that needs no query. A model without
            retrieval tasks ranks the whole catalog by its first pair task.
        exclude_seen: leave out items of the history; None: as the model was evaluated (`config.exclude_seen`), by
            default unless the task that ranks models repeated consumption (the option `repeats`).

    Returns:
        k dicts, best first: `rank`, `item` (id), `title` (if the catalog has one), `score`, one entry per other task
        (probability, or a number in the label's unit), `cold_item` (True: never met in training, judged by its
        attributes alone) and `cold_start` (True: none of the history's items is known, so only the person's attributes
        and overall trends speak).
    """
    k, task, exclude_seen = (read_scalar(n, v) for n, v in (("k", k), ("task", task), ("exclude_seen", exclude_seen)))
    with model.eval_mode() as model:
        return _recommend(model, processor, history, k, user, context, time, user_id, task, exclude_seen)


def _recommend(
    model: PolyRecForRecommendation,
    processor: PolyRecProcessor,
    history: Any,
    k: int,
    user: Mapping[str, Any] | None,
    context: Mapping[str, Any] | None,
    time: Any,
    user_id: Any,
    task: str | None,
    exclude_seen: bool | None,
) -> list[dict[str, Any]]:
    if task is not None and task not in model.heads:
        raise ValueError(f"unknown task {task!r}; {nearest(task, list(model.heads))}")
    from_history = [name for name in model.state_tasks if model.heads[name].excludes == "history"]
    if task is None and not (from_history or model.pair_tasks):
        raise ValueError(f"the model can only search ({list(model.heads)}): call model.search(processor, query)")
    ranking_task = task or next(iter(from_history or model.pair_tasks))
    if ranking_task in model.state_tasks and ranking_task not in from_history:
        raise ValueError(f"task {ranking_task!r} needs a query: call model.search(processor, query)")
    request: dict[str, Any] = {"user": user, "context": context, "time": time, "user_id": user_id}
    window = processor.request(history, np.array([FIRST_ITEM]), **request)
    seen = window["history_items"]
    items = model.item_encoder.table()
    others: dict[str, np.ndarray] = {}
    if ranking_task in model.state_tasks:
        batch = as_batch([window], model)
        state = model(**batch, items=items).states[:, 0]
        request_context = model.request_context(**batch).at((slice(None), 0))
        scores = model.score_items(state, ranking_task, items, context=request_context)[0].float().cpu().numpy()
    else:
        others = answers(model, processor, history, np.arange(FIRST_ITEM, processor.num_items), request, items)
        others = {name: np.concatenate([np.full(FIRST_ITEM, -np.inf), own]) for name, own in others.items()}
        scores = others[ranking_task].copy()
    exclude_seen = model.config.exclude_seen if exclude_seen is None else exclude_seen
    if left_out(model.heads[ranking_task].task, exclude_seen) == "history":
        scores[seen] = -np.inf
    best = best_items(scores, k)
    if not len(best):
        return []
    others = {n: own[best] for n, own in others.items()} or answers(model, processor, history, best, request, items)
    # A run of before names were reserved may have a task "item": its prediction must not stand where the id does.
    told = [n for n in (*from_history, *model.pair_tasks) if n != ranking_task and n not in ROW_KEYS]
    known_history = bool((processor.item_counts[seen] > 0).any())
    return [
        {
            "rank": n + 1,
            **processor.describe(int(row)),
            "score": float(scores[row]),
            **{name: float(others[name][n]) for name in told},
            "cold_item": bool(processor.item_counts[row] == 0),
            "cold_start": not known_history,
        }
        for n, row in enumerate(best)
    ]


def best_items(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k highest scores, best first; -inf = not a candidate.

    Raises:
        ValueError: a score is NaN or infinite: the model has diverged.
    """
    if np.isnan(scores).any() or (scores == np.inf).any():
        raise ValueError("scores are not finite: the model has diverged; lower its learning rate and train it anew")
    return np.argsort(-scores, kind="stable")[: min(k, int(np.isfinite(scores).sum()))]


def answers(
    model: PolyRecForRecommendation,
    processor: PolyRecProcessor,
    history: Any,
    asked: np.ndarray,
    request: Mapping[str, Any],
    items: ItemRows,
) -> dict[str, np.ndarray]:
    """Every task's prediction for given items, {task: [C]}.

    Args:
        asked: int64 [C], rows of the item table.
        request: arguments of `processor.request`.
        items: the encoded table.
    """
    found: dict[str, list[np.ndarray]] = {}
    first, size = 0, 1024
    while first < len(asked):
        window = processor.request(history, asked[first : first + size], **request)
        first, size = first + size, max(_BYTES // _pair_bytes(model, len(window["item_ids"])), 1)
        logits = model(**as_batch([window], model), items=items).logits
        for name, value in logits.items():
            found.setdefault(name, []).append(model.heads[name].predict(value)[0].float().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _pair_bytes(model: PolyRecForRecommendation, events: int) -> int:
    """About what one candidate takes on its way through the model: attention over events, numbers, hidden vectors."""
    config = model.config
    numbers = sum(f.size for f in config.feature_configs if f.source == "candidate" and f.kind in ("numeric", "vector"))
    attention = config.candidate_attention_heads * (events + 1)
    return 4 * (2 * attention + 3 * numbers * (config.numeric_bins + 1) + 12 * (config.hidden_size + config.pair_width))
