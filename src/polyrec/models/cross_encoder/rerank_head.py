"""Which of these items next: one logit per pair of history and candidate."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from polyrec.core.configuration_multitask import MultiTaskConfig
from polyrec.core.reduction import known_weight
from polyrec.core.schema import TaskConfig
from polyrec.modules.heads.base import TaskHead


class RerankHead(TaskHead):
    r"""Softmax over a list, L = -sum_i w_i log softmax_j(z_ij)[taken_i], with z_ij = f(h_ij) + c log(1 + n_j).

    j runs over the item taken and the negatives of its list (sampled, or the best of a first stage); h_ij is the vector
    of the prompt of history i and item j, f a network with one hidden layer, n_j the item's training events: the text
    of an item does not say how popular it is. (A listwise reranker: Nogueira and Cho, 2019, "Passage Re-ranking with
    BERT"; the loss: Cao et al., 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach".)

    Args:
        task: without options.

    Shapes: hidden [..., D], counts [...] -> logits [...].

    Example:
        >>> from polyrec.core.configuration_polyrec import PolyRecConfig
        >>> config = PolyRecConfig(tasks=[{"name": "next_item", "head": "retrieval"}], hidden_size=4)
        >>> head = RerankHead(config.task_configs[0], config)
        >>> taken, others = torch.zeros(1), torch.tensor([[0.0, 0.0, float("-inf")]])
        >>> total, count = head.list_loss(taken, others)
        >>> round(total.item(), 4), count.item()  # log 3
        (1.0986, 1.0)
    """

    reads = "state"
    metrics = ("ndcg@10", "recall@10", "mrr@10", "coverage@10")
    further_cutoffs: ClassVar[tuple[int, ...]] = ()
    default_options: ClassVar[dict[str, Any]] = {}

    def __init__(self, task: TaskConfig, config: MultiTaskConfig) -> None:
        super().__init__(task, config)
        self.inner = nn.Linear(config.pair_width, config.pair_width)
        self.output = nn.Linear(config.pair_width, 1, bias=False)  # a constant changes no softmax
        self.popularity = nn.Parameter(torch.empty(()))

    def initialise(self) -> None:
        """Popularity speaks from the start, mildly."""
        init.constant_(self.popularity, 0.1)

    def known(self, labels: Tensor, candidate_ids: Tensor) -> Tensor:
        """Candidates that were taken and are in the catalog, bool [B, C]."""
        return (labels > 0) & (candidate_ids > 1)

    def forward(self, hidden_D: Tensor, counts: Tensor) -> Tensor:
        """Logits that compare within one list."""
        own = self.output(nn.functional.gelu(self.inner(hidden_D))).squeeze(-1)
        return own + self.popularity * torch.log1p(counts)

    def list_loss(self, positive_M: Tensor, others_MK: Tensor, weight_M: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cross entropy of the items taken among their lists: (sum, count).

        Args:
            others_MK: -inf where a list has no further item.
        """
        logits_MK = torch.cat([positive_M.unsqueeze(-1), others_MK], dim=-1).float()
        losses_M = torch.logsumexp(logits_MK, dim=-1) - logits_MK[:, 0]
        scale_M = known_weight(torch.ones_like(losses_M, dtype=torch.bool), weight_M)
        return (losses_M * scale_M).sum(), scale_M.sum()

    def predict(self, logits: Tensor) -> Tensor:
        """Scores as they are: they rank items of one history and compare to nothing else."""
        return logits.float()
