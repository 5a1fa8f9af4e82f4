"""Where a model predicts well and where it does not: metrics of groups of rows, each with an interval over users.

A mean over all rows hides that new users, rare items or one category are served badly. Rows are grouped by

* **popularity** of the candidate item: the most popular items that have a third of the training events between them
  ("head"), those that have the next third, the many that share the last one ("tail"), and those never seen;
* **history**: how many earlier events were visible;
* **activity**: thirds of the users by their number of training events, those without any apart;
* **time**: quarters of the rows, in time order;
* **attributes** of items or users by name, e.g. a category, or a group that should not be served worse than others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polyrec.core.registry import nearest
from polyrec.data.columns import FIRST, ColumnEncoder
from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation import bootstrap, evaluator, ranking
from polyrec.evaluation.cold_start import visible_events
from polyrec.evaluation.intervals import bounds, metric_interval
from polyrec.evaluation.metric_names import day
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import FIRST_ITEM

POPULARITY = ("head", "middle", "tail")
UNSEEN = "unseen"
_HISTORIES = ((0, 0), (1, 5), (6, 20), (21, 100), (101, None))
_ACTIVITY = ("least active third", "middle third", "most active third", "no training events")
_MOST_VALUES = 8  # of an attribute, those with the most rows

Groups = dict[str, dict[str, np.ndarray]]  # {what rows are grouped by: {group: bool [C]}}


def slice_groups(
    train: SequenceDataset,
    test: SequenceDataset,
    processor: PolyRecProcessor,
    item_counts: np.ndarray,
    columns: tuple[str, ...] = (),
) -> Groups:
    """Groups of the candidates of `test`; empty ones are left out, as is what all rows have in common.

    Args:
        train: training rows of the same log, which say how active users are.
        item_counts: [N], training events of each item.
        columns: attributes of items or users to group by. Default: the first categorical attribute of the items.
    """
    check_slices(columns, processor)
    log, event = test.log, test.candidates.event
    item, user = log.item[event], log.user[event]
    events_P = np.bincount(train.user_codes()[train.own_view], minlength=len(log.user_ids))
    found: Groups = {
        "popularity": _named(_popularity_class(item_counts)[item], (*POPULARITY, UNSEEN)),
        "history": _by_history(visible_events(test)),
        "activity": _named(_activity(events_P, test.user_codes()), _ACTIVITY),
    }
    if not log.drawn:
        found["time"] = _by_time(log.time[event])
    for name in columns or _first_category(processor):
        found[name] = _by_attribute(name, processor, test, item, user)
    held = {by: {n: rows for n, rows in groups.items() if rows.any()} for by, groups in found.items()}
    return {by: groups for by, groups in held.items() if len(groups) > 1}


def check_slices(columns: Sequence[str], processor: PolyRecProcessor) -> None:
    """Refuse attributes that do not group rows, before anything is trained.

    Raises:
        ValueError: there is no such attribute of items or users, or it is neither a category nor a number.
    """
    known = processor.items.encoders | processor.users.encoders
    for name in columns:
        if name not in known:
            raise ValueError(f"slices: no attribute {name!r} of items or users; {nearest(name, list(known))}")
        if known[name].kind not in ("numeric", "categorical", "multi"):
            raise ValueError(
                f"slices: {name!r} is of kind {known[name].kind!r}: only categories and numbers form groups"
            )


def sliced(
    model: PolyRecForRecommendation,
    dataset: SequenceDataset,
    predictions: evaluator.Predictions,
    groups: Groups,
    k: int = 10,
    resamples: int = 200,
) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """{task: {by: {group: {"rows", "people", metric: value, "interval": {first metric: [low, high]}}}}}.

    Groups without a label of a task are left out, as are metrics that a group does not have (an AUC of one class).
    """
    labels, users = dataset.labels(), dataset.user_codes()
    result: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for j, task in enumerate(dataset.task_names):
        for by, members in groups.items():
            for name, rows in members.items():
                if task in predictions.rankings:
                    found = _of_lists(predictions.rankings[task], rows, users, k, resamples)
                elif task in predictions.values:
                    known = rows & ~np.isnan(labels[:, j])
                    columns = labels[known, j], predictions.values[task][known], users[known]
                    found = _of_pairs(model.heads[task].metrics, task, columns, resamples)
                else:
                    continue
                if found:
                    result.setdefault(task, {}).setdefault(by, {})[name] = found
    return result


def popularity_bias(
    dataset: SequenceDataset, found: evaluator.Ranking, item_counts: np.ndarray
) -> dict[str, dict[str, float]]:
    """Shares of popular and rare items in what a retrieval task recommends, and in what users consumed."""
    of_item = _popularity_class(item_counts)
    consumed = of_item[dataset.log.item[dataset.candidates.event[found.rows]]]
    listed = of_item[found.top_ids[found.top_ids >= 0] + FIRST_ITEM]
    names = (*POPULARITY, UNSEEN)
    return {
        what: {name: float((classes == i).mean()) if len(classes) else 0.0 for i, name in enumerate(names)}
        for what, classes in (("recommended", listed), ("taken", consumed))
    }


def _of_pairs(
    metrics: tuple[str, ...], task: str, columns: tuple[np.ndarray, np.ndarray, np.ndarray], resamples: int
) -> dict[str, Any]:
    labels, values, users = columns
    if not len(labels):
        return {}
    found, _ = evaluator.pair_metrics(metrics, labels, values, users, task)
    known = {name: float(value) for name, value in found.items() if np.isfinite(value)}
    interval = {n: bounds(metric_interval(n, labels, values, users, resamples)) for n in metrics[:1] if n in known}
    return {"rows": len(labels), "people": len(np.unique(users)), **known, "interval": interval}


def _of_lists(found: evaluator.Ranking, rows: np.ndarray, users: np.ndarray, k: int, resamples: int) -> dict[str, Any]:
    held = rows[found.rows]
    if not held.any():
        return {}
    per_list = ranking.single_target_metrics(found.greater[held], found.ties[held], ks=[k])
    names = [f"{name}@{k}" for name in ("ndcg", "recall", "mrr")]
    held_users = users[found.rows[held]]
    interval = bounds(bootstrap.bootstrap_mean(per_list[names[0]], held_users, n=resamples))
    means = {name: float(per_list[name].mean()) for name in names}
    return {"rows": int(held.sum()), "people": len(np.unique(held_users)), **means, "interval": {names[0]: interval}}


# ---------------------------------------------------------------------- groups
def _named(code_C: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {name: code_C == i for i, name in enumerate(names)}


def _popularity_class(item_counts: np.ndarray) -> np.ndarray:
    """0 = head, 1 = middle, 2 = tail, 3 = never seen, int64 [N]."""
    order = np.argsort(-item_counts, kind="stable")
    before = np.cumsum(item_counts[order]) - item_counts[order]  # events of items that are more popular
    of_item = np.empty(len(item_counts), dtype=np.int64)
    of_item[order] = np.minimum(3 * before // max(item_counts.sum(), 1), 2)
    of_item[item_counts == 0] = len(POPULARITY)
    return of_item


def _activity(events_P: np.ndarray, user: np.ndarray) -> np.ndarray:
    """0..2: third of the evaluated users who have training events; 3: without one. Equal users stay together."""
    distinct = np.unique(user)
    events = np.where(events_P[distinct] > 0, events_P[distinct], np.nan)
    third = np.where(np.isnan(events), len(_ACTIVITY) - 1, _thirds(events))
    return third[np.searchsorted(distinct, user)]


def _thirds(values: np.ndarray) -> np.ndarray:
    """0, 1, 2 by size, equal values together; -1 where a value is NaN."""
    known = ~np.isnan(values)
    if not known.any():
        return np.full(len(values), -1)
    return np.where(known, np.searchsorted(np.quantile(values[known], [1 / 3, 2 / 3]), values, side="left"), -1)


def _by_history(position: np.ndarray) -> dict[str, np.ndarray]:
    found = {}
    for low, high in _HISTORIES:
        name = f"more than {low - 1} events" if high is None else f"{low} to {high} events" if low < high else "none"
        found[name] = (position >= low) & (position <= (np.inf if high is None else high))
    return found


def _by_time(time: np.ndarray, parts: int = 4) -> dict[str, np.ndarray]:
    edges = np.unique(np.quantile(time, np.linspace(0, 1, parts + 1)))
    part = np.searchsorted(edges[1:-1], time, side="left")
    found = {}
    for i in np.unique(part):
        rows = part == i
        first, last = day(time[rows].min()), day(time[rows].max())
        found[f"{i + 1}: {first} to {last}"] = rows
    return found


def _first_category(processor: PolyRecProcessor) -> list[str]:
    found = [name for name, e in processor.items.encoders.items() if e.kind in ("categorical", "multi")]
    return found[:1]


def _by_attribute(
    name: str, processor: PolyRecProcessor, dataset: SequenceDataset, item: np.ndarray, user: np.ndarray
) -> dict[str, np.ndarray]:
    items, users = processor.items.encoders, processor.users.encoders
    if name in items:
        return _by_value(items[name], processor.items.encoded[name][item])
    return _by_value(users[name], dataset.log.user_features[name][user])


def _by_value(encoder: ColumnEncoder, values: np.ndarray) -> dict[str, np.ndarray]:
    if encoder.kind == "numeric":
        numbers = values if values.ndim == 1 else values[:, 0]
        return _named(_thirds(numbers), ("lowest third", "middle third", "highest third"))
    codes = values if values.ndim > 1 else values[:, None]
    rows_of = np.bincount(codes[codes >= FIRST])
    most = [int(code) for code in np.argsort(-rows_of, kind="stable")[:_MOST_VALUES] if rows_of[code]]
    return {str(encoder.vocabulary[code - FIRST]): (codes == code).any(axis=1) for code in most}
