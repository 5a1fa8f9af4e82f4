"""What a model hands to losses that come from outside, beside those of its labels: a teacher's, say.

A model knows that there may be such losses and how they join its objective, and not what they are:
`polyrec.distillation.student` has those of a teacher, which the trainer attaches.

Letters: B users, C candidates, M rows of some subset, D width, E sources of a gate, K numbers of an output, N items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from polyrec.modules.encoders.item import ItemRows
from polyrec.modules.encoders.query import CandidateQueries
from polyrec.modules.encoders.request_context import NO_CONTEXT, RequestContext
from polyrec.modules.encoders.shared import PackedPairs

Sums = dict[str, tuple[Tensor, Tensor]]  # {name: (sum of losses, how many)}


@dataclass
class StudentOutput:
    """A training batch as the model has scored it, and what the teacher says of it.

    Args:
        heads: {task: head}.
        teacher: its outputs, see `polyrec.distillation.teacher.Teacher.score`.
        pairs: its real candidates, which are packed as [1, M, ...].
        logits, labels: {pair task: [1, M(, members)(, K)]} and {task: [1, M]}.
        gates: {pair task: [1, M, E]}.
        real_BC: which candidates are none of padding.
        state_BCD, items: the states of retrieval tasks, and the items they can find.
        counts_N, negatives: training events of items, {task: sampled items} of tasks that do not score all items.
        queries, context: what was typed, and when and after which events, if tasks read them.
    """

    heads: Mapping[str, Any]
    teacher: Mapping[str, Any]
    pairs: PackedPairs
    logits: Mapping[str, Tensor]
    labels: Mapping[str, Tensor]
    gates: Mapping[str, Tensor]
    real_BC: Tensor
    state_BCD: Tensor
    items: ItemRows
    counts_N: Tensor
    negatives: Mapping[str, Tensor] = field(default_factory=dict)
    queries: CandidateQueries | None = None
    context: RequestContext = NO_CONTEXT


class FurtherLosses(nn.Module):
    """Losses beside those of labels; a part of the model while it is trained, as they may have parameters."""

    def beside_labels(
        self,
        student: StudentOutput,
        known: Mapping[str, tuple[Tensor, Tensor | None]],
        denominators: Mapping[str, Tensor] | None,
        progress: float = 0.0,
    ) -> tuple[Sums, Sums]:
        """Losses of labels, and those beside them, of tasks where one pass gives both; the model leaves these out."""
        raise NotImplementedError

    def forward(self, student: StudentOutput, progress: float = 0.0, found: Sums | None = None) -> Sums:
        """All losses beside those of labels, those that are `found` already among them."""
        raise NotImplementedError

    def means(self, found: Sums, divisors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Sums divided by the counts of the whole optimizer step, or by their own."""
        raise NotImplementedError

    def join(
        self, hard: Mapping[str, Tensor], soft: Mapping[str, Tensor], progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Mean losses of the tasks with the others in them, and, if they are kept apart, those to be added."""
        raise NotImplementedError

    def taught(self, found: Sums, divisors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """{task: whether anything counts beside its labels, bool scalar}."""
        raise NotImplementedError

    def further(self, soft: Mapping[str, Tensor]) -> list[Tensor]:
        """Weighted losses of what is no task."""
        raise NotImplementedError
