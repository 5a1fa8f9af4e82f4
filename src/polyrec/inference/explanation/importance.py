r"""What a model reads matters how much to which task: permutation importance.

    I_{feature, task} = mean loss of the task with the feature's values shuffled - mean loss as it is

(Breiman, 2001, "Random Forests"; Fisher, Rudin and Dominici, 2019). Values are shuffled among the rows of a batch: past
events among past events, candidates among candidates, attributes of items among items. A feature that is both known
before and after the event (context) is shuffled in both places. Features that say the same share their importance.

Letters: B users, L events, C candidates, N items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyrec.data.batch import Batch
from polyrec.data.collator import PolyRecCollator
from polyrec.data.sequences import SequenceDataset
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.modules.encoders.features import module_name
from polyrec.modules.encoders.item import FIRST_ITEM, PADDING_ITEM, ItemRows

ID = "item.id"
_SOURCES = ("event_features", "candidate_features", "user_features")


@torch.no_grad()
def permutation_importance(
    model: PolyRecForRecommendation,
    dataset: SequenceDataset,
    windows: int | None = 2000,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """By how much each task's mean loss rises if a feature is shuffled, {task: {feature: rise}}, largest first.

    Features are "event.…", "context.…" (and "context.statistics"), "user.…" and "item.…"; "item.id" is what was learned
    of each item by itself.

    Args:
        dataset: examples with labels, e.g. the validation set of a split.
        windows: of the data set that are used, drawn at random. None: all.
        seed: of the draw and of all shuffles.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(dataset), generator=generator)[:windows].tolist()
    if not chosen:
        raise ValueError("no examples: give a data set with at least one window")
    shuffled = _shuffled_items(model, generator)
    sums: dict[str, dict[str, float]] = {}
    counts: dict[str, float] = {}
    with model.eval_mode() as model:
        whole = model.item_encoder.table()
        for first in range(0, len(chosen), batch_size):
            some = [dataset[index] for index in chosen[first : first + batch_size]]
            batch = Batch.of(PolyRecCollator()(some)).to(model.device)
            changed: dict[str, tuple[Mapping[str, Any], ItemRows]] = {
                name: (_with(batch, source, key, generator), whole) for name, (source, key) in _inputs(batch).items()
            }
            changed |= {name: (batch, items) for name, items in shuffled.items()}
            for name, (inputs, items) in {"": (batch, whole), **changed}.items():
                torch.manual_seed(seed)  # sampled negatives are the same in all passes
                output = model(**inputs, items=items)
                for task, loss in (output.losses or {}).items():
                    own = sums.setdefault(task, {})
                    own[name] = own.get(name, 0.0) + float(loss)
                    if not name:
                        counts[task] = counts.get(task, 0.0) + float((output.counts or {})[task])
    found = {}
    for task, own in sums.items():
        rises = {name: (total - own[""]) / max(counts[task], 1e-12) for name, total in own.items() if name}
        found[task] = dict(sorted(rises.items(), key=lambda pair: -pair[1]))
    return found


def _inputs(batch: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], str]]:
    """{name of a feature: (where it is in a batch, its key there)}."""
    found: dict[str, tuple[tuple[str, ...], str]] = {}
    for key in batch["candidate_features"]:
        both = [source for source in _SOURCES[:2] if key in batch[source]]
        found[f"context.{key}"] = tuple(both), key
    for key in batch["event_features"]:
        if key not in batch["candidate_features"]:
            found[f"event.{key}"] = ("event_features",), key
    found |= {f"user.{key}": (("user_features",), key) for key in batch["user_features"]}
    return found


def _with(batch: Mapping[str, Any], sources: tuple[str, ...], key: str, generator: torch.Generator) -> dict[str, Any]:
    """The batch with one feature shuffled."""
    changed = dict(batch)
    for source in sources:
        real = {
            "event_features": batch["item_ids"] != PADDING_ITEM,
            "candidate_features": batch["candidate_ids"] != PADDING_ITEM,
            "user_features": torch.ones(len(batch["item_ids"]), dtype=torch.bool, device=batch["item_ids"].device),
        }[source]
        values = batch[source][key].clone()
        values[real] = _permuted(values[real], generator)
        changed[source] = {**changed[source], key: values}
    return changed


def _permuted(values: Tensor, generator: torch.Generator) -> Tensor:
    return values[torch.randperm(len(values), generator=generator).to(values.device)]


@torch.no_grad()
def _shuffled_items(model: PolyRecForRecommendation, generator: torch.Generator) -> dict[str, ItemRows]:
    """The item table with one attribute, or the id embeddings, shuffled among the items of the catalog."""
    with model.eval_mode() as model:
        encoder = model.item_encoder
        whole = encoder.table()
        assert whole.id_rows_M is not None
        catalog = slice(FIRST_ITEM, None)
        values = {f.name: encoder.catalog.get_buffer(module_name(f.name))[catalog] for f in encoder.attributes.features}
        found = {}
        for name, own in values.items():
            change_ND = encoder.attributes({**values, name: _permuted(own, generator)}) - encoder.attributes(values)
            vectors_ND = whole.vectors_MD.clone()
            vectors_ND[catalog] += change_ND
            found[f"item.{name}"] = ItemRows(vectors_ND, id_rows_M=whole.id_rows_M)
        if encoder.id_embedding is not None:
            id_rows_N = whole.id_rows_M.clone()
            id_rows_N[catalog] = _permuted(id_rows_N[catalog], generator)
            every_N = torch.arange(encoder.num_items, device=id_rows_N.device)
            # Tables of their own that tasks have are read by these rows, too.
            found[ID] = ItemRows(encoder.encode(every_N, id_rows_N), id_rows_M=id_rows_N)
    return found


def as_rows(importance: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """One dict per feature: `feature` and the rise of each task, the largest mean share of a task first.

    Example:
        >>> rows = as_rows({"like": {"user.age": 0.1, "item.id": 0.3}, "rating": {"user.age": 0.0, "item.id": 0.2}})
        >>> [row["feature"] for row in rows]
        ['item.id', 'user.age']
    """
    features = dict.fromkeys(name for own in importance.values() for name in own)
    top = {task: max([abs(v) for v in own.values()], default=0.0) or 1.0 for task, own in importance.items()}
    share = {f: float(np.mean([own.get(f, 0.0) / top[t] for t, own in importance.items()])) for f in features}
    ranked = sorted(features, key=lambda f: -share[f])
    return [{"feature": f, **{task: own.get(f, 0.0) for task, own in importance.items()}} for f in ranked]
