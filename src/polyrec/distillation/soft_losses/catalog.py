"""Scores of a whole catalog, taught by lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrec.core.distillation_config import TaskDistillation
from polyrec.core.reduction import known_weight
from polyrec.core.registry import SOFT_LOSSES
from polyrec.distillation.catalog import catalog_loss, sampled_rest, taught_cross_entropy
from polyrec.distillation.choices import SoftLoss
from polyrec.distillation.ranking_losses import LIST_LOSSES, list_loss
from polyrec.distillation.soft_losses.base import KindOfOutput
from polyrec.modules.encoders.item import FIRST_ITEM, ItemRows
from polyrec.modules.encoders.request_context import NO_CONTEXT, RequestContext


@SOFT_LOSSES.register("catalog")
class CatalogOutput(KindOfOutput):
    """Scores of all items, of which a teacher says the best and how much is left for all others.

    The losses of lists are those of `polyrec.distillation.ranking_losses`: "kl", "list_net", "rank_distil",
    "plackett_luce" and "margin_mse". Heads are [`~polyrec.modules.heads.retrieval.RetrievalHead`]s.
    """

    losses: ClassVar[Mapping[str, SoftLoss]] = LIST_LOSSES

    @staticmethod
    def lists(
        head: Any,
        plan: TaskDistillation,
        state_MD: Tensor,
        listed_MK: Tensor,
        teacher_MK1: Tensor,
        items: ItemRows,
        counts_N: Tensor,
        negatives_K: Tensor | None,
        excluded_M: Tensor | None = None,
        context: RequestContext = NO_CONTEXT,
    ) -> tuple[Tensor, Tensor]:
        """A loss of the teacher's lists: (sum, number of lists).

        Args:
            plan: checked.
            listed_MK, teacher_MK1: items of the lists, 0 = none, and the teacher's scores, all other items last, see
                [`~polyrec.distillation.teacher.Teacher`].
            items: rows that include the listed items.
            counts_N, negatives_K, excluded_M, context: as of the head's `retrieval_loss`; of negatives, only "all other
                items" are made.
        """
        query_MD = head.project(state_MD)
        if items.rows_M is None and negatives_K is None:
            rows_N, bias_N = head.all_biases(items)
            of_groups_MG = groups = None
            if head.terms:
                of_groups_MG, groups = head.terms.logits(state_MD), head.terms.groups(context, rows_N)
            vectors = items.vectors_MD
            return catalog_loss(
                plan, query_MD, vectors, bias_N, listed_MK, teacher_MK1, None, excluded_M, of_groups_MG, groups
            )
        own_MK = head.of_pairs(state_MD, query_MD, listed_MK, items, context)
        sampled_K, log_expected = head.sample(items, counts_N, negatives_K, len(state_MD))
        sampled_MK = head.of_sample(state_MD, query_MD, sampled_K, items, context)
        own_MK = own_MK.masked_fill(listed_MK < FIRST_ITEM, float("-inf"))
        if excluded_M is not None:
            own_MK = own_MK.masked_fill(listed_MK == excluded_M.unsqueeze(1), float("-inf"))
            sampled_MK = sampled_MK.masked_fill(sampled_K == excluded_M.unsqueeze(1), float("-inf"))
        rest_M = sampled_rest(sampled_MK, sampled_K, log_expected(sampled_K), listed_MK, plan.temperature)
        return list_loss(plan, own_MK, rest_M, teacher_MK1)

    @staticmethod
    def beside_labels(head: Any, plan: TaskDistillation) -> bool:
        """Whether labels and a teacher's lists are judged by the same logits, so that one pass can serve both."""
        return plan.temperature == 1 and head.trains_as_it_scores

    @staticmethod
    def with_labels(
        head: Any,
        plan: TaskDistillation,
        state_MD: Tensor,
        targets_M: Tensor,
        listed_MK: Tensor,
        teacher_MK1: Tensor,
        items: ItemRows,
        soft_share: Tensor,
        weight_M: Tensor | None = None,
        excluded_M: Tensor | None = None,
        context: RequestContext = NO_CONTEXT,
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The head's `retrieval_loss` and `lists` at once, where `beside_labels`: (sum, count) of each.

        Args:
            targets_M: those below 2 have no label.
            teacher_MK1: NaN where the teacher has no output.
            items: the whole table.
            soft_share: the two sums are going to be added in the proportion 1 : soft_share.
        """
        assert items.rows_M is None
        rows_N, bias_N = head.all_biases(items)
        weight_M = known_weight(targets_M >= FIRST_ITEM, weight_M)
        of_groups_MG = head.terms.logits(state_MD) if head.terms else None
        groups = head.terms.groups(context, rows_N) if head.terms else None
        targets_M, query_MD = targets_M.clamp(min=FIRST_ITEM), head.project(state_MD)
        lists = (listed_MK, teacher_MK1, soft_share, excluded_M, of_groups_MG, groups)
        hard, soft = taught_cross_entropy(plan, query_MD, items.vectors_MD, bias_N, targets_M, weight_M, *lists)
        return (hard, weight_M.sum()), (soft, (~torch.isnan(teacher_MK1).any(1)).sum().to(soft))
