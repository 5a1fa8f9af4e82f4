"""`PolyRecModel` reads people; `PolyRecForRecommendation` answers every task about them.

Letters: B people, L events, C candidates, M rows of some subset, N items, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from polyrec.core.offers import offered
from polyrec.core.registry import HEADS, OBJECTIVES
from polyrec.core.schema import REFUSED, RESIDUALS
from polyrec.models.multitask import MultiTaskModel, PairAnswers, nothing
from polyrec.models.polyrec.configuration_polyrec import PolyRecConfig
from polyrec.models.polyrec.extension import calibrate_new_items
from polyrec.models.polyrec.int8 import convert
from polyrec.models.pretrained import PolyRecModelOutput, PolyRecOutput, PolyRecPreTrainedModel
from polyrec.models.teaching import FurtherLosses, StudentOutput, Sums
from polyrec.modules.encoders.history import HistoryEncoder
from polyrec.modules.encoders.item import PADDING_ITEM, ItemEncoder, ItemRows
from polyrec.modules.encoders.pair import PairEncoder
from polyrec.modules.encoders.query import CandidateQueries, QueryEncoder
from polyrec.modules.encoders.request_context import NO_CONTEXT, RequestContext, Trending, latest_items, visible_items
from polyrec.modules.encoders.shared import PackedPairs, SharedRepresentation
from polyrec.modules.encoders.task_items import TaskItemEmbedding
from polyrec.modules.objectives.base import Reading, mean_losses


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
        """Read each person once.

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
    def reads_people(self) -> bool:
        """Whether anything asks who the person is; a search by the query alone does not, and histories stay unread."""
        by_person = any(self.heads[name].reads_person for name in self.state_tasks)
        return by_person or bool(self.pair_tasks) or len(self.objectives) > 0

    def freeze_unread(self) -> None:
        """Exempt from training what gets no gradient, for which other ranks would wait."""
        if not self.reads_people:
            self.model.history_encoder.requires_grad_(False)

    @property
    def item_encoder(self) -> ItemEncoder:
        """The item table."""
        return self.model.item_encoder

    @property
    def item_counts(self) -> Tensor:
        """Training events of each item, [N]."""
        return self.item_encoder.counts

    def forward(
        self,
        item_ids: Tensor,
        event_features: dict[str, Tensor] | None = None,
        user_features: dict[str, Tensor] | None = None,
        candidate_ids: Tensor | None = None,
        candidate_positions: Tensor | None = None,
        candidate_features: dict[str, Tensor] | None = None,
        labels: dict[str, Tensor] | None = None,
        sample_weight: dict[str, Tensor] | None = None,
        denominators: dict[str, Tensor] | None = None,
        share: float = 1.0,
        query_tokens: Tensor | None = None,
        query_mask: Tensor | None = None,
        candidate_query: Tensor | None = None,
        query_items: Tensor | None = None,
        items: ItemRows | None = None,
        candidate_times: Tensor | None = None,
        teacher: dict[str, Any] | None = None,
        progress: float = 0.0,
        inputs_embeds: Tensor | None = None,
        user_fold: Tensor | None = None,
        trending: dict[str, dict[str, Tensor]] | None = None,
        candidate_trending: Tensor | None = None,
    ) -> PolyRecOutput:
        """Answer the candidates of a batch.

        Args:
            item_ids: [B, L] int64, events in time order, 0 = padding on the right.
            event_features: {name: [B, L(, K)]}, known once the event had happened.
            user_features: {name: [B(, K)]}.
            candidate_ids: [B, C] int64, items asked about, 0 = padding.
            candidate_positions: [B, C] int64, how many events (0..L) are visible to the candidate.
            candidate_features: {name: [B, C(, K)]}, context and running statistics, known before the answer.
            labels: {task: [B, C]} float, NaN = unknown. Without labels there is no loss.
            sample_weight: {task: [B, C]}, e.g. inverse propensities.
            denominators: {task or objective: scalar} by which each sum of losses is divided: the known labels of the
                whole accumulation window over all ranks. Default: the known labels of this batch.
            share: of the optimizer step that this batch is, 1 / (batches accumulated x ranks); terms of the objective
                that do not come from labels (of a learnt weighting, of load balancing) are multiplied by it.
            query_tokens, query_mask: [Q, S], the queries of the batch and which tokens are real.
            candidate_query: [B, C] int64, the query by which the candidate was found, -1 = none.
            query_items: [B, C] int64, the item that this query is the text of and that it cannot find, 0 = none.
            items: the encoded table (`item_encoder.table()`), for a caller that asks one model about many batches.
                Default: what the batch needs is encoded anew.
            candidate_times: [B, C] int64, when each is asked about, in milliseconds since the epoch; for tasks that
                read the age of items.
            teacher: what a teacher answered, see [`~polyrec.distillation.teacher.Teacher`]; a student learns from it.
            progress: share of the training that is done.
            inputs_embeds: [B, L + 1, D], the encoded start and events, of a caller that changes them.
            user_fold: [B] int64, of training windows: the fold of the user, without whom the neighbours of items were
                counted that the window reads in training mode. 0 or None: the neighbours of all users.
            trending: {task: {"items": [U, K], "values": [U, K]}}, snapshots of what was popular, see
                [`~polyrec.data.trending.Snapshots`]; for tasks that read it.
            candidate_trending: [B, C] int64, the snapshot that each candidate reads.
        """
        if candidate_ids is None or candidate_positions is None:
            raise ValueError(
                "pass candidate_ids and candidate_positions [B, C]: the items asked about, and after how many events"
            )
        retrieval_negatives = self._negatives() if labels is not None else {}
        objectives = dict(self.objectives.items()) if labels is not None and self.training else {}
        drawn = {name: objective.draw(self.item_encoder) for name, objective in objectives.items()}
        further = [*retrieval_negatives.values(), *(own for own in drawn.values() if own is not None)]
        soft_losses, teacher = self._soft_losses(labels, teacher), teacher or {}
        if soft_losses is not None:
            further += [listed.flatten() for listed in teacher.get("teacher_items", {}).values()]
        asked_about = [item_ids, candidate_ids] if self.reads_people else [candidate_ids]
        items = self.item_encoder.rows(*asked_about, negatives=further) if items is None else items
        candidate_BCD = items.lookup(candidate_ids)
        if self.reads_people:
            read = self.model(item_ids, event_features, user_features, items=items, inputs_embeds=inputs_embeds)
            state_BCD = gather_states(read.last_hidden_state, candidate_positions)
        else:
            read, state_BCD = PolyRecModelOutput(), torch.zeros_like(candidate_BCD)
        shared = SharedRepresentation(state_BCD, items)
        queries = self._queries(query_tokens, query_mask, candidate_query, query_items)
        query_BCD = None if queries is None else queries.vectors_BCD
        told = event_features, user_fold, trending, candidate_trending
        context = self.request_context(item_ids, candidate_positions, candidate_times, *told)
        unread = set() if labels is None or not self.training else set(labels)
        logits = {
            name: self.heads[name].pair_logits(
                self.heads[name].question(state_BCD, query_BCD), candidate_BCD, candidate_ids, items, context
            )
            for name in self.state_tasks
            if name not in unread
        }
        pairs, answers = PackedPairs(candidate_ids), PairAnswers()
        if self.pair_tasks:
            features = {name: pairs.pack(values) for name, values in (candidate_features or {}).items()}
            shared.pair_BCD, shared.evidence_BCE = self.pair_encoder(
                state_BCD,
                candidate_BCD,
                read.inputs,
                candidate_positions,
                pairs,
                features,
                (event_features or {}).get(RESIDUALS),
                query_BCD,
            )
            asked = pairs.pack(candidate_ids)
            own = None if self.task_items is None else self.task_items(shared.items.id_rows(asked))
            answers = self.answer_pairs(shared.pair_BCD, asked != PADDING_ITEM, features, shared.evidence_BCE, own)
        for name, logit in answers.logits.items():
            logits[name] = pairs.unpack(self.heads[name].mean_over_members(logit))
        output = PolyRecOutput(
            logits={name: logits[name] for name in self.heads if name in logits},
            states=state_BCD,
            queries=query_BCD,
            gates={name: pairs.unpack(gate) for name, gate in answers.experts.gates.items()},
        )
        if labels is not None:
            answered, soft = None, None
            hard: Sums = {}
            if soft_losses is not None and teacher:
                answered = StudentOutput(
                    pairs,
                    answers.logits,
                    {name: pairs.pack(labels[name]) for name in self.pair_tasks if name in labels},
                    answers.experts.gates,
                    candidate_ids != PADDING_ITEM,
                    shared.state_BCD,
                    items,
                    self.item_encoder.counts,
                    retrieval_negatives,
                    queries,
                    context,
                )
                known = self._taken(candidate_ids, labels, sample_weight or {})
                hard, soft = soft_losses.beside_labels(teacher, self.heads, answered, known, denominators, progress)
            output.losses, output.counts = self._losses(
                logits,
                answers,
                shared,
                pairs,
                candidate_ids,
                labels,
                sample_weight or {},
                retrieval_negatives,
                queries,
                context,
                hard,
            )
            if soft_losses is not None and answered is not None:
                soft = soft_losses(teacher, self.heads, answered, progress, soft)
            self.combine(output, denominators, share, shared.meeting, answers.experts.penalty, soft, progress)
        if objectives:
            reading = Reading(
                self.item_encoder,
                self.model.history_encoder,
                items,
                item_ids,
                event_features or {},
                user_features or {},
                read.last_hidden_state,
            )
            output.objectives = mean_losses(objectives, reading, drawn, denominators)
            output.loss = output.loss + sum(objectives[n].weight * loss for n, loss in output.objectives.items())
        return output

    def _queries(
        self,
        tokens_QS: Tensor | None,
        mask_QS: Tensor | None,
        candidate_query_BC: Tensor | None,
        own_items_BC: Tensor | None,
    ) -> CandidateQueries | None:
        if not self.config.queries:
            return None
        if tokens_QS is None or mask_QS is None or candidate_query_BC is None:
            raise ValueError(
                "this model reads queries: pass query_tokens, query_mask [Q, S] and candidate_query [B, C]"
            )
        assert self.item_encoder.text is not None  # the configuration sees to it
        return self.query_encoder(self.item_encoder.text, tokens_QS, mask_QS, candidate_query_BC, own_items_BC)

    def _soft_losses(self, labels: Any, teacher: Mapping[str, Any] | None) -> FurtherLosses | None:
        if teacher and self.soft_losses is None:
            raise ValueError(
                "a teacher's answers are given, but nothing says what is learnt of them: let PolyRecTrainer train the "
                "model, or call polyrec.distillation.student.attach_soft_losses(model)"
            )
        return None if labels is None else self.soft_losses

    def _negatives(self) -> dict[str, Tensor]:
        if self.item_encoder.negatives_of_batch:
            return {}
        counts = self.item_encoder.counts
        return {name: self.heads[name].negatives(counts) for name in self.state_tasks if self.heads[name].sampled}

    def _losses(
        self,
        logits: dict[str, Tensor],
        answers: PairAnswers,
        shared: SharedRepresentation,
        pairs: PackedPairs,
        candidate_ids: Tensor,
        labels: dict[str, Tensor],
        sample_weight: dict[str, Tensor],
        negatives: dict[str, Tensor],
        queries: CandidateQueries | None,
        context: RequestContext,
        there: Sums,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        losses, counts = {}, {}
        for name, head in self.heads.items():
            weight = sample_weight.get(name)
            if name in there:
                losses[name], counts[name] = there[name]
            elif head.reads == "pair":
                losses[name], counts[name] = self.pair_loss(name, answers, pairs, labels, sample_weight)
            elif name not in labels:  # a batch of another data set
                losses[name], counts[name] = nothing(logits[name])
            else:
                rows_M = head.known(labels[name], candidate_ids).flatten().nonzero().squeeze(-1)
                query_MD = own_M = None
                if queries is not None:
                    query_MD = queries.vectors_BCD.flatten(0, 1).index_select(0, rows_M)
                    own_M = queries.own_items_BC.flatten()[rows_M]
                losses[name], counts[name] = head.retrieval_loss(
                    head.question(shared.state_BCD.flatten(0, 1).index_select(0, rows_M), query_MD),
                    candidate_ids.flatten()[rows_M],
                    shared.items,
                    self.item_encoder.counts,
                    negatives.get(name),
                    None if weight is None else weight.flatten()[rows_M],
                    own_M if head.excludes == "own item" else None,
                    context.rows(rows_M),
                )
        return losses, counts

    def _taken(
        self, candidate_ids: Tensor, labels: dict[str, Tensor], sample_weight: dict[str, Tensor]
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """{retrieval task: (items that were taken, 0 = not or unknown, [B, C], and their weights)}."""
        return {
            name: (
                torch.where(self.heads[name].known(labels[name], candidate_ids), candidate_ids, PADDING_ITEM),
                sample_weight.get(name),
            )
            for name in self.state_tasks
            if name in labels
        }

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
            context: of the M questions, some `rows` of [`context`]; for the options `item_age` and `repeats`.
        """
        head = self.heads[task]
        if head.reads != "state":
            raise ValueError(
                f"task {task!r} has head {head.task.head!r}, which scores pairs; retrieval tasks: {self.state_tasks}"
            )
        items = self.item_encoder.table() if items is None else items
        return head(head.question(states_MD, queries_MD), items, context)

    def request_context(
        self,
        item_ids: Tensor,
        candidate_positions: Tensor,
        candidate_times: Tensor | None = None,
        event_features: Mapping[str, Tensor] | None = None,
        user_fold: Tensor | None = None,
        trending: Mapping[str, Mapping[str, Tensor]] | None = None,
        candidate_trending: Tensor | None = None,
        **unread: Any,
    ) -> RequestContext:
        """When, and after which events, the candidates of a batch are asked about; arguments as of `forward`."""
        heads = {name: self.heads[name] for name in self.state_tasks}
        refused = {name: (event_features or {}).get(REFUSED + name) for name in heads}
        refused_BL = {name: values > 0 for name, values in refused.items() if values is not None}
        context = RequestContext(candidate_times)
        if any(head.reads_history for head in heads.values()):
            shape = (*candidate_positions.shape, item_ids.shape[1])
            every = {name: values.unsqueeze(1).expand(shape) for name, values in refused_BL.items()}
            context = context._replace(history=visible_items(item_ids, candidate_positions), refused=every)
        latest = {
            name: latest_items(item_ids, candidate_positions, refused_BL.get(name), head.latest_events)
            for name, head in heads.items()
            if head.latest_events
        }
        if latest:
            fold = None if user_fold is None else user_fold.unsqueeze(1).expand_as(candidate_positions)
            context = context._replace(latest=latest, fold=fold)
        if trending is not None and candidate_trending is not None:
            found = {name: Trending(candidate_trending, **tables) for name, tables in trending.items() if name in heads}
            context = context._replace(trending=found)
        return context

    def load_catalog(self, attributes: Mapping[str, Any], counts: Tensor, id_vectors: Tensor | None = None) -> None:
        """Put item attributes, training counts and first id vectors into the model, see `ItemEncoder.load_catalog`."""
        self.refuse_int8("training and no other catalog")
        met_N = self.item_encoder.load_catalog(attributes, counts, id_vectors)
        if self.pair_tasks and self.task_items is not None:
            self.task_items.init_from_unknown(met_N)

    def extend(self, processor: Any) -> None:
        """Add rows for the items that `processor.extend(...)` added to the catalog; give both before saving.

        Rows there are stay as they are, and so do all answers about their items, bit by bit. A new item is judged by
        its attributes and its text (see `ItemEncoder.extend`) until it has events of its own: those are learnt from
        `polyrec update` or any further training. New people need no rows.

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
        """Turn matrices and tables into whole numbers of 8 bits, see `models.polyrec.int8`; it learns no more."""
        self.refuse_int8("second quantization")
        convert(self)
        self.requires_grad_(False)
        self.config.int8 = True

    def refuse_int8(self, what: str) -> None:
        """Raise an error if weights are whole numbers of 8 bits, which take no `what`."""
        if self.config.int8:
            raise ValueError(
                f"the model's weights are whole numbers of 8 bits, which take no {what}: go back to the run that was "
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
        """Recommend items to one person; see `polyrec.inference.recommender.Recommender.recommend`."""
        return offered("recommend")(self, processor, history, k=k, **request)

    def explain(
        self, processor: Any, history: Any = None, items: Any = None, k: int = 10, **request: Any
    ) -> list[dict[str, Any]]:
        """Say why items are recommended to one person; see `polyrec.inference.explanation.explain`."""
        return offered("explain")(self, processor, history, items, k, **request)


def gather_states(states_BLD: Tensor, positions_BC: Tensor) -> Tensor:
    """The state at each position, [B, L + 1, D] and [B, C] -> [B, C, D]."""
    batch, length, width = states_BLD.shape
    rows_B1 = torch.arange(batch, device=positions_BC.device).unsqueeze(1) * length
    # index_select on the flat rows: on CPU its backward is far faster than that of fancy indexing.
    flat = states_BLD.reshape(-1, width).index_select(0, (rows_B1 + positions_BC).flatten())
    return flat.view(batch, -1, width)


AutoModel.register(PolyRecConfig, PolyRecModel, exist_ok=True)
