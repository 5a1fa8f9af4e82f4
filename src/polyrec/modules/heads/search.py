"""What a query finds: scores of the whole catalog from what was typed, by whom if wanted."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import HEADS
from polyrec.core.schema import TaskConfig
from polyrec.modules.encoders.item import ItemRows
from polyrec.modules.encoders.request_context import NO_CONTEXT, RequestContext
from polyrec.modules.heads.retrieval import RetrievalHead

_CLOSED = -4.0  # log odds at which the gate starts


@HEADS.register("search")
class SearchHead(RetrievalHead):
    r"""Retrieval by a query, L = -sum_i w_i log softmax_j(z_i . v_j + b_j)[found_i], z = W h + c.

    h = k q                          by the query alone (`personal=False`),
    h = k (q + g V s), g = sigma(G [q; s])    by the query and the user's state s (`personal=True`).

    q is the query's vector, made by the items' own text encoder (`modules.encoders.query`), and v_j are the items'.
    W starts as the identity, g nearly closed and k so that a score starts as `scale` times the cosine of two texts: a
    search before training is the pretrained encoder's. The bias b_j learns which items are found whatever is
    searched for. (Two towers with tied weights: Huang et al., 2013, "Learning Deep Structured Semantic Models for Web
    Search using Clickthrough Data"; the gate in the spirit of Ai et al., 2019, "A Zero Attention Model for Personalized
    Product Search", where a user may count for nothing.)

    Args:
        task: options of `retrieval`, and `personal`, `scale`.

    Shapes: states [..., D], queries [..., D] -> query vectors [..., D]; query vectors [M, D], items [N, D] -> logits
        [M, N].

    Example:
        >>> text = {"model": "a/bert", "architecture": {"model_type": "bert", "hidden_size": 8}, "pooling": "mean",
        ...         "normalize": True, "max_length": 32}
        >>> config = PolyRecConfig(
        ...     tasks=[{"name": "search", "head": "search"}], num_items=6, hidden_size=4, text=text, queries=True)
        >>> head = SearchHead(config.task_configs[0], config)
        >>> head.initialise()
        >>> query_state = head.query_state(torch.zeros(3, 4), torch.ones(3, 4))
        >>> head(query_state, ItemRows(torch.zeros(6, 4))).shape
        torch.Size([3, 6])
    """

    metrics = ("ndcg@10", "recall@10", "recall@100", "mrr@10")
    excludes = "own item"
    further_cutoffs = (100,)
    default_options: ClassVar[dict[str, Any]] = {**RetrievalHead.default_options, "personal": False, "scale": 20.0}

    def __init__(self, task: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__(task, config)
        if not config.queries:
            raise ValueError(
                f"task {task.name!r} is a search, but the configuration has queries=False: name the column of queries "
                "(columns.query) and give the processor a text encoder"
            )
        if not self.options["scale"] > 0:
            raise self.option_error("scale", "it must be > 0")
        if self.options["label_smoothing"]:
            raise self.option_error(
                "label_smoothing", "a search would be pulled towards the query's own item: leave it 0"
            )
        self.personal = bool(self.options["personal"])
        if self.personal:
            self.person = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
            self.gate = nn.Linear(2 * config.hidden_size, 1)
        self.log_scale = nn.Parameter(torch.empty(()))
        # Text vectors of length 1 are projected to about this squared length (see `ItemText`).
        self._squared_length = config.initializer_range**2 * config.hidden_size

    @property
    def reads_user(self) -> bool:
        """Whether the user's state is read."""
        return self.personal

    def initialise(self) -> None:
        """Start as the pretrained encoder's search."""
        super().initialise()
        init.eye_(self.project.weight)
        init.constant_(self.log_scale, math.log(self.options["scale"] / self._squared_length))
        if self.bias is not None:
            init.zeros_(self.bias.weight)
        if self.personal:
            init.constant_(self.gate.bias, _CLOSED)

    def query_state(self, state: Tensor, query: Tensor | None) -> Tensor:
        """What scores the catalog, h."""
        if query is None:
            raise ValueError(f"task {self.task.name!r} needs query_tokens, query_mask and candidate_query in the batch")
        if self.personal:
            gate = torch.sigmoid(self.gate(torch.cat([query, state], dim=-1)))
            query = query + gate * self.person(state)
        return self.log_scale.exp() * self.adapted(query)

    def expanded(
        self, query_state_MD: Tensor, items: ItemRows, count: int, weight: float, context: RequestContext = NO_CONTEXT
    ) -> Tensor:
        r"""A query vector widened by what it finds first, h' = (1 - a) h + a |h| m / |m|, m the mean of the nearest
        items.

        Pseudo-relevance feedback (Rocchio, 1971) in the space of vectors (Li et al., 2023, "Pseudo Relevance Feedback
        with Deep Language Models and Dense Retrievers"): raises recall where a query's own words are few.

        Args:
            count: nearest items.
            weight: a in [0, 1]; 0 changes nothing.
            context: as for `forward`.
        """
        nearest_MK = self(query_state_MD, items, context).topk(count, dim=1).indices
        mean_MD = items.vectors_MD[nearest_MK].mean(1)
        length_M1 = query_state_MD.norm(dim=-1, keepdim=True)
        return (1 - weight) * query_state_MD + weight * length_M1 * nn.functional.normalize(mean_MD, dim=-1)
