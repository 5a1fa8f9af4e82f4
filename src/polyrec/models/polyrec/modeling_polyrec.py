"""`PolyRecModel` reads users; `PolyRecForRecommendation` scores candidates for every task.

Letters: B users, L events, C candidates, M rows of some subset, N items, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from polyrec.core.offers import offered
from polyrec.core.registry import HEADS, OBJECTIVES
from polyrec.core.schema import RESIDUALS
from polyrec.data.batch import Batch
from polyrec.models.multitask import MultiTaskModel
from polyrec.models.polyrec.configuration_polyrec import PolyRecConfig
from polyrec.models.polyrec.extension import calibrate_new_items
from polyrec.models.polyrec.int8 import convert
from polyrec.models.polyrec.loss import CatalogLoss, CatalogPass
from polyrec.models.pretrained import PolyRecModelOutput, PolyRecOutput, PolyRecPreTrainedModel
from polyrec.models.training_pass import ONE_BATCH, LossStep, PairOutput, SampledItems
from polyrec.modules.encoders.history import HistoryEncoder, gather_states
from polyrec.modules.encoders.item import PADDING_ITEM, ItemEncoder, ItemRows
from polyrec.modules.encoders.pair import PairEncoder
from polyrec.modules.encoders.query import CandidateQueries, QueryEncoder
from polyrec.modules.encoders.request_context import NO_CONTEXT, RequestContext, context_of
from polyrec.modules.encoders.shared import PackedPairs, SharedRepresentation
from polyrec.modules.encoders.task_items import TaskItemEmbedding
from polyrec.modules.objectives.base import Reading


class PolyRecModel(PolyRecPreTrainedModel):
    """Items and histories: everything below the tasks."""

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__(config)
        self.item_encoder = ItemEncoder(config)
        self.history_encoder = HistoryEncoder(config)
        if config.int8:
            convert(self)
        self.post_init()
        self._ignore_base_weights()

    def forward(
        self,
        item_ids: Tensor,
        event_features: dict[str, Tensor] | None = None,
        user_features: dict[str, Tensor] | None = None,
        items: ItemRows | None = None,
        inputs_embeds: Tensor | None = None,
        **unused: Any,
    ) -> PolyRecModelOutput:
        """Read each user once.

        Args:
            item_ids: [B, L], 0 = padding on the right.
            event_features, user_features: as the collator makes them.
            items: encoded items, if the caller has them already.
            inputs_embeds: [B, L + 1, D], the encoded start and events, of a caller that changes them; the other
                arguments are not read then.
        """
        if inputs_embeds is not None:
            states = self.history_encoder.read(inputs_embeds)
            return PolyRecModelOutput(last_hidden_state=states, inputs=inputs_embeds)
        items = self.item_encoder.rows(item_ids) if items is None else items
        inputs, states = self.history_encoder(items, item_ids, event_features or {}, user_features or {})
        return PolyRecModelOutput(last_hidden_state=states, inputs=inputs)


class PolyRecForRecommendation(MultiTaskModel):
    """One model, many recommendation tasks.

    Example:
        >>> config = PolyRecConfig(
        ...     tasks=[{"name": "next_item", "head": "retrieval"}, {"name": "like", "head": "binary"}],
        ...     num_items=12, hidden_size=8, num_attention_heads=2, candidate_attention_heads=2)
        >>> model = PolyRecForRecommendation(config).eval()
        >>> output = model(item_ids=torch.tensor([[3, 4, 0]]), candidate_ids=torch.tensor([[5, 6]]),
        ...                candidate_positions=torch.tensor([[1, 2]]))
        >>> {task: tuple(logits.shape) for task, logits in output.logits.items()}
        {'next_item': (1, 2), 'like': (1, 2)}
    """

    loss_class = CatalogLoss

    def __init__(self, config: PolyRecConfig) -> None:
        super().__init__(config)
        self.model = PolyRecModel(config)
        self.build_tasks(config, {t.name: HEADS.get(t.head)(t, config) for t in config.task_configs})
        self.objectives = nn.ModuleDict(
            {name: OBJECTIVES.get(name)(name, own, config) for name, own in sorted((config.objectives or {}).items())}
        )
        if config.int8:
            convert(self)
        self.post_init()
        self._ignore_base_weights()
        self.freeze_unread()

    def build_encoders(self, config: PolyRecConfig) -> int:
        """What makes queries and pairs of states and items; the pairs' evidence is read by the linear skip."""
        self.query_encoder = QueryEncoder()
        if not self.pair_tasks:
            return 0
        self.pair_encoder = PairEncoder(config)
        self.task_items = TaskItemEmbedding(config, self.pair_tasks) if config.task_item_embeddings else None
        return self.pair_encoder.evidence

    @property
    def reads_users(self) -> bool:
        """Whether anything reads who the user is; a search by the query alone does not, and histories stay unread."""
        by_user = any(self.heads[name].reads_user for name in self.state_tasks)
        return by_user or bool(self.pair_tasks) or len(self.objectives) > 0

    def freeze_unread(self) -> None:
        """Exempt from training what gets no gradient, for which other ranks would wait."""
        if not self.reads_users:
            self.model.history_encoder.requires_grad_(False)

    @property
    def item_encoder(self) -> ItemEncoder:
        """The item table."""
        return self.model.item_encoder

    @property
    def history_tasks(self) -> list[str]:
        """Retrieval tasks that rank by the history and need no query."""
        return [name for name in self.state_tasks if self.heads[name].excludes == "history"]

    @property
    def item_counts(self) -> Tensor:
        """Training events of each item, [N]."""
        return self.item_encoder.counts

    def forward(
        self,
        batch: Batch | None = None,
        *,
        step: LossStep = ONE_BATCH,
        items: ItemRows | None = None,
        inputs_embeds: Tensor | None = None,
        read: PolyRecModelOutput | None = None,
        **fields: Any,
    ) -> PolyRecOutput:
        """Score the candidates of a batch; with labels, also compute the loss.

        Args:
            batch: the histories and their candidates, see [`~polyrec.data.batch.Batch`].
            step: the optimizer step that the batch is a part of.
            items: the encoded table (`item_encoder.table()`), of a caller with many batches; None: encode anew.
            inputs_embeds: [B, L + 1, D], the encoded start and events, of a caller that changes them.
            read: of `read_users`, for a caller that has read these histories before.
            fields: those of a `Batch`, instead of one.
        """
        batch = Batch.of(fields if batch is None else batch)
        loss = self.loss_of(batch.labels, batch.teacher)
        sampled = SampledItems() if loss is None else loss.sample(self.item_encoder, batch.teacher)
        if items is None:
            read_ids = [batch.item_ids, batch.candidate_ids] if self.reads_users else [batch.candidate_ids]
            items = self.item_encoder.rows(*read_ids, negatives=sampled.all)
        candidate_BCD = items.lookup(batch.candidate_ids)
        read = self.read_users(batch, items, inputs_embeds) if read is None else read
        state_BCD = self.states_of(batch, read)
        shared = SharedRepresentation(state_BCD, items)
        queries = self._queries(batch)
        query_BCD = None if queries is None else queries.vectors_BCD
        context = self.request_context(batch)
        logits = {}
        for name in self._scored_tasks(batch):
            query_state_BCD = self.heads[name].query_state(state_BCD, query_BCD)
            scored = (query_state_BCD, candidate_BCD, batch.candidate_ids, items, context)
            logits[name] = self.heads[name].pair_logits(*scored)
        pairs = PackedPairs(batch.candidate_ids)
        pair_output = self._pair_output(batch, pairs, shared, state_BCD, candidate_BCD, read.inputs, query_BCD)
        for name, logit in pair_output.logits.items():
            logits[name] = pairs.unpack(self.heads[name].mean_over_members(logit))
        output = PolyRecOutput(
            logits={name: logits[name] for name in self.heads if name in logits},
            states=state_BCD,
            queries=query_BCD,
            gates={name: pairs.unpack(gate) for name, gate in pair_output.experts.gates.items()},
        )
        if loss is not None:
            found = CatalogPass(
                labels=batch.labels or {},
                sample_weight=batch.sample_weight,
                candidate_ids=batch.candidate_ids,
                logits=logits,
                pairs=pairs,
                pair_output=pair_output,
                meeting=shared.meeting,
                teacher=batch.teacher,
                reading=self._reading(batch, items, read),
                drawn=sampled.drawn,
                shared=shared,
                counts_N=self.item_counts,
                negatives=sampled.negatives,
                queries=queries,
                context=context,
            )
            loss(output, found, step)
        return output

    def read_users(self, batch: Batch, items: ItemRows, inputs_embeds: Tensor | None = None) -> PolyRecModelOutput:
        """Read the histories of a batch, where a task needs them; arguments as of `forward`."""
        if not self.reads_users:
            return PolyRecModelOutput()
        return self.model(batch.item_ids, batch.event_features, batch.user_features, items, inputs_embeds)

    def states_of(self, batch: Batch, read: PolyRecModelOutput) -> Tensor:
        """The state that each candidate sees, [B, C, D]; zeros where histories are not read."""
        if read.last_hidden_state is not None:
            return gather_states(read.last_hidden_state, batch.candidate_positions)
        return torch.zeros(*batch.shape, self.config.hidden_size, device=self.device, dtype=self.dtype)

    def _scored_tasks(self, batch: Batch) -> list[str]:
        """Retrieval tasks that score the candidates; in training, those with labels only have a loss."""
        unread = set(batch.labels or {}) if self.training else set()
        return [name for name in self.state_tasks if name not in unread]

    def _pair_output(
        self,
        batch: Batch,
        pairs: PackedPairs,
        shared: SharedRepresentation,
        state_BCD: Tensor,
        candidate_BCD: Tensor,
        inputs: Tensor | None,
        query_BCD: Tensor | None,
    ) -> PairOutput:
        """Logits of the pair tasks."""
        if not self.pair_tasks:
            return PairOutput()
        features = {name: pairs.pack(values) for name, values in batch.candidate_features.items()}
        shared.pair_BCD, shared.evidence_BCE = self.pair_encoder(
            state_BCD,
            candidate_BCD,
            inputs,
            batch.candidate_positions,
            pairs,
            features,
            batch.event_features.get(RESIDUALS),
            query_BCD,
        )
        ids_1M = pairs.pack(batch.candidate_ids)
        own = None if self.task_items is None else self.task_items(shared.items.id_rows(ids_1M))
        return self.score_pairs(shared.pair_BCD, ids_1M != PADDING_ITEM, features, shared.evidence_BCE, own)

    def _reading(self, batch: Batch, items: ItemRows, read: PolyRecModelOutput) -> Reading:
        """What objectives read."""
        return Reading(
            self.item_encoder,
            self.model.history_encoder,
            items,
            batch.item_ids,
            batch.event_features,
            batch.user_features,
            read.last_hidden_state,
        )

    def _queries(self, batch: Batch) -> CandidateQueries | None:
        if not self.config.queries:
            return None
        tokens_QS, mask_QS, candidate_query_BC = batch.query_tokens, batch.query_mask, batch.candidate_query
        if tokens_QS is None or mask_QS is None or candidate_query_BC is None:
            raise ValueError(
                "this model reads queries: pass query_tokens, query_mask [Q, S] and candidate_query [B, C]"
            )
        assert self.item_encoder.text is not None  # the configuration sees to it
        return self.query_encoder(self.item_encoder.text, tokens_QS, mask_QS, candidate_query_BC, batch.query_items)

    def score_items(
        self,
        states_MD: Tensor,
        task: str,
        items: ItemRows | None = None,
        queries_MD: Tensor | None = None,
        context: RequestContext = NO_CONTEXT,
    ) -> Tensor:
        """Scores of the catalog for a retrieval task, [M, D] -> [M, N]; padding and the unknown item score -inf.

        Args:
            queries_MD: of a search task.
            context: of the M requests, some `rows` of [`context`]; for the options `item_age` and `repeats`.
        """
        head = self.heads[task]
        if head.reads != "state":
            raise ValueError(
                f"task {task!r} has head {head.task.head!r}, which scores pairs; retrieval tasks: {self.state_tasks}"
            )
        items = self.item_encoder.table() if items is None else items
        return head(head.query_state(states_MD, queries_MD), items, context)

    def request_context(self, batch: Batch | None = None, **fields: Any) -> RequestContext:
        """When, and after which events, the candidates of a batch are scored; arguments as of `forward`."""
        heads = {name: self.heads[name] for name in self.state_tasks}
        return context_of(Batch.of(fields if batch is None else batch), heads)

    def load_catalog(self, attributes: Mapping[str, Any], counts: Tensor, id_vectors: Tensor | None = None) -> None:
        """Put item attributes, training counts and first id embeddings into the model, see
        `ItemEncoder.load_catalog`."""
        self.refuse_int8("training and no other catalog")
        new_N = self.item_encoder.load_catalog(attributes, counts, id_vectors)
        if self.pair_tasks and self.task_items is not None:
            self.task_items.init_from_unknown(new_N)

    def extend(self, processor: Any) -> None:
        """Add rows for the items that `processor.extend(...)` added to the catalog; give both before saving.

        Rows there are stay as they are, and so do all scores of their items, bit by bit. A new item is judged by
        its attributes and its text (see `ItemEncoder.extend`) until it has events of its own: those are trained by
        `polyrec update` or any further training. New users need no rows.

        Args:
            processor: the [`PolyRecProcessor`] saved with the model, after `extend`.
        """
        self.refuse_int8("new items")
        known_N, rows = self.item_encoder.counts > 0, processor.num_items
        if rows < len(known_N):
            raise ValueError(
                f"the processor has {rows} rows of items but the model has {len(known_N)}: extend the processor that "
                "was saved with the model"
            )
        texts = None if self.item_encoder.text is None else processor.item_tokens()
        put_N = self.item_encoder.extend(processor.items.encoded, rows, texts)
        for head in self.heads.values():
            head.extend(rows, known_N)
        self.load_times(processor)
        for objective in self.objectives.values():
            objective.extend(rows, known_N)
            objective.load_texts(processor)
        if self.pair_tasks and self.task_items is not None:
            self.task_items.extend(rows)
        self.config.num_items = rows
        if put_N.any():
            calibrate_new_items(self, processor, put_N)

    def quantize(self) -> None:
        """Turn matrices and tables into int8, see `models.polyrec.int8`; it cannot be trained any more."""
        self.refuse_int8("second quantization")
        convert(self)
        self.requires_grad_(False)
        self.config.int8 = True

    def refuse_int8(self, what: str) -> None:
        """Raise an error if weights are int8, which take no `what`."""
        if self.config.int8:
            raise ValueError(
                f"the model's weights are int8, which take no {what}: go back to the run that was "
                "quantized, and quantize what comes of it"
            )

    def add_task_adapter(self, task: str, rank: int) -> None:
        """Give a task a low-rank step of its own, which starts as none; see [`TaskAdapter`]."""
        self.refuse_int8("training")
        self.heads[task].add_adapter(rank)
        self.config.task_adapters = {**(self.config.task_adapters or {}), task: rank}

    def load_texts(self, processor: Any) -> None:
        """Give the text encoder the items' texts, for training and for items that have no stored vector yet."""
        if self.item_encoder.text is not None:
            self.item_encoder.text.load(processor.item_tokens())
        for objective in self.objectives.values():
            objective.load_texts(processor)

    def load_times(self, processor: Any) -> None:
        """Tell the heads when items appeared, where they read it; the trainer and `extend` do.

        After `processor.update(events)` a head with `item_age="first_event"` learns by this what has been seen since.
        """
        for head in self.heads.values():
            head.load_times(processor)

    def load_neighbours(self, processor: Any) -> None:
        """Tell the heads which items go with which in the training rows of a split; the trainer does."""
        for head in self.heads.values():
            head.load_neighbours(processor)

    def search(
        self, processor: Any, query: str, history: Any = None, k: int = 10, **request: Any
    ) -> list[dict[str, Any]]:
        """Find items by what somebody typed; see `polyrec.inference.search.search`."""
        return offered("search")(self, processor, query, history, k=k, **request)

    def recommend(self, processor: Any, history: Any = None, k: int = 10, **request: Any) -> list[dict[str, Any]]:
        """Recommend items to one user; see `polyrec.inference.recommender.Recommender.recommend`."""
        return offered("recommend")(self, processor, history, k=k, **request)

    def explain(
        self, processor: Any, history: Any = None, items: Any = None, k: int = 10, **request: Any
    ) -> list[dict[str, Any]]:
        """Say why items are recommended to one user; see `polyrec.inference.explanation.explain`."""
        return offered("explain")(self, processor, history, items, k, **request)


AutoModel.register(PolyRecConfig, PolyRecModel, exist_ok=True)
