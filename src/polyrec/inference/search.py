"""From what somebody typed to readable results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from polyrec.core.names import ROW_KEYS
from polyrec.core.offers import offer
from polyrec.core.registry import nearest
from polyrec.core.rules import Rules
from polyrec.data.open_requests import OpenRequests
from polyrec.data.request_reader import read_scalar
from polyrec.inference.predictions import predictions
from polyrec.inference.ranked import Ranked, best_items
from polyrec.inference.rules.catalog import CatalogColumns
from polyrec.inference.rules.seen import SeenPolicy
from polyrec.inference.rules.selection import Chosen, Selector, Unmet
from polyrec.inference.scorer import TorchScorer
from polyrec.inference.unknown_ids import warn_of_unknown_ids
from polyrec.inference.user_requests import UserRequests
from polyrec.models.batches import as_batch
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import FIRST_ITEM, ItemRows


@offer
@torch.no_grad()
def search(
    model: PolyRecForRecommendation,
    processor: PolyRecProcessor,
    query: str,
    history: Any = None,
    k: int = 10,
    *,
    user: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
    time: Any = None,
    user_id: Any = None,
    task: str | None = None,
    expand: int = 0,
    expand_weight: float = 0.3,
    exclude_seen: bool = False,
    query_item: Any = None,
    candidates: Sequence[Any] | None = None,
    exclude: Sequence[Any] = (),
    where: str | None = None,
    rules: Rules | Mapping[str, Any] | None = None,
    items: ItemRows | None = None,
) -> list[dict[str, Any]]:
    """Find items by what somebody typed.

    Args:
        query: in any language the text encoder knows; longer ones than it reads are cut.
        history, user, context, time, user_id: of the request, as for `recommend`; personalised search reads them, and
            so do the other tasks.
        k: number of results.
        task: the search task that ranks; default: the model's first one.
        expand: widen the query by so many of the items that it finds first; 0 = not.
        expand_weight: how far, in [0, 1], see `SearchHead.expanded`.
        exclude_seen: leave out items of the history. Users search for what they know, so by default it is found.
        query_item: id of the item that the query is the text of, which is left out, as in evaluations
            (`columns.query_item`).
        candidates, exclude, where, rules: what is found, as of
            [`recommend`][polyrec.inference.recommender.Recommender.recommend].
        items: the encoded table, of a caller with many requests; None: encode it.

    Returns:
        k dicts, best first: `rank`, `item` (id), `title` (if the catalog has one), `score`, one entry per other task
        that scores items (given the query) and `cold_item` (True: never seen in training); of lists that are drawn
        `propensity`, too. None for an empty query.
    """
    k, query, task, expand, expand_weight, exclude_seen = (
        read_scalar(name, value)
        for name, value in (
            ("k", k),
            ("query", query),
            ("task", task),
            ("expand", expand),
            ("expand_weight", expand_weight),
            ("exclude_seen", exclude_seen),
        )
    )
    searches = [name for name in model.state_tasks if model.heads[name].excludes == "own item"]
    if not searches:
        raise ValueError(f"the model has no search task; its tasks are {list(model.heads)}")
    if task is not None and task not in searches:
        raise ValueError(f"unknown search task {task!r}; {nearest(task, searches)}")
    name, rules, catalog = task or searches[0], Rules.of(rules), CatalogColumns(processor)
    request = {"history": history, "user": user, "context": context, "time": time, "query": query, "user_id": user_id}
    own = UserRequests(catalog, rules).read(request | {"candidates": candidates, "exclude": exclude, "where": where})
    if rules is not None and rules.seen is not None and exclude_seen:
        raise ValueError("exclude_seen is given beside the rule seen: give one of both")
    seen = SeenPolicy(exclude_seen if rules is None or rules.seen is None else rules.seen, processor)
    with model.eval_mode() as model:
        items, unmet = model.item_encoder.table() if items is None else items, Unmet()
        opened = processor.open_requests([own.window])
        warn_of_unknown_ids(processor, own.window, opened.history_items[0])
        found = _scores(model, name, opened, items, expand, expand_weight)
        if found is None:
            return []
        own.mask(found, *seen.rows(opened))
        if query_item is not None:
            row = processor.items.rows(pa.array([query_item]))
            if (row < FIRST_ITEM).any():
                raise ValueError(
                    f"query_item {query_item!r} is not in the catalog: leave it out, or extend the processor"
                )
            found[row] = -np.inf

        def predict(rows: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
            return predictions(model, opened, rows, TorchScorer(model, items)) if model.pair_tasks else [{}]

        if rules is None or not rules.orders:
            best = best_items(found, k)
            chosen = Chosen(best, found[best])
        else:
            kinds = {n: model.heads[n].output_kind for n in dict.fromkeys((name, *model.pair_tasks))}
            selector = Selector(rules, catalog, name, kinds, lambda: items.vectors_MD.float().cpu().numpy())
            [chosen] = selector.choose([found], k, [own.window], predict)
        others = predict([chosen.rows])[0] if chosen.predictions is None else chosen.predictions
    unmet.add(chosen.unmet)
    unmet.warn()
    shown = [n for n in model.pair_tasks if n not in ROW_KEYS]
    ranked = Ranked(chosen.rows, chosen.scores, others, False, chosen.propensities, chosen.unmet)
    rows = ranked.described(processor, shown)
    return [{key: value for key, value in row.items() if key != "cold_start"} for row in rows]


def _scores(
    model: PolyRecForRecommendation,
    task: str,
    opened: OpenRequests,
    items: ItemRows,
    expand: int,
    expand_weight: float,
) -> np.ndarray | None:
    """Scores of all rows of the item table, [N]; None if nothing was typed."""
    windows = opened.histories()
    if (windows[0]["candidate_query"] < 0).all():
        return None
    batch = as_batch(windows, model)
    output, request_context = model(**batch, items=items), model.request_context(**batch).at((slice(None), 0))
    head = model.heads[task]
    query_state = head.query_state(output.states[:, 0], output.queries[:, 0])
    if expand:
        query_state = head.expanded(query_state, items, expand, expand_weight, request_context)
    return head(query_state, items, request_context)[0].float().cpu().numpy()
