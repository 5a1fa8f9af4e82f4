"""The parts of a model that are exported: from windows to states, from states to scores of the catalog and to
predictions about pairs.

What a catalog holds is an input of each graph (`item_tensors`): new items need no new graphs.

Letters: B users, L events, C candidates, N items, D width, K numbers of a feature, U snapshots, Q queries, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyrec.core.modules import eval_view
from polyrec.core.schema import REFUSED, RESIDUALS, FeatureConfig
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation, gather_states
from polyrec.modules.encoders.item import FIRST_ITEM, PADDING_ITEM, ItemRows
from polyrec.modules.encoders.request_context import RequestContext, Trending
from polyrec.modules.encoders.shared import PackedPairs
from polyrec.modules.encoders.visible_events import VisibleEvents
from polyrec.modules.heads.retrieval import RetrievalHead
from polyrec.modules.heads.terms._recent_items import RecentItems
from polyrec.modules.heads.terms.base import RetrievalTerm
from polyrec.serving.tree_graphs import LoadedTrees

Given = dict[str, Tensor]
_FLOATS, _IDS = torch.float32, torch.int64


@dataclass(frozen=True)
class Input:
    """One input of a graph: its type and its shape, letters for what differs from call to call.

    Args:
        optional: what a missing one is filled with; None: it must be there.
    """

    dtype: torch.dtype
    shape: tuple[str | int, ...]
    optional: float | None = None


@dataclass
class Graph:
    """A module to be exported.

    Args:
        inputs: by their names, nested ones with dots, as `event_features.rating`.
        outputs: their names.
        most: {letter: largest size}.
    """

    module: nn.Module
    inputs: dict[str, Input]
    outputs: list[str] = field(default_factory=list)
    most: dict[str, int] = field(default_factory=dict)


class AllPairs(PackedPairs):
    """All candidates of a batch as one row of B C pairs, padding among them: shapes then depend on no values.

    Example:
        >>> AllPairs(torch.tensor([[5, 6], [7, 0]])).pack(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
        [[1.0, 2.0, 3.0, 4.0]]
    """

    def __init__(self, candidate_ids: Tensor) -> None:
        self.shape = candidate_ids.shape

    def pack(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> [1, B C, ...]."""
        return x.flatten(0, 1).unsqueeze(0)

    def unpack(self, x: Tensor) -> Tensor:
        """[1, B C, ...] -> [B, C, ...]."""
        return x.reshape(*self.shape, *x.shape[2:])


class StatesGraph(nn.Module):
    """item_ids [B, L], features and the item table -> inputs and states, [B, L + 1, D] each."""

    def __init__(self, model: PolyRecForRecommendation) -> None:
        super().__init__()
        self.encoder = eval_view(model.model.history_encoder)

    def forward(self, given: Given) -> tuple[Tensor, ...]:
        """Read histories."""
        events, user = nested(given, "event_features"), nested(given, "user_features")
        return tuple(self.encoder(ItemRows(given["items.vectors"]), given["item_ids"], events, user))


class PairsGraph(nn.Module):
    """States, inputs, candidates [B, C] and their features -> predictions of all pair tasks, [B, C]."""

    def __init__(self, model: PolyRecForRecommendation, for_onnx: bool = False) -> None:
        super().__init__()
        self.model = view = eval_view(model)
        heads = nn.ModuleDict(
            {name: _with_loaded_trees(view.heads[name], name if for_onnx else None) for name in view.pair_tasks}
        )
        own = {"pair_encoder": view.pair_encoder, "experts": view.experts, "skip": view.skip}
        view.__dict__["_modules"] = {**own, "couplings": view.couplings, "heads": heads}
        self.task_names = [] if model.task_items is None else model.task_items.task_names

    def forward(self, given: Given) -> tuple[Tensor, ...]:
        """Score pairs."""
        ids_BC, positions_BC = given["candidate_ids"], given["candidate_positions"]
        pairs, items = AllPairs(ids_BC), ItemRows(given["items.vectors"])
        packed = {name: pairs.pack(values) for name, values in nested(given, "candidate_features").items()}
        residuals, query = given.get(f"event_features.{RESIDUALS}"), given.get("queries")
        state_BCD = gather_states(given["states"], positions_BC)
        read = state_BCD, items.lookup(ids_BC), given["inputs"], positions_BC
        pair, evidence = self.model.pair_encoder(*read, pairs, packed, residuals, query)
        own = None
        if self.task_names:
            own_1MD = F.embedding(pairs.pack(ids_BC), given["items.own"]).chunk(len(self.task_names), dim=-1)
            own = dict(zip(self.task_names, own_1MD, strict=True))
        found = self.model.score_pairs(pair, pairs.pack(ids_BC) != PADDING_ITEM, packed, evidence, own)
        outputs = []
        for name, head in self.model.heads.items():
            logits = pairs.unpack(head.mean_over_members(found.logits[name]))
            details = head.details(logits)
            outputs += [head.predict(logits).float()] + ([] if details is None else [details.float()])
        return tuple(outputs)


class CatalogGraph(nn.Module):
    """A state [B, D] of each user, and what terms read, -> scores of all items by each retrieval task, [B, N]; padding
    and the unknown item score -inf."""

    def __init__(self, model: PolyRecForRecommendation) -> None:
        super().__init__()
        self.heads, self.terms = nn.ModuleDict(), nn.ModuleDict()
        for name in model.state_tasks:
            head = eval_view(model.heads[name])
            terms = head.named_terms
            kept = {key: part for key, part in head._modules.items() if not isinstance(part, RetrievalTerm)}
            head.__dict__["_modules"] = {**kept, "bias": None}
            self.heads[name] = head
            self.terms[name] = nn.ModuleDict({option: _without_items(term) for option, term in terms.items()})

    def forward(self, given: Given) -> tuple[Tensor, ...]:
        """Score the catalog."""
        vectors_ND, found = given["items.vectors"], []
        for name, head in self.heads.items():
            query_BD = head.query_state(given.get("state"), given.get("query"))
            scores_BN = F.linear(head.project(query_BD), vectors_ND) + given[f"items.{name}.bias"]
            context = self._context(name, given)
            for option, term in self.terms[name].items():
                own = with_tensors(term, nested(given, f"items.{name}.{option}"))
                scores_BN = scores_BN + own.of_catalog(own.logits(query_BD), context, vectors_ND.shape[0])
            found.append(scores_BN.float())
        return tuple(found)

    def _context(self, name: str, given: Given) -> RequestContext:
        """What the terms of a task read."""
        context = RequestContext(times=given.get("time"))
        if "item_ids" in given:
            item_ids, position = given["item_ids"], given["position"]
            refused = given.get(f"event_features.{REFUSED}{name}")
            refused = torch.zeros_like(item_ids, dtype=torch.bool) if refused is None else refused > 0
            history = VisibleEvents.of_batch(item_ids, position.unsqueeze(1), {name: refused}).flatten()
            context = context._replace(history=history)
            if most := max((term.latest_events for term in self.terms[name].values()), default=0):
                context = context._replace(latest={name: latest_of(history.read(), refused, most)})
        if f"trending.{name}.items" in given:
            tables = (given[f"trending.{name}.{part}"] for part in ("items", "values"))
            context = context._replace(trending={name: Trending(given["snapshot"], *tables)})
        return context


class QueryGraph(nn.Module):
    """Tokens of queries and which of them are real, [Q, T] -> vectors [Q, D]."""

    def __init__(self, model: PolyRecForRecommendation) -> None:
        super().__init__()
        text = model.item_encoder.text
        assert text is not None  # the configuration sees to it
        self.encoder, self.project = eval_view(text.encoder), eval_view(text.project)
        self.encoder.backbone = _LoadedBackbone(text.encoder.backbone.transformer())

    def forward(self, given: Given) -> tuple[Tensor, ...]:
        """Encode queries."""
        vectors_QW = self.encoder._encode(given["query_tokens"], given["query_mask"])
        return (self.project(vectors_QW.to(torch.float32)),)


class _LoadedBackbone(nn.Module):
    """A transformer that is a part of the module, also if it is frozen."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.float().eval()

    def transformer(self, device: torch.device | None = None) -> nn.Module:
        """The transformer itself."""
        return self.model


def latest_of(history_BL: Tensor, refused_BL: Tensor, number: int) -> Tensor:
    """The latest known items that were not refused, the latest first, [B, L] -> [B, number]; 0 = no more.

    As [`~polyrec.modules.encoders.request_context.latest_items`], without a search.

    Example:
        >>> none = torch.zeros(1, 4, dtype=torch.bool)
        >>> latest_of(torch.tensor([[5, 1, 6, 0]]), none, 3).tolist()
        [[6, 5, 0]]
    """
    counts_BL = (history_BL >= FIRST_ITEM) & ~refused_BL
    before_BL = counts_BL.long().cumsum(1)
    ago_BL = before_BL[:, -1:] - before_BL  # how many counted events came later
    place_BL = torch.where(counts_BL & (ago_BL < number), ago_BL, number)
    found = history_BL.new_zeros(history_BL.shape[0], number + 1)
    return found.scatter(1, place_BL, history_BL)[:, :number]


def nested(given: Mapping[str, Tensor], name: str) -> Given:
    """{b: tensor} of the inputs `name.b`."""
    return {key.removeprefix(f"{name}."): value for key, value in given.items() if key.startswith(f"{name}.")}


def with_tensors(module: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The module with other buffers, beside the one there is."""
    view = eval_view(module)
    view.__dict__["_buffers"] = {**view._buffers, **tensors}
    return view


def _without_items(term: RetrievalTerm) -> RetrievalTerm:
    """A term without what it holds per item, and without the tables of training."""
    unread = [name for name in term._buffers if name in term.item_tensors or name.startswith("fold_")]
    return with_tensors(term, {name: torch.empty(0) for name in unread})


def _with_loaded_trees(head: Any, name: str | None) -> Any:
    """A head that need not look whether its trees have a say."""
    trees = head.trees
    if trees is not None:
        head.trees = LoadedTrees(trees, name) if trees.speaks else None
    return head


@torch.no_grad()
def item_tensors(model: PolyRecForRecommendation) -> Given:
    """What graphs read of the catalog, one row per item, {input without "items.": tensor}."""
    view, found = eval_view(model), {}
    items = view.item_encoder.table()
    found["vectors"] = items.vectors_MD
    if model.pair_tasks and view.task_items is not None:
        found["own"] = view.task_items.table(items.id_rows(torch.arange(len(items.vectors_MD))))
    for name in view.state_tasks:
        head: RetrievalHead = view.heads[name]
        found[f"{name}.bias"] = head.all_biases(items)[1].float()
        for option, term in head.named_terms.items():
            found |= {f"{name}.{option}.{part}": term.get_buffer(part) for part in term.item_tensors}
    return {key: value.detach().contiguous() for key, value in found.items()}


def graphs_of(model: PolyRecForRecommendation, for_onnx: bool = False) -> dict[str, Graph]:
    """The graphs of a model, {name: graph}.

    Args:
        for_onnx: with operators that ONNX alone has; they cannot be run in torch.
    """
    config, width = model.config, model.config.hidden_size
    tables = {f"items.{key}": Input(value.dtype, ("N", *value.shape[1:])) for key, value in item_tensors(model).items()}
    found = {}
    if model.reads_users:
        encoder = model.model.history_encoder
        inputs = {"item_ids": Input(_IDS, ("B", "L"))}
        inputs |= _feature_inputs("event_features", encoder.events.features, ("B", "L"))
        inputs |= _feature_inputs("user_features", encoder.person.features, ("B",))
        inputs["items.vectors"] = tables["items.vectors"]
        found["states"] = Graph(StatesGraph(model), inputs, ["inputs", "states"])
    if config.queries and config.text is not None:
        tokens = {"query_tokens": Input(_IDS, ("Q", "T")), "query_mask": Input(torch.bool, ("Q", "T"))}
        found["query"] = Graph(QueryGraph(model), tokens, ["vectors"], {"T": _longest(model, config.text.max_length)})
    if model.state_tasks:
        found["catalog"] = _catalog(model, tables)
    if model.pair_tasks:
        inputs = {name: Input(_IDS, ("B", "C")) for name in ("candidate_ids", "candidate_positions")}
        own = [f for f in config.feature_configs if f.source == "candidate"]
        inputs |= _feature_inputs("candidate_features", own, ("B", "C"))
        inputs |= {name: Input(_FLOATS, ("B", "L+1", width)) for name in ("inputs", "states")}
        targets = getattr(model.pair_encoder.attention, "targets", 0)
        if targets:
            inputs[f"event_features.{RESIDUALS}"] = Input(_FLOATS, ("B", "L", targets))
        if config.queries:
            inputs["queries"] = Input(_FLOATS, ("B", "C", width))
        inputs |= {key: tables[key] for key in ("items.vectors", "items.own") if key in tables}
        outputs = []
        for name in model.pair_tasks:
            outputs += [name] + ([f"{name}.details"] if _has_details(model.heads[name]) else [])
        found["pairs"] = Graph(PairsGraph(model, for_onnx), inputs, outputs)
    return found


def _catalog(model: PolyRecForRecommendation, tables: Mapping[str, Input]) -> Graph:
    graph, width = CatalogGraph(model), model.config.hidden_size
    inputs: dict[str, Input] = {}
    if any(model.heads[name].reads_user for name in model.state_tasks):
        inputs["state"] = Input(_FLOATS, ("B", width))
    if any(model.heads[name].excludes == "own item" for name in model.state_tasks):
        inputs["query"] = Input(_FLOATS, ("B", width))
    every = {name: list(terms.values()) for name, terms in graph.terms.items()}
    if any(term.option == "item_age" for terms in every.values() for term in terms):
        inputs["time"] = Input(_IDS, ("B",))
    readers = [n for n, terms in every.items() if any(t.reads_history or t.latest_events for t in terms)]
    if readers:
        inputs |= {"item_ids": Input(_IDS, ("B", "L")), "position": Input(_IDS, ("B",))}
        inputs |= {f"event_features.{REFUSED}{name}": Input(_FLOATS, ("B", "L"), optional=0.0) for name in readers}
    counting = [name for name, terms in every.items() if any(isinstance(t, RecentItems) for t in terms)]
    if counting:
        inputs["snapshot"] = Input(_IDS, ("B",))
    for name in counting:
        inputs[f"trending.{name}.items"] = Input(torch.int32, ("U", "S"))
        inputs[f"trending.{name}.values"] = Input(torch.float16, ("U", "S"))
    read = [key for key in tables if key == "items.vectors" or key.split(".")[1] in model.state_tasks]
    return Graph(graph, inputs | {key: tables[key] for key in read}, list(model.state_tasks))


def _feature_inputs(group: str, features: Sequence[FeatureConfig], shape: tuple[str, ...]) -> dict[str, Input]:
    """Inputs of the features that an encoder reads."""
    found = {}
    for f in features:
        wide = {"multi": (f.width,), "vector": (f.size,), "embedding": (f.size,)}.get(f.kind, ())
        if f.kind != "text":
            dtype = _IDS if f.kind in ("categorical", "multi") else _FLOATS
            found[f"{group}.{f.name}"] = Input(dtype, (*shape, *wide))
    return found


def _has_details(head: Any) -> bool:
    """Whether a head tells more than one number per pair."""
    return head.details(torch.zeros(1, 1, *([] if head.logit_width is None else [head.logit_width]))) is not None


def _longest(model: PolyRecForRecommendation, asked: int) -> int:
    """Most tokens of a query: as many as are kept, and as the text encoder has places for."""
    text = model.item_encoder.text
    assert text is not None
    places = text.encoder.backbone.config.architecture.get("max_position_embeddings", asked)
    return min(asked, places)
