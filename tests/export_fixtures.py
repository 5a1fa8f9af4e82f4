"""Models with every registered part, and batches of any size for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from head_fixtures import OPTIONS
from model_fixtures import random_config
from text_fixtures import tiny_bert
from torch import Tensor

from polyrec import FeatureConfig, PolyRecForRecommendation
from polyrec.core.registry import COUPLINGS, HEADS
from polyrec.core.schema import REFUSED, RESIDUALS, STATISTICS
from polyrec.modules.heads._trees import TreeBlend
from polyrec.modules.heads.terms.base import RetrievalTerm, registered_terms
from polyrec.serving.export_graphs import Exported, traced
from polyrec.serving.graphs import graphs_of, item_tensors
from polyrec.serving.parity import parity
from polyrec.serving.runtime import Runtime

ITEMS, HISTORY = 60, 64
TREND = [[3600.0, 9.0]]
ON: dict[str, dict[str, Any]] = {  # what turns a retrieval term on, where the option's type does not say it
    "age": {"item_age": "release"},
    "set_neighbours": {"neighbours": 4, "of_sets": True},
    "trending": {"trending": TREND},
    "recent": {"trending": TREND, "trending_start": 0.0, "recent": True},
    "seen": {"of_sets": True},
}
FEATURES = [
    FeatureConfig("genre", "item", "categorical", 5),
    FeatureConfig("tags", "item", "multi", 6, 3),
    FeatureConfig("age", "user", "numeric"),
    FeatureConfig("likes", "user", "multi", 6, 3),
    FeatureConfig("rating", "event", "numeric"),
    FeatureConfig(RESIDUALS, "event", "vector", 2),
    FeatureConfig("surface", "candidate", "categorical", 4),
    FeatureConfig("length", "candidate", "numeric"),
    FeatureConfig("topics", "candidate", "multi", 6, 2),
    FeatureConfig(STATISTICS, "candidate", "vector", 5),
]


def every_term() -> list[dict[str, Any]]:
    """Retrieval tasks that have all registered terms: those of sequences, of sets, and an age of another kind."""
    every: dict[str, dict[str, Any]] = {"terms": {"bias_rate": 2.0, "cold_negatives": False}, "sets": {}}
    for name, cls in registered_terms().items():
        on = ON.get(name) or {cls.option: {bool: True, int: 4}[type(cls.default_options[cls.option])]}
        every["sets" if "of_sets" in on else "terms"] |= on
    every["terms"]["trending_start"] = 1.0
    every["ages"] = {"item_age": "first_event"}
    return [{"name": name, "head": "retrieval", "options": options} for name, options in every.items()]


def every_pair_task() -> list[dict[str, Any]]:
    """A task for each registered pair head, two of them with trees, and one for each coupling."""
    kinds = [kind for kind in HEADS.names() if HEADS.get(kind).reads == "pair"]
    tasks = [{"name": f"a_{kind}", "head": kind, "options": dict(OPTIONS.get(kind, {}))} for kind in kinds]
    for task in tasks:
        if task["head"] in ("binary", "regression"):
            task["options"]["trees"] = 6
    parent = "click"
    tasks.append({"name": parent, "head": "binary"})
    for coupling in COUPLINGS.names():  # a chain: each child is the next one's parent
        name = f"by_{coupling}"
        tasks.append({"name": name, "head": "binary", "parent": parent, "coupling": coupling})
        parent = name
    return tasks


def model_of(tasks: list[dict[str, Any]], **overrides: Any) -> PolyRecForRecommendation:
    """A model in evaluation mode, all of whose numbers are drawn at random."""
    torch.manual_seed(0)
    own = {"num_items": ITEMS, "features": FEATURES, "max_history": HISTORY, "hidden_size": 16, **overrides}
    model = PolyRecForRecommendation(random_config(tasks=tasks, **own)).eval()
    encoder = model.item_encoder
    encoder.known.copy_(torch.arange(ITEMS) < ITEMS - 5)
    encoder.counts.copy_(torch.arange(ITEMS) * encoder.known)
    for values in encoder.catalog.buffers():
        values.copy_(torch.randint(0, 5, values.shape) if values.dtype == torch.int64 else torch.randn(values.shape))
    for module in model.modules():
        if isinstance(module, RetrievalTerm):
            _fill_term(module)
        elif isinstance(module, TreeBlend):
            _fill_trees(module)
    return model


def _fill_term(term: RetrievalTerm) -> None:
    for name, tensor in (*term.named_parameters(), *term.named_buffers()):
        if "fold" in name:
            continue
        if tensor.dtype.is_floating_point:
            tensor.data.copy_(torch.rand(tensor.shape) - (0 if name == "values" else 0.3))
        elif tensor.dim() == 2:  # neighbours, ascending
            places = torch.stack([torch.randperm(ITEMS - 2)[: tensor.shape[1]] + 2 for _ in range(ITEMS)])
            tensor.copy_(places.sort().values)
        else:
            tensor.copy_(torch.randint(0, 10**9, tensor.shape))
        if name in ("items", "values"):
            tensor[:2] = 0  # as in tables that were counted


def _fill_trees(trees: TreeBlend) -> None:
    trees.feature.copy_(torch.randint(0, 10, trees.feature.shape))
    trees.threshold.copy_(torch.randn(trees.threshold.shape))
    trees.leaf.copy_(torch.randn(trees.leaf.shape))
    trees.leaf[0, :16] = 0.5  # a leaf above the last level
    trees.leaf[-1] = 0  # one that is not used
    trees.weight.fill_(0.4)


def made_batch(
    model: PolyRecForRecommendation, users: int, events: int, asked: int, seed: int = 0, last: bool = False
) -> dict[str, Any]:
    """A batch of one size, all of whose inputs are drawn at random; a user's events and candidates may be fewer.

    Args:
        last: whether all candidates of a user see the same events, as in a request.
    """
    random = torch.Generator().manual_seed(seed)

    def whole(most: int, *shape: int) -> Tensor:
        return torch.randint(0, most, shape, generator=random)

    def number(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=random)
        return torch.where(torch.rand(shape, generator=random) < 0.2, float("nan"), values)

    def feature(f: FeatureConfig, *shape: int) -> Tensor:
        wide = {"multi": (f.width,), "vector": (f.size,)}.get(f.kind, ())
        return whole(f.size, *shape, *wide) if f.kind in ("categorical", "multi") else number(*shape, *wide)

    length = max(events, 1)
    seen = whole(events + 1, users)
    seen[0] = events
    item_ids = whole(ITEMS - 1, users, length) + 1
    item_ids[torch.arange(length) >= seen.unsqueeze(1)] = 0
    candidates = whole(ITEMS - 2, users, asked) + 2
    if asked > 1:
        candidates[1:, -1] = 0
    position = seen.unsqueeze(1).expand(users, asked)
    if not last:
        position = torch.minimum(position, whole(events + 1, users, asked))
    own = model.config.feature_configs
    batch: dict[str, Any] = {
        "item_ids": item_ids,
        "candidate_ids": candidates,
        "candidate_positions": position.contiguous(),
        "event_features": {f.name: feature(f, users, length) for f in own if f.source in ("event", "candidate")},
        "user_features": {f.name: feature(f, users) for f in own if f.source == "user"},
        "candidate_features": {f.name: feature(f, users, asked) for f in own if f.source == "candidate"},
        "candidate_times": whole(10**9, users, 1).expand(users, asked).contiguous(),
    }
    batch["event_features"].pop(STATISTICS, None)
    refused = (name for name in model.state_tasks if name == "terms")
    batch["event_features"] |= {REFUSED + name: whole(2, users, length).float() for name in refused}
    snapshots = torch.stack([torch.randperm(ITEMS - 2, generator=random)[:8] + 2 for _ in range(users + 1)])
    values = torch.rand(snapshots.shape, generator=random).half()
    snapshots[0], values[0] = 0, 0
    tables = {"items": snapshots.sort().values.int(), "values": values}
    batch["trending"] = {name: tables for name in model.state_tasks}
    batch["candidate_trending"] = whole(users + 1, users, 1).expand(users, asked).contiguous()
    if model.config.queries:
        batch |= {
            "query_tokens": torch.tensor([[2, 9, 3, 0], [2, 7, 8, 3]]),
            "query_mask": torch.tensor([[True, True, True, False], [True] * 4]),
            "candidate_query": (whole(3, users, 1) - 1).expand(users, asked).contiguous(),
        }
    return batch


def with_search() -> dict[str, Any]:
    """What a configuration with a search has beside its tasks."""
    return {"text": {"model": str(tiny_bert())}, "queries": True}


class Traced(Runtime):
    """Runs the graphs of torch.export where they are, without files."""

    def __init__(self, model: PolyRecForRecommendation) -> None:
        """Trace them."""
        graphs = graphs_of(model)
        self.manifest = Exported.described(model, graphs)
        self.tasks = self.manifest["tasks"]
        self.items = {name: tensor.numpy() for name, tensor in item_tensors(model).items()}
        self._sessions = {name: traced(name, graph).module() for name, graph in graphs.items()}

    def _outputs(self, graph: str, ready: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            return [x.numpy() for x in self._sessions[graph]({n: torch.from_numpy(v) for n, v in ready.items()})]


def check(
    runtime: Runtime, model: PolyRecForRecommendation, sizes: Iterable[tuple[int, int, int]], tolerance: float = 1e-5
) -> None:
    """Compare graphs and model, on windows of some sizes (B, L, C)."""
    batches = [made_batch(model, *size, seed=n, last=n % 2 == 0) for n, size in enumerate(sizes)]
    report = parity(runtime, model, batches)
    assert set(report["heads"]) == set(model.heads)
    assert max(own["largest"] / max(own["spread"], 1) for own in report["heads"].values()) < tolerance, report
    assert not any(own.get("lists") for own in report["heads"].values()), report
