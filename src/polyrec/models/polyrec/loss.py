"""The loss of a [`PolyRecForRecommendation`]: retrieval tasks score the whole catalog, or a sample of it.

Letters: B users, C candidates, M rows of some subset, D width, K sampled items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, where

from polyrec.models.multitask_loss import MultiTaskLoss
from polyrec.models.teaching import StudentOutput
from polyrec.models.training_pass import SampledItems, TrainingPass
from polyrec.modules.encoders.item import PADDING_ITEM, ItemEncoder
from polyrec.modules.encoders.query import CandidateQueries
from polyrec.modules.encoders.request_context import RequestContext
from polyrec.modules.encoders.shared import SharedRepresentation


@dataclass(kw_only=True)
class CatalogPass(TrainingPass):
    """A forward pass of a model that scores the catalog.

    Args:
        shared: what the tasks share: states [B, C, D] and encoded items.
        counts_N: training events of items.
        negatives: as of `SampledItems`.
        queries, context: what was typed, and when and after which events, if tasks read them.
    """

    shared: SharedRepresentation
    counts_N: Tensor
    negatives: Mapping[str, Tensor]
    queries: CandidateQueries | None
    context: RequestContext

    def student(self, heads: Mapping[str, Any]) -> StudentOutput:
        """What soft losses compare with the teacher's outputs."""
        own = self.pair_output
        labels = {name: self.pairs.pack(self.labels[name]) for name in own.logits if name in self.labels}
        return StudentOutput(
            heads,
            self.teacher,
            self.pairs,
            own.logits,
            labels,
            own.experts.gates,
            self.candidate_ids != PADDING_ITEM,
            self.shared.state_BCD,
            self.shared.items,
            self.counts_N,
            self.negatives,
            self.queries,
            self.context,
        )


class CatalogLoss(MultiTaskLoss):
    """A `MultiTaskLoss` whose retrieval tasks score the catalog."""

    def sample(self, item_encoder: ItemEncoder, teacher: Mapping[str, Any]) -> SampledItems:
        """Draw the items that have to be encoded beside those of the batch."""
        counts, sampled = item_encoder.counts, dict[str, Tensor]()
        if not item_encoder.negatives_of_batch:
            heads = {name: head for name, head in self.heads.items() if head.reads == "state" and head.sampled}
            sampled = {name: head.negatives(counts) for name, head in heads.items()}
        drawn = {name: objective.draw(item_encoder) for name, objective in self.objectives.items()}
        lists = [] if self.soft_losses is None else teacher.get("teacher_items", {}).values()
        return SampledItems(sampled, drawn, [listed.flatten() for listed in lists])

    def state_loss(self, name: str, found: CatalogPass) -> tuple[Tensor, Tensor]:
        """Cross entropy of the positives."""
        head, queries, weight = self.heads[name], found.queries, found.sample_weight.get(name)
        rows_M = head.known(found.labels[name], found.candidate_ids).flatten().nonzero().squeeze(-1)
        query_MD = own_M = None
        if queries is not None:
            query_MD = queries.vectors_BCD.flatten(0, 1).index_select(0, rows_M)
            own_M = queries.own_items_BC.flatten()[rows_M]
        return head.retrieval_loss(
            head.query_state(found.shared.state_BCD.flatten(0, 1).index_select(0, rows_M), query_MD),
            found.candidate_ids.flatten()[rows_M],
            found.shared.items,
            found.counts_N,
            found.negatives.get(name),
            None if weight is None else weight.flatten()[rows_M],
            own_M if head.excludes == "own item" else None,
            found.context.rows(rows_M),
        )

    def targets(self, found: CatalogPass) -> dict[str, tuple[Tensor, Tensor | None]]:
        """{retrieval task: (positives, 0 = not or unknown, [B, C], and their weights)}."""
        ids = found.candidate_ids
        return {
            name: (where(head.known(found.labels[name], ids), ids, PADDING_ITEM), found.sample_weight.get(name))
            for name, head in self.heads.items()
            if head.reads == "state" and name in found.labels
        }
