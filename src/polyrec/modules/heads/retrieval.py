"""Which item next: scores of the whole catalog from a state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.losses import linear_cross_entropy
from polyrec.core.modules import in_double
from polyrec.core.reduction import known_weight, masked_sum
from polyrec.core.registry import HEADS
from polyrec.core.schema import TaskConfig
from polyrec.modules.encoders.growth import add_rows, in_blocks
from polyrec.modules.encoders.item import FIRST_ITEM, ItemRows
from polyrec.modules.encoders.request_context import NO_CONTEXT, RequestContext
from polyrec.modules.heads._sampling import draw, log_chances
from polyrec.modules.heads.base import Summary, TaskHead
from polyrec.modules.heads.terms._weighed import WeighedTerm
from polyrec.modules.heads.terms.base import ItemTerms, RetrievalTerm, registered_terms


@HEADS.register("retrieval")
class RetrievalHead(TaskHead):
    r"""Tied softmax over the catalog, L = -sum_i w_i log softmax_j(s_i . v_j + b_j)[target_i].

    v_j are the item embeddings that the history encoder reads, too (tied weights). For catalogs of more than
    `sampled_above` items the softmax runs over the targets of the batch and `num_negatives` sampled items, each logit
    corrected by -log Q(j) of the sampling distribution (Bengio and Senecal, 2008; Yi et al., 2019), with accidental
    hits masked.

    Args:
        task: options `num_negatives`, `sampled_above`, `label_smoothing` (share of the target spread evenly over the
            catalog; full softmax only) and `cold_negatives`: whether items without training events are negatives. They
            are never taken in training, so a model learns to leave them alone. With False they are none, and share the
            bias of the unknown item, which dropped ids (`item_id_dropout`) learn: where what is new is wanted, which
            `processor.model_config()` finds out.
            `bias_rate`: how many times faster than other parameters biases learn. Few steps move the bias of a popular
            item far enough only if it is > 1.
            All other options are those of terms, which are added to s_i . v_j + b_j, one file each in
            `polyrec.modules.heads.terms`: `item_age` (new or old items), `repeats`, `neighbours` (what goes with the
            latest items; with `of_sets`, with all), `linear`, `transitions` and `recent` (recommenders beside the
            network, weighed by validation), `trending`. `processor.model_config()` sets those that the data ask for.

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
        self._terms: list[str] = []  # attributes that hold terms
        for name, term in registered_terms().items():
            key = term.key or name
            built = term.build(self, config)
            if built is not None or key not in self._modules:
                self.add_module(key, built)
            if built is not None:
                self._terms.append(key)
        self.sampled = config.num_items > self.options["sampled_above"]
        self.project = nn.Linear(config.hidden_size, config.hidden_size)
        # A bias is known of the model's own items alone.
        self.bias = nn.Embedding(config.num_items, 1) if config.item_ids else None

    @classmethod
    def known_options(cls) -> dict[str, Any]:
        """Options of the head and of all registered terms, with their defaults."""
        found = dict(cls.default_options)
        for term in registered_terms().values():
            found |= term.default_options
        return found

    @classmethod
    def options_from_labels(cls, task: TaskConfig, summary: Summary) -> dict[str, Any]:
        """What a processor found for the terms in the training rows, and whether users take new items."""
        names = {"cold_negatives"}.union(*(term.found_options for term in registered_terms().values()))
        return {name: summary[name] for name in summary if name in names}

    @property
    def every_term(self) -> dict[str, RetrievalTerm]:
        """The terms that the options turn on, by these options, in the order of the sum."""
        terms = [self._modules[key] for key in self._terms]
        return {term.option: term for term in terms if isinstance(term, RetrievalTerm)}

    @property
    def named_terms(self) -> dict[str, RetrievalTerm]:
        """Those of them that change a score now."""
        return {name: term for name, term in self.every_term.items() if term.speaks}

    @property
    def terms(self) -> ItemTerms:
        """What is added to logits beside s . v + b."""
        return ItemTerms(list(self.named_terms.values()))

    @property
    def evidence(self) -> ItemTerms:
        """The terms that say what goes with the user's items."""
        return ItemTerms([term for term in self.named_terms.values() if term.is_evidence])

    @property
    def weighed(self) -> dict[str, WeighedTerm]:
        """The terms whose weight validation chooses, one after the other, by their options."""
        return {name: term for name, term in self.every_term.items() if isinstance(term, WeighedTerm)}

    @property
    def reads_history(self) -> bool:
        """Whether terms read all visible events."""
        return any(term.reads_history for term in self.every_term.values())

    @property
    def latest_events(self) -> int:
        """How many of the latest items terms read; 0: none of them does."""
        return max((term.latest_events for term in self.every_term.values()), default=0)

    @property
    def trains_as_it_scores(self) -> bool:
        """Whether its loss compares the scores that it serves, so that soft targets can share a pass with labels."""
        options = self.options
        same = options["cold_negatives"] and not options["label_smoothing"] and not self.sampled
        return same and not any(term.reads_targets for term in self.every_term.values())

    def initialise(self) -> None:
        """Terms start with what the log knows, which a projection at random of the usual size would only blur."""
        for term in self.every_term.values():
            term.initialise()
        share = min((term.network_share for term in self.every_term.values()), default=1.0)
        if share == 0:
            init.zeros_(self.project.weight)
        elif share != 1:
            init.copy_(self.project.weight, share * self.project.weight)

    def load_times(self, processor: Any) -> None:
        """Take when items appeared."""
        for term in self.every_term.values():
            term.load_times(processor)

    def load_neighbours(self, processor: Any) -> None:
        """Take what the processor has counted in the training rows."""
        for term in self.every_term.values():
            term.load_neighbours(processor)

    @torch.no_grad()
    def extend(self, num_items: int, known_N: Tensor) -> None:
        """Add biases, which start as the mean of the items that have been taken: neither popular nor shunned."""
        self.sampled = num_items > self.options["sampled_above"]
        for term in self.every_term.values():
            term.extend(num_items)
        if self.bias is not None:
            start = self.bias.weight[known_N].mean() if known_N.any() else self.bias.weight.new_zeros(())
            add_rows(self.bias, start.expand(num_items - self.bias.num_embeddings, 1))

    @torch.no_grad()
    def calibrate_new_items(
        self,
        state_MD: Tensor,
        items: ItemRows,
        interacted_N: Tensor,
        new_N: Tensor,
        context: RequestContext = NO_CONTEXT,
    ) -> None:
        """Raise the biases of new items until each gets as much of the softmax as one that was taken, in the mean.

        What is known of a new item lies near the mean of all, and so do its logits: without this, hardly any list of 10
        would hold a new item.

        Args:
            state_MD: of users.
            items: the encoded table.
            interacted_N, new_N: bool [N].
            context: of the same users.
        """
        if self.bias is None:
            return
        ids_N, lifts = torch.arange(len(new_N), device=new_N.device), []
        bias_N = self.item_bias(ids_N, items)
        for at in torch.arange(len(state_MD), device=ids_N.device).split(32):  # a large catalog has many logits
            logits_MN = F.linear(self.project(state_MD[at]), items.vectors_MD, bias_N)
            if evidence := self.evidence:  # of which new items have none
                logits_MN = evidence.add_to(logits_MN, state_MD[at], context.at(at), ids_N)
            logits_MN = in_double(logits_MN)
            both = (n.to(logits_MN.device) for n in (interacted_N, new_N))
            share_M, new_M = (torch.logsumexp(logits_MN[:, n], 1) - n.sum().log() for n in both)
            lifts.append(share_M - new_M)
        self.bias.weight[new_N] += (torch.cat(lifts).mean() / self.options["bias_rate"]).to(self.bias.weight)

    @property
    def reads_user(self) -> bool:
        """Whether scores depend on the user's state."""
        return True

    def known(self, labels: Tensor, candidate_ids: Tensor) -> Tensor:
        """Candidates that were taken and are in the catalog, bool [B, C]."""
        return (labels > 0) & (candidate_ids >= FIRST_ITEM)

    def query_state(self, state: Tensor, query: Tensor | None) -> Tensor:
        """What scores the catalog: the user's state, whatever was typed."""
        return self.adapted(state)

    def forward(self, state_MD: Tensor, items: ItemRows, context: RequestContext = NO_CONTEXT) -> Tensor:
        """Scores of all rows of `items`, [M, D] -> [M, N]; padding and the unknown item score -inf.

        Args:
            context: of the M requests; with the options `item_age` and `repeats`.
        """
        rows_N = torch.arange(len(items.vectors_MD), device=state_MD.device) if items.rows_M is None else items.rows_M
        bias_N = self.item_bias(rows_N, items).masked_fill(rows_N < FIRST_ITEM, float("-inf"))
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
        """Scores of given candidates, [B, C]; they count as available.

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
        parts = {
            "network": (self.project(state_BCD) * candidate_BCD).sum(-1),
            "bias": self.item_bias(candidate_ids, items),
        }
        ids_BC1 = candidate_ids.unsqueeze(-1)
        for name, term in self.named_terms.items():
            parts[name] = term.of_items(term.logits(state_BCD), context, ids_BC1).squeeze(-1)
        return parts

    def item_bias(self, ids: Tensor, items: ItemRows) -> Tensor:
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
        bias_N = self.item_bias(rows_N, items)
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
        negatives_K, expected = self.sample(items, counts_N, negatives_K, len(targets_M))
        query_MD = self.project(state_MD)
        target_M = (query_MD * items.lookup(targets_M)).sum(-1) + self.item_bias(targets_M, items) - expected(targets_M)
        negative_MK = self.of_sample(state_MD, query_MD, negatives_K, items, context) - expected(negatives_K)
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
        logits_MK = F.linear(query_MD, items.lookup(ids_K), self.item_bias(ids_K, items))
        return self.terms.add_to(logits_MK, state_MD, context, ids_K, distinct=False) if self.terms else logits_MK

    def of_pairs(
        self, state_MD: Tensor, query_MD: Tensor, ids_MK: Tensor, items: ItemRows, context: RequestContext
    ) -> Tensor:
        """Scores of each state's own items, [M, K]."""
        logits_MK = torch.einsum("MD,MKD->MK", query_MD, items.lookup(ids_MK)) + self.item_bias(ids_MK, items)
        return logits_MK + self.terms.of_pairs(state_MD, context, ids_MK) if self.terms else logits_MK

    def sample(
        self, items: ItemRows, counts_N: Tensor, negatives_K: Tensor | None, draws: int
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Items that stand for the catalog, [K], and the logarithm of how often some items are expected there.

        Args:
            negatives_K: what `negatives` drew; None: those of the batch's items that can be negatives.
            draws: events that brought the batch's items.
        """
        frequency_N = self._frequency(counts_N)
        log_chance = log_chances(frequency_N)
        if negatives_K is not None:
            return negatives_K, lambda ids: log_chance(ids) + math.log(len(negatives_K))
        assert items.rows_M is not None
        found_K = items.rows_M[(items.rows_M >= FIRST_ITEM) & (frequency_N[items.rows_M] > 0)]
        # The chance to be among the batch's items at all, which is not in proportion to the count.
        return found_K, lambda ids: torch.log(-torch.expm1(draws * torch.log1p(-log_chance(ids).exp())))

    def all_biases(self, items: ItemRows) -> tuple[Tensor, Tensor]:
        """Rows of the whole table and their biases; padding and the unknown item are no candidates."""
        rows_N = torch.arange(len(items.vectors_MD), device=items.vectors_MD.device)
        return rows_N, self.item_bias(rows_N, items).masked_fill(rows_N < FIRST_ITEM, float("-inf"))

    def _frequency(self, counts_N: Tensor) -> Tensor:
        """What the chances of items to be drawn are in proportion to."""
        return counts_N + 1 if self.options["cold_negatives"] else torch.where(counts_N > 0, counts_N + 1, 0)

    def predict(self, logits: Tensor) -> Tensor:
        """Scores as they are: they rank items of one state and compare to nothing else."""
        return logits.float()
