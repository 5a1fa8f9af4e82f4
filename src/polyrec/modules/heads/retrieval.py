"""Which item next: scores of the whole catalog from a state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.losses import linear_cross_entropy
from polyrec.core.modules import in_double
from polyrec.core.reduction import known_weight, masked_sum
from polyrec.core.registry import HEADS, nearest
from polyrec.core.schema import TaskConfig
from polyrec.data.neighbours import TABLES
from polyrec.modules.encoders.growth import add_rows, in_blocks
from polyrec.modules.encoders.item import FIRST_ITEM, ItemRows
from polyrec.modules.encoders.request_context import LATEST, NO_CONTEXT, RequestContext
from polyrec.modules.heads._draw import draw
from polyrec.modules.heads.base import Summary, TaskHead
from polyrec.modules.heads.terms.item_age import SOURCES, ItemAge
from polyrec.modules.heads.terms.item_terms import ItemTerm, ItemTerms
from polyrec.modules.heads.terms.linear import LinearNeighbours
from polyrec.modules.heads.terms.neighbours import ItemNeighbours
from polyrec.modules.heads.terms.repeats import Repeats
from polyrec.modules.heads.terms.seen import Seen
from polyrec.modules.heads.terms.set_neighbours import SetNeighbours
from polyrec.modules.heads.terms.trending import TrendingItems, WeighedRecentItems
from polyrec.modules.heads.terms.weighed import WeighedTerm

_FROM_DATA = (
    "age_start",
    "cold_negatives",
    "neighbours",
    *TABLES,
    "reach",
    "of_sets",
    "trending",
    "trending_start",
    "recent",
)  # options that a processor finds


@HEADS.register("retrieval")
class RetrievalHead(TaskHead):
    r"""Tied softmax over the catalog, L = -sum_i w_i log softmax_j(s_i . v_j + b_j)[target_i].

    v_j are the item vectors that the history encoder reads, too (tied weights). For catalogs of more than
    `sampled_above` items the softmax runs over the targets of the batch and `num_negatives` sampled items, each logit
    corrected by -log Q(j) of the sampling distribution (Bengio and Senecal, 2008; Yi et al., 2019), with accidental
    hits masked.

    Args:
        task: options `num_negatives`, `sampled_above`, `label_smoothing` (share of the target spread evenly over the
            catalog; full softmax only) and `cold_negatives`: whether items without training events are negatives. They
            are never taken in training, so a model learns to leave them alone. With False they are none, and share the
            bias of the unknown item, which dropped ids (`item_id_dropout`) learn: where what is new is wanted, which
            `processor.model_config()` finds out.
            `bias_rate`: how many times faster than other parameters biases learn. Few steps move a bias of a popular
            item far enough only if it is > 1.
            `item_age`: add a(s_i, age of j) to the logit, see `ItemAge`: where what comes next is mostly
            new, or mostly old. "release": ages count from `columns.item_time`, and what is not there yet when a
            question is asked is impossible; "first_event": from the item's first event in the log; None: no such term.
            `age_buckets`: how finely ages are told apart; `age_start`: what is taken at each age however one is (the
            processor finds it in the training rows).
            `repeats`: add r(s_i, how often and how long ago j was taken) to the logit, see `Repeats`: where people take
            the same again (baskets, songs); lists, served and measured, then hold it, too.
            Events whose label is known to be 0 (seen, and not taken) do not count.
            `neighbours`: add what goes with the user's latest items, see `ItemNeighbours`; so many neighbours are kept
            of each item. 0: no such term. `of_sets`: with all of the user's events instead, whose order says nothing,
            see `SetNeighbours`, and what a question sees is no negative of it, see `Seen`. `processor.model_config()`
            sets both.
            `linear`, `transitions`: a linear item-item model (EASE), and chances of what comes next, that are added
            after training with the weights that rank validation best, see `LinearNeighbours`; so many numbers are kept
            of each item. 0: no such term. `reach`: how many of the latest items they read.
            `trending`: add what is popular now, see `TrendingItems`: [half-life in seconds, weight of the counts that
            fade by it] of each of some half-lives, e.g. [[3600, 100]]. (): no such term. The processor counts by it,
            and sets it by late training rows. `trending_start`: the power of popularity at the start; 0: no training
            reads it, as where it tells no more than the popularity of all time. `recent`: add it after training, too,
            with the weight that ranks validation best, see `WeighedRecentItems`.

    Shapes: states [M, D], items [N, D] -> logits [M, N].

    Example:
        >>> config = PolyRecConfig(tasks=[{"name": "next_item", "head": "retrieval"}], num_items=6, hidden_size=4)
        >>> head = RetrievalHead(config.task_configs[0], config)
        >>> head(torch.zeros(3, 4), ItemRows(torch.zeros(6, 4))).shape
        torch.Size([3, 6])
    """

    reads = "state"
    output_kind = "catalog"
    metrics = ("ndcg@10", "recall@10", "mrr@10", "coverage@10")
    further_cutoffs: ClassVar[tuple[int, ...]] = ()  # lengths of lists that it measures beside the one asked for
    default_options: ClassVar[dict[str, Any]] = {
        "num_negatives": 1024,
        "sampled_above": 20_000,
        "label_smoothing": 0.0,
        "cold_negatives": True,
        "bias_rate": 1.0,
        "item_age": None,
        "age_buckets": 128,
        "age_start": None,
        "repeats": False,
        "neighbours": 0,
        "of_sets": False,
        "linear": 0,
        "transitions": 0,
        "reach": LATEST,
        "trending": (),
        "trending_start": 1.0,
        "recent": False,
    }

    def __init__(self, task: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__(task, config)
        if not 0 <= self.options["label_smoothing"] < 1:
            raise ValueError(f"option 'label_smoothing' of task {task.name!r} must be in [0, 1)")
        if self.options["label_smoothing"] and not self.options["cold_negatives"]:
            raise self.option_error(
                "label_smoothing", "it would smooth over cold items: set cold_negatives=True, or 0 here"
            )
        if not self.options["bias_rate"] > 0:
            raise self.option_error("bias_rate", "it must be > 0")
        self.age = self._item_age(config)
        self.repeats = (
            Repeats(config.hidden_size, self.options["bias_rate"], task.name) if self.options["repeats"] else None
        )
        for option, least in (*dict.fromkeys(("neighbours", *TABLES), 0).items(), ("reach", 1)):
            if self.options[option] < least:
                raise self.option_error(option, f"it must be >= {least}")
        size = self.options["neighbours"]
        self.linear, self.transitions = (
            LinearNeighbours(self.options[kind], config.num_items, self.options["reach"], task.name)
            if self.options[kind]
            else None
            for kind in TABLES
        )
        kind = SetNeighbours if self.options["of_sets"] else ItemNeighbours
        self.neighbours = (
            kind(size, config.num_items, config.hidden_size, self.options["bias_rate"], task.name) if size else None
        )
        self.trending, self.recent = self._trending(config)
        once = self.options["of_sets"] and not self.options["repeats"] and not self.options["label_smoothing"]
        self.seen = Seen() if once else None
        self.sampled = config.num_items > self.options["sampled_above"]
        self.project = nn.Linear(config.hidden_size, config.hidden_size)
        # A bias is known of the model's own items alone.
        self.bias = nn.Embedding(config.num_items, 1) if config.item_ids else None

    @classmethod
    def options_from_labels(cls, task: TaskConfig, summary: Summary) -> dict[str, Any]:
        """What is taken at each age, if ages are read; how many neighbours are worth their memory; what is trending."""
        return {name: summary[name] for name in _FROM_DATA if name in summary}

    def _item_age(self, config: PolyRecConfig) -> ItemAge | None:
        source, buckets = self.options["item_age"], self.options["age_buckets"]
        if source is None:
            return None
        if source not in SOURCES:
            raise self.option_error("item_age", nearest(str(source), list(SOURCES)))
        if buckets < 1:
            raise self.option_error("age_buckets", "it must be >= 1")
        start = self.options["age_start"]
        if start is not None and len(start) != buckets + 1:
            raise self.option_error("age_start", f"it must hold age_buckets + 1 = {buckets + 1} numbers")
        if source == "release" and self.options["label_smoothing"]:
            raise self.option_error(
                "label_smoothing", 'it would smooth over items not there yet: 0 with item_age="release"'
            )
        return ItemAge(source, buckets, config.num_items, config.hidden_size, start, self.options["bias_rate"])

    def _trending(self, config: PolyRecConfig) -> tuple[TrendingItems | None, WeighedRecentItems | None]:
        mixture, start, name = self.options["trending"], self.options["trending_start"], self.task.name
        if not mixture:
            return None, None
        if not all(isinstance(part, Sequence) and len(part) == 2 and min(part) > 0 for part in mixture):
            raise self.option_error(
                "trending", "it must hold pairs [half-life in seconds, weight], both > 0: [[3600, 100]]"
            )
        rate, num_items = self.options["bias_rate"], config.num_items
        return (
            None if not start else TrendingItems(num_items, config.hidden_size, start, rate, name),
            WeighedRecentItems(num_items, name) if self.options["recent"] else None,
        )

    @property
    def reads_history(self) -> bool:
        """Whether terms read all events that a question sees."""
        return self.options["repeats"] or self.options["of_sets"]

    @property
    def latest_events(self) -> int:
        """How many of the latest items terms read; 0: none of them does."""
        if self._tables and not self.training:
            return max(self.options["reach"], LATEST)
        return LATEST if self.neighbours is not None or self._tables else 0

    @property
    def _tables(self) -> dict[str, LinearNeighbours]:
        terms = zip(TABLES, (self.linear, self.transitions), strict=True)
        return {kind: term for kind, term in terms if term is not None}

    @property
    def weighed(self) -> dict[str, WeighedTerm]:
        """The terms whose weight validation chooses, one after the other, by their options."""
        return {**self._tables, **({} if self.recent is None else {"recent": self.recent})}

    @property
    def evidence(self) -> ItemTerms:
        """The terms that say what goes with the user's items."""
        tables = [term for term in self._tables.values() if term.speaks]
        return ItemTerms([*([] if self.neighbours is None else [self.neighbours]), *tables])

    @property
    def terms(self) -> ItemTerms:
        """What is added to logits beside s . v + b."""
        return ItemTerms(list(self.named_terms.values()))

    @property
    def named_terms(self) -> dict[str, ItemTerm]:
        """The terms by the options that turn them on."""
        every: dict[str, ItemTerm | None] = {
            "item_age": self.age,
            "repeats": self.repeats,
            "neighbours": self.neighbours,
            **self._speaking,
            "trending": self.trending,
            "of_sets": self.seen,
        }
        return {name: term for name, term in every.items() if term is not None}

    @property
    def _speaking(self) -> dict[str, WeighedTerm]:
        return {kind: term for kind, term in self.weighed.items() if term.speaks}

    def initialise(self) -> None:
        """Terms start with what the log knows, which a projection at random of the usual size would only blur."""
        if self.neighbours is not None:
            self.neighbours.initialise()
        for term in self.weighed.values():
            term.initialise()
        if self.trending is not None:
            self.trending.initialise()
        if self.repeats is not None:
            self.repeats.initialise()
        if self.age is not None:
            self.age.initialise()
            init.zeros_(self.project.weight)
        elif self.neighbours is not None or self.trending is not None:  # not 0: balancing compares the tasks' gradients
            init.copy_(self.project.weight, 0.1 * self.project.weight)

    def load_times(self, processor: Any) -> None:
        """Take when items appeared."""
        if self.age is not None:
            self.age.load(torch.from_numpy(processor.item_times(self.age.source)))

    def load_neighbours(self, processor: Any) -> None:
        """Take what goes with what in the training rows, unless the head knows it of other rows already."""
        if self.neighbours is not None:
            whole, *folds = processor.item_neighbours(self.task.name, self.options["neighbours"])
            if self.neighbours.is_new or self.neighbours.holds(whole):
                self.neighbours.load(whole, folds)
        for kind, term in self._tables.items():
            table = processor.weighed_neighbours(self.task.name, kind, self.options[kind]) if term.is_new else None
            if table is not None:
                term.load(table)

    @torch.no_grad()
    def extend(self, num_items: int, known_N: Tensor) -> None:
        """Add biases, which start as the mean of the items that have been taken: neither popular nor shunned."""
        self.sampled = num_items > self.options["sampled_above"]
        if self.neighbours is not None:
            self.neighbours.extend(num_items)
        for term in self.weighed.values():
            term.extend(num_items)
        if self.trending is not None:
            self.trending.extend(num_items)
        if self.bias is not None:
            start = self.bias.weight[known_N].mean() if known_N.any() else self.bias.weight.new_zeros(())
            add_rows(self.bias, start.expand(num_items - self.bias.num_embeddings, 1))

    @torch.no_grad()
    def calibrate_new_items(
        self, state_MD: Tensor, items: ItemRows, taken_N: Tensor, new_N: Tensor, context: RequestContext = NO_CONTEXT
    ) -> None:
        """Raise the biases of new items until each gets as much of the softmax as one that was taken, in the mean.

        What is told of an item lies near the mean of all, and so do its logits: without this, hardly any list of 10
        would hold a new item.

        Args:
            state_MD: of people.
            items: the encoded table.
            taken_N, new_N: bool [N].
            context: of the same people.
        """
        if self.bias is None:
            return
        ids_N, lifts = torch.arange(len(new_N), device=new_N.device), []
        bias_N = self._bias(ids_N, items)
        for at in torch.arange(len(state_MD), device=ids_N.device).split(32):  # a large catalog has many logits
            logits_MN = F.linear(self.project(state_MD[at]), items.vectors_MD, bias_N)
            if evidence := self.evidence:  # of which new items have none
                logits_MN = evidence.add_to(logits_MN, state_MD[at], context.at(at), ids_N)
            logits_MN = in_double(logits_MN)
            both = (n.to(logits_MN.device) for n in (taken_N, new_N))
            share_M, new_M = (torch.logsumexp(logits_MN[:, n], 1) - n.sum().log() for n in both)
            lifts.append(share_M - new_M)
        self.bias.weight[new_N] += (torch.cat(lifts).mean() / self.options["bias_rate"]).to(self.bias.weight)

    @property
    def reads_person(self) -> bool:
        """Whether answers depend on the person's state."""
        return True

    def known(self, labels: Tensor, candidate_ids: Tensor) -> Tensor:
        """Candidates that were taken and are in the catalog, bool [B, C]."""
        return (labels > 0) & (candidate_ids >= FIRST_ITEM)

    def question(self, state: Tensor, query: Tensor | None) -> Tensor:
        """What is asked of the catalog: the person's state, whatever was typed."""
        return self.adapted(state)

    def forward(self, state_MD: Tensor, items: ItemRows, context: RequestContext = NO_CONTEXT) -> Tensor:
        """Scores of all rows of `items`, [M, D] -> [M, N]; padding and the unknown item score -inf.

        Args:
            context: of the M questions; with the options `item_age` and `repeats`.
        """
        rows_N = torch.arange(len(items.vectors_MD), device=state_MD.device) if items.rows_M is None else items.rows_M
        bias_N = self._bias(rows_N, items).masked_fill(rows_N < FIRST_ITEM, float("-inf"))
        query_MD = self.project(state_MD)
        logits_MN = in_blocks(lambda block_ND: F.linear(query_MD, block_ND), items.vectors_MD, dim=1) + bias_N
        return self.terms.add_to(logits_MN, state_MD, context, rows_N) if self.terms else logits_MN

    def pair_logits(
        self,
        state_BCD: Tensor,
        candidate_BCD: Tensor,
        candidate_ids: Tensor,
        items: ItemRows,
        context: RequestContext = NO_CONTEXT,
    ) -> Tensor:
        """Scores of given candidates, [B, C]; they are there, as somebody asks about them.

        Args:
            context: of each candidate.
        """
        return sum(self.pair_parts(state_BCD, candidate_BCD, candidate_ids, items, context).values())

    def pair_parts(
        self,
        state_BCD: Tensor,
        candidate_BCD: Tensor,
        candidate_ids: Tensor,
        items: ItemRows,
        context: RequestContext = NO_CONTEXT,
    ) -> dict[str, Tensor]:
        """What the network, the bias and each term add to the scores of `pair_logits`, {part: [B, C]}."""
        parts = {"network": (self.project(state_BCD) * candidate_BCD).sum(-1), "bias": self._bias(candidate_ids, items)}
        ids_BC1 = candidate_ids.unsqueeze(-1)
        for name, term in self.named_terms.items():
            parts[name] = term.of_items(term.logits(state_BCD), context, ids_BC1).squeeze(-1)
        return parts

    def _bias(self, ids: Tensor, items: ItemRows) -> Tensor:
        """Biases of items, [...] -> [...]."""
        if self.bias is None:
            return items.vectors_MD.new_zeros(ids.shape)
        bias = self.bias(ids if self.options["cold_negatives"] else items.id_rows(ids)).squeeze(-1)
        return bias if self.options["bias_rate"] == 1 else self.options["bias_rate"] * bias

    def negatives(self, counts_N: Tensor) -> Tensor:
        """Draw catalog items in proportion to (training count + 1), with replacement, [num_negatives]."""
        return draw(self._frequency(counts_N)[FIRST_ITEM:], self.options["num_negatives"]) + FIRST_ITEM

    def retrieval_loss(
        self,
        state_MD: Tensor,
        targets_M: Tensor,
        items: ItemRows,
        counts_N: Tensor,
        negatives_K: Tensor | None,
        weight_M: Tensor | None = None,
        excluded_M: Tensor | None = None,
        context: RequestContext = NO_CONTEXT,
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy of the target items: (sum, count).

        Args:
            targets_M: item ids; those below 2 (padding, unknown item) count as nothing.
            items: rows that include targets and negatives.
            counts_N: training events per item, the sampling distribution.
            negatives_K: what `negatives` drew; None: the full softmax, or, if `items` are not the whole catalog, all
                of them, each corrected by its chance to be in a batch.
            excluded_M: an item id that is no candidate in this row, 0 = none.
            context: when each was taken; with the options `item_age` and `repeats`.
        """
        known_M = targets_M >= FIRST_ITEM
        excluded_M = torch.zeros_like(targets_M) if excluded_M is None else excluded_M
        if items.rows_M is not None or negatives_K is not None:
            losses_M = self._sampled_losses(state_MD, targets_M, items, counts_N, negatives_K, excluded_M, context)
            return masked_sum(losses_M, known_M, weight_M)
        weight_M = known_weight(known_M, weight_M)
        rows_N = torch.arange(FIRST_ITEM, len(items.vectors_MD), device=state_MD.device)
        bias_N = self._bias(rows_N, items)
        if not self.options["cold_negatives"]:
            cold_N = (counts_N == 0).index_fill(0, targets_M, False)  # what was taken is a candidate
            bias_N = bias_N.masked_fill(cold_N[FIRST_ITEM:], float("-inf"))
        column_M = (targets_M - FIRST_ITEM).clamp(min=0)
        total = linear_cross_entropy(
            self.project(state_MD),
            items.vectors_MD[FIRST_ITEM:],
            bias_N,
            column_M,
            weight_M,
            self.options["label_smoothing"],
            excluded_M - FIRST_ITEM if bool((excluded_M >= FIRST_ITEM).any()) else None,
            self.terms.logits(state_MD) if self.terms else None,
            self.terms.groups_beside(context, column_M, rows_N) if self.terms else None,
        )
        return total, weight_M.sum()

    def _sampled_losses(
        self,
        state_MD: Tensor,
        targets_M: Tensor,
        items: ItemRows,
        counts_N: Tensor,
        negatives_K: Tensor | None,
        excluded_M: Tensor,
        context: RequestContext,
    ) -> Tensor:
        negatives_K, log_q_N = self.sample(items, counts_N, negatives_K, len(targets_M))
        query_MD = self.project(state_MD)
        target_M = (query_MD * items.lookup(targets_M)).sum(-1) + self._bias(targets_M, items) - log_q_N[targets_M]
        negative_MK = self.of_sample(state_MD, query_MD, negatives_K, items, context) - log_q_N[negatives_K]
        if self.terms:
            target_M = target_M + self.terms.of_pairs(state_MD, context, targets_M.unsqueeze(1)).squeeze(1)
        no_negative_MK = (negatives_K == targets_M.unsqueeze(-1)) | (negatives_K == excluded_M.unsqueeze(-1))
        negative_MK = negative_MK.masked_fill(no_negative_MK, float("-inf"))
        logits_MK = torch.cat([target_M.unsqueeze(-1), negative_MK], dim=-1).float()
        return torch.logsumexp(logits_MK, dim=-1) - logits_MK[:, 0]

    def of_sample(
        self, state_MD: Tensor, query_MD: Tensor, ids_K: Tensor, items: ItemRows, context: RequestContext
    ) -> Tensor:
        """Scores of the same items for every state, [M, K]."""
        logits_MK = F.linear(query_MD, items.lookup(ids_K), self._bias(ids_K, items))
        return self.terms.add_to(logits_MK, state_MD, context, ids_K, distinct=False) if self.terms else logits_MK

    def of_pairs(
        self, state_MD: Tensor, query_MD: Tensor, ids_MK: Tensor, items: ItemRows, context: RequestContext
    ) -> Tensor:
        """Scores of each state's own items, [M, K]."""
        logits_MK = torch.einsum("MD,MKD->MK", query_MD, items.lookup(ids_MK)) + self._bias(ids_MK, items)
        return logits_MK + self.terms.of_pairs(state_MD, context, ids_MK) if self.terms else logits_MK

    def sample(
        self, items: ItemRows, counts_N: Tensor, negatives_K: Tensor | None, draws: int
    ) -> tuple[Tensor, Tensor]:
        """Items that stand for the catalog, [K], and the logarithm of how often each item is expected there, [N].

        Args:
            negatives_K: what `negatives` drew; None: those of the batch's items that can be negatives.
            draws: events that brought the batch's items.
        """
        frequency_N = self._frequency(counts_N)
        log_q_N = torch.log(frequency_N.clamp(min=1) / frequency_N.sum())
        if negatives_K is not None:
            return negatives_K, log_q_N + math.log(len(negatives_K))
        assert items.rows_M is not None
        found_K = items.rows_M[(items.rows_M >= FIRST_ITEM) & (frequency_N[items.rows_M] > 0)]
        # The chance to be among the batch's items at all, which is not in proportion to the count.
        return found_K, torch.log(-torch.expm1(draws * torch.log1p(-log_q_N.exp())))

    def all_biases(self, items: ItemRows) -> tuple[Tensor, Tensor]:
        """Rows of the whole table and their biases; padding and the unknown item are no candidates."""
        rows_N = torch.arange(len(items.vectors_MD), device=items.vectors_MD.device)
        return rows_N, self._bias(rows_N, items).masked_fill(rows_N < FIRST_ITEM, float("-inf"))

    def _frequency(self, counts_N: Tensor) -> Tensor:
        """What the chances of items to be drawn are in proportion to."""
        return counts_N + 1 if self.options["cold_negatives"] else torch.where(counts_N > 0, counts_N + 1, 0)

    def predict(self, logits: Tensor) -> Tensor:
        """Scores as they are: they rank items of one state and compare to nothing else."""
        return logits.float()
