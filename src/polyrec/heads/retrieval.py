"""Which item next: scores of the whole catalog from a state."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyrec.configuration_polyrec import PolyRecConfig
from polyrec.encoders.item import FIRST_ITEM, ItemRows
from polyrec.heads.base import TaskHead, known_weight, masked_sum
from polyrec.losses import linear_cross_entropy
from polyrec.registry import HEADS
from polyrec.schema import TaskConfig


@HEADS.register("retrieval")
class RetrievalHead(TaskHead):
    r"""Tied softmax over the catalog, L = -sum_i w_i log softmax_j(s_i . v_j + b_j)[target_i].

    v_j are the item vectors that the history encoder reads, too (tied weights). For catalogs of more than
    `sampled_above` items the softmax runs over the targets of the batch and `num_negatives` sampled items, each logit
    corrected by -log Q(j) of the sampling distribution (Bengio and Senecal, 2008; Yi et al., 2019), with accidental
    hits masked.

    Args:
        task: options `num_negatives`, `sampled_above`, `label_smoothing` (share of the target spread evenly over the
            catalog; full softmax only).

    Shapes: states [M, D], items [N, D] -> logits [M, N].

    Example:
        >>> config = PolyRecConfig(tasks=[{"name": "next_item", "head": "retrieval"}], num_items=6, hidden_size=4)
        >>> head = RetrievalHead(config.task_configs[0], config)
        >>> head(torch.zeros(3, 4), ItemRows(torch.zeros(6, 4))).shape
        torch.Size([3, 6])
    """

    reads = "state"
    metrics = ("ndcg@10", "recall@10", "mrr@10", "coverage@10")
    default_options: ClassVar[dict[str, Any]] = {"num_negatives": 1024, "sampled_above": 20_000, "label_smoothing": 0.0}

    def __init__(self, task: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__(task, config)
        if not 0 <= self.options["label_smoothing"] < 1:
            raise ValueError(f"option 'label_smoothing' of task {task.name!r} must be in [0, 1)")
        self.sampled = config.num_items > self.options["sampled_above"]
        self.project = nn.Linear(config.hidden_size, config.hidden_size)
        self.bias = nn.Embedding(config.num_items, 1)

    def known(self, labels: Tensor, candidate_ids: Tensor) -> Tensor:
        """Candidates that were taken and are in the catalog, bool [B, C]."""
        return (labels > 0) & (candidate_ids >= FIRST_ITEM)

    def forward(self, state_MD: Tensor, items: ItemRows) -> Tensor:
        """Scores of all rows of `items`, [M, D] -> [M, N]; padding and the unknown item score -inf."""
        rows_N = torch.arange(len(items.vectors_MD), device=state_MD.device) if items.rows_M is None else items.rows_M
        bias_N = self.bias(rows_N).squeeze(-1).masked_fill(rows_N < FIRST_ITEM, float("-inf"))
        return F.linear(self.project(state_MD), items.vectors_MD) + bias_N

    def pair_logits(self, state_BCD: Tensor, candidate_BCD: Tensor, candidate_ids: Tensor) -> Tensor:
        """Scores of given candidates, [B, C]."""
        return (self.project(state_BCD) * candidate_BCD).sum(-1) + self.bias(candidate_ids).squeeze(-1)

    def negatives(self, counts_N: Tensor) -> Tensor:
        """Draw catalog items in proportion to (training count + 1), with replacement, [num_negatives]."""
        frequency = counts_N[FIRST_ITEM:] + 1
        return torch.multinomial(frequency, self.options["num_negatives"], replacement=True) + FIRST_ITEM

    def retrieval_loss(
        self,
        state_MD: Tensor,
        targets_M: Tensor,
        items: ItemRows,
        counts_N: Tensor,
        negatives_K: Tensor,
        weight_M: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy of the target items: (sum, count).

        Args:
            targets_M: item ids; those below 2 (padding, unknown item) count as nothing.
            items: rows that include targets and negatives.
            counts_N: training events per item, the sampling distribution.
            negatives_K: what `negatives` drew (unused by the full softmax).
        """
        known_M = targets_M >= FIRST_ITEM
        if self.sampled:
            return masked_sum(
                self._sampled_losses(state_MD, targets_M, items, counts_N, negatives_K), known_M, weight_M
            )
        weight_M = known_weight(known_M, weight_M)
        total = linear_cross_entropy(
            self.project(state_MD),
            items.vectors_MD[FIRST_ITEM:],
            self.bias.weight[FIRST_ITEM:, 0],
            (targets_M - FIRST_ITEM).clamp(min=0),
            weight_M,
            self.options["label_smoothing"],
        )
        return total, weight_M.sum()

    def _sampled_losses(
        self, state_MD: Tensor, targets_M: Tensor, items: ItemRows, counts_N: Tensor, negatives_K: Tensor
    ) -> Tensor:
        log_q_N = torch.log((counts_N + 1) / (counts_N + 1).sum())
        query_MD = self.project(state_MD)
        target_M = (query_MD * items.lookup(targets_M)).sum(-1) + self.bias(targets_M).squeeze(-1) - log_q_N[targets_M]
        negative_MK = (
            F.linear(query_MD, items.lookup(negatives_K), self.bias(negatives_K).squeeze(-1)) - log_q_N[negatives_K]
        )
        negative_MK = negative_MK.masked_fill(negatives_K == targets_M.unsqueeze(-1), float("-inf"))
        logits_MK = torch.cat([target_M.unsqueeze(-1), negative_MK], dim=-1).float()
        return torch.logsumexp(logits_MK, dim=-1) - logits_MK[:, 0]

    def predict(self, logits: Tensor) -> Tensor:
        """Scores as they are: they rank items of one state and compare to nothing else."""
        return logits.float()
