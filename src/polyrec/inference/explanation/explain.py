"""Reasons for recommendations: events, attributes, words, experts, and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from polyrec.core.offers import offer
from polyrec.core.settings import nearest
from polyrec.data.columns import UNKNOWN
from polyrec.data.request_reader import read_ids, read_scalar
from polyrec.data.tables import ids
from polyrec.inference.explanation.attributes import ID, attribute_effects, word_effects
from polyrec.inference.explanation.events import EventEffects, leave_one_out
from polyrec.inference.explanation.explained import ExplainedRequest
from polyrec.inference.explanation.reasons import ReasonTemplate
from polyrec.inference.recommender import Recommender
from polyrec.inference.unknown_ids import warn_of_unknown_ids
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import FIRST_ITEM


@offer
def explain(
    model: PolyRecForRecommendation,
    processor: PolyRecProcessor,
    history: Any = None,
    items: Sequence[Any] | None = None,
    k: int = 10,
    *,
    task: str | None = None,
    user: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
    time: Any = None,
    user_id: Any = None,
    events: int = 3,
    words: bool = False,
    template: ReasonTemplate | None = None,
    recommender: Recommender | None = None,
) -> list[dict[str, Any]]:
    """Say why items are recommended to one user, or why a task predicts what it predicts.

    Effects are differences of the task's *scores*: the log probability of an item in a retrieval task, log odds of a
    probability, a number in the label's unit. That of an event is exact: the score minus the score had the event not
    happened, running statistics included (`polyrec.inference.explanation.events`). Only events that the model reads
    (the last `max_history`) are evaluated.

    Args:
        history, user, context, time, user_id: as for `recommend`.
        items: ids of the items to explain, seen ones too. None: the `k` that `recommend` gives.
        task: to explain. Default: the one that ranks.
        events: of each item, the strongest are listed, and the strongest positive ones make the reason; the others'
            effects can be had of `leave_one_out`.
        words: also evaluate the words of items' texts, each of which the text encoder must read once more.
        template: the words of the reasons.
        recommender: of this model, for callers with many requests: it has encoded the catalog.

    Returns:
        one dict per item, best first (given items: in the order given): `rank` (by the task), `item`, `title` (if the
        catalog has one), `task`, `score` (its prediction, as `recommend` gives it), `reason` (a sentence), `events`
        (strongest first: `position` in the history, `item`, `title`, `verb`, `effect`, and `without`, the prediction
        without the event), `terms` (of a retrieval task: what the network, the item's bias and each term of the head,
        such as `neighbours` and `trending`, add to the score, which is their sum), `attributes` (strongest first:
        `name`, `value`, `effect`; "id" is the item's own vector), `words` (`word`, `effect`) and `gates` ({pair task:
        {source: how much the task takes of it}}).
    """
    k, events, words, task = (
        read_scalar(name, value) for name, value in (("k", k), ("events", events), ("words", words), ("task", task))
    )
    if task is not None and task not in model.heads:
        raise ValueError(f"unknown task {task!r}; {nearest(task, list(model.heads))}")
    request: dict[str, Any] = {"user": user, "context": context, "time": time, "user_id": user_id}
    task = task or _ranking_task(model)
    recommender = Recommender(model, processor) if recommender is None else recommender
    if items is None:
        by = task if model.heads[task].reads == "state" or not model.history_tasks else None
        rows = item_rows(processor, [row["item"] for row in recommender.recommend(history, k, **request, task=by)])
    else:
        rows = item_rows(processor, items)
    if not len(rows):
        return []
    explained = ExplainedRequest(model, processor, history, rows, task, request, recommender.items)
    if items is not None:  # `recommend` has warned otherwise
        warn_of_unknown_ids(processor, {"history": history, **request}, explained.log.item[: explained.events])
    effects = leave_one_out(explained)
    attributes = attribute_effects(explained)
    worded = word_effects(explained) if words else [{} for _ in rows]
    gates, parts = _gates(explained), explained.parts()
    events_text = _Events(explained)
    template = template or ReasonTemplate()
    rank = np.empty(len(rows), dtype=np.int64)
    rank[np.argsort(-effects.predictions, kind="stable")] = np.arange(1, len(rows) + 1)
    found = []
    for c, row in enumerate(rows):
        order = np.argsort(-np.abs(effects.effects[:, c]), kind="stable")
        listed = [events_text.entry(effects, int(e), c, template) for e in order[:events]]
        own = _attributes(processor, int(row), {name: float(values[c]) for name, values in attributes.items()})
        found.append(
            {
                "rank": int(rank[c]),
                **processor.describe(int(row)),
                "task": task,
                "score": float(effects.predictions[c]),
                "reason": events_text.reason(effects, c, events, own, template),
                "events": listed,
                "terms": {name: float(part[c]) for name, part in parts.items()},
                "attributes": own,
                "words": [{"word": w, "effect": e} for w, e in sorted(worded[c].items(), key=lambda x: -abs(x[1]))],
                "gates": {name: dict(zip(sources, gates[name][c], strict=True)) for name, sources in gate_names(model)},
            }
        )
    return found


def gate_names(model: PolyRecForRecommendation) -> list[tuple[str, list[str]]]:
    """(pair task, names of what its gate weighs)."""
    return list(model.gate_sources.items())


def _ranking_task(model: PolyRecForRecommendation) -> str:
    """The task by which `recommend` ranks."""
    ranking = [*model.history_tasks, *model.pair_tasks]
    if not ranking:
        raise ValueError(f"the model can only search ({list(model.heads)}): there is nothing about a user to explain")
    return ranking[0]


def item_rows(processor: PolyRecProcessor, items: Sequence[Any]) -> np.ndarray:
    """Rows of item ids, which must be in the catalog."""
    given = read_ids(items, "items")
    if not given:
        return np.zeros(0, dtype=np.int64)
    if pa.types.is_large_string(processor.items.ids.type) or pa.types.is_string(processor.items.ids.type):
        given = [str(item) for item in given]
    rows = processor.items.rows(pa.array(given))
    if (rows == UNKNOWN).any():
        raise ValueError(f"item {given[int((rows == UNKNOWN).argmax())]!r} is not in the catalog: explain items of it")
    return rows


@torch.no_grad()
def _gates(explained: ExplainedRequest) -> dict[str, list[list[float]]]:
    """{pair task: its gates for each item, [C, E]}; empty for layers without gates."""
    if not explained.model.gate_sources:
        return {}
    output = explained.forward(next(iter(explained.batches())))
    return {name: gate[0].float().cpu().tolist() for name, gate in (output.gates or {}).items()}


def _attributes(processor: PolyRecProcessor, row: int, effects: Mapping[str, float]) -> list[dict[str, Any]]:
    """Attributes of an item with their values, the strongest first."""
    table = processor.items.table
    found = []
    for name, effect in sorted(effects.items(), key=lambda pair: -abs(pair[1])):
        value = table[name][row - FIRST_ITEM].as_py() if name in table.column_names else None
        found.append({"name": name, "value": value, "effect": effect})
    return found


class _Events:
    """The history as users know it: ids, titles, and what each event brought."""

    def __init__(self, explained: ExplainedRequest) -> None:
        processor, log = explained.processor, explained.log
        table = processor.request_reader.history(explained.history)
        given = [] if table is None else ids(table, processor.columns.item, "history", "item id").to_pylist()
        self.ids = [None] * (explained.events - len(given)) + given  # stored events know items of the catalog alone
        rows = log.item[: explained.events]
        self.known = bool((processor.item_counts[rows] > 0).any())
        self.described = [
            processor.describe(int(row)) if row >= FIRST_ITEM else {"item": name}
            for row, name in zip(rows, self.ids, strict=True)
        ]
        binary = [(j, t.name) for j, t in enumerate(processor.tasks) if t.head == "binary"]
        self.brought = [[name for j, name in binary if log.labels[e, j] == 1] for e in range(explained.events)]

    def entry(self, effects: EventEffects, index: int, item: int, template: ReasonTemplate) -> dict[str, Any]:
        """What is said of one visible event and one item."""
        position = int(effects.events[index])
        return {
            "position": position,
            **self.described[position],
            "verb": template.verb(self.brought[position]),
            "effect": float(effects.effects[index, item]),
            "without": float(effects.without[index, item]),
        }

    def reason(
        self,
        effects: EventEffects,
        item: int,
        events: int,
        attributes: Sequence[Mapping[str, Any]],
        template: ReasonTemplate,
    ) -> str:
        """The sentence: of the strongest events that speak for the item, else of its attributes."""
        if not self.known:
            return template.stranger
        own = effects.effects[:, item]
        strongest = [int(effects.events[e]) for e in np.argsort(-own, kind="stable")[:events] if own[e] > 0]
        if strongest:
            named = [(template.verb(self.brought[e]), self._name(e)) for e in strongest]
            return template.of_events(named)
        good = {a["name"]: a["value"] for a in attributes if a["effect"] > 0 and a["value"] and a["name"] != ID}
        return template.of_attributes(good) if good else template.nothing

    def _name(self, position: int) -> str:
        described = self.described[position]
        return str(described.get("title") or described["item"])
