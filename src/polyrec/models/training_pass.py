"""What a model has computed of a training batch, as its losses read it.

Letters: B users, C candidates, M pairs, K numbers of an output, T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from polyrec.models.teaching import StudentOutput
from polyrec.modules.encoders.shared import PackedPairs
from polyrec.modules.experts.base import ExpertOutput
from polyrec.modules.objectives.base import Reading


@dataclass(frozen=True)
class LossStep:
    """The optimizer step that a batch is a part of.

    Args:
        denominators: {task or objective: scalar} by which each sum of losses is divided: the known labels of the whole
            accumulation window over all ranks. None: the known labels of this batch.
        share: of the step that this batch is, 1 / (batches accumulated x ranks); terms of the objective that do not
            come from labels (of a trained weighting, of load balancing) are multiplied by it.
        progress: share of the training that is done.
    """

    denominators: Mapping[str, Tensor] | None = None
    share: float = 1.0
    progress: float = 0.0


ONE_BATCH = LossStep()  # a step of one batch in one process


@dataclass
class PairOutput:
    """The output of the pair tasks.

    Args:
        experts: hidden vectors and gates.
        own_logits: {task: [1, M(, members)(, K)]}, of the task's own head.
        logits: the same after coupling with the parent's logits.
    """

    experts: ExpertOutput = field(default_factory=lambda: ExpertOutput({}))
    own_logits: dict[str, Tensor] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class SampledItems:
    """Items that a loss reads beside those of the batch.

    Args:
        negatives: {retrieval task: int64 [K]} of tasks with a sampled softmax.
        drawn: {objective: int64 [K]}; None: nothing.
        listed: of a teacher's lists.
    """

    negatives: Mapping[str, Tensor] = field(default_factory=dict)
    drawn: Mapping[str, Tensor | None] = field(default_factory=dict)
    listed: list[Tensor] = field(default_factory=list)

    @property
    def all(self) -> list[Tensor]:
        """All of them, [K] each."""
        return [*self.negatives.values(), *(own for own in self.drawn.values() if own is not None), *self.listed]


@dataclass(kw_only=True)
class TrainingPass:
    """A forward pass over a batch with labels.

    Args:
        labels, sample_weight: {task: [B, C]}.
        candidate_ids: [B, C].
        logits: {task: [B, C(, K)]}; those of retrieval tasks may be missing.
        pairs, pair_output: the candidates without padding, [1, M, ...], and what the pair tasks say of them.
        meeting: tensors that all tasks read, where their gradients are compared.
        teacher: outputs of a teacher; empty without one.
        reading: for objectives.
        drawn: {objective: what its `draw` gave}.
    """

    labels: Mapping[str, Tensor]
    sample_weight: Mapping[str, Tensor]
    candidate_ids: Tensor
    logits: Mapping[str, Tensor]
    pairs: PackedPairs
    pair_output: PairOutput
    meeting: list[Tensor]
    teacher: Mapping[str, Any] = field(default_factory=dict)
    reading: Reading | None = None
    drawn: Mapping[str, Tensor | None] = field(default_factory=dict)

    def packed(self, values: Mapping[str, Tensor], task: str) -> Tensor | None:
        """A task's labels or weights of the real candidates, [1, M]; None: the batch has none."""
        return self.pairs.pack(values[task]) if task in values else None

    def student(self, heads: Mapping[str, Any]) -> StudentOutput:
        """What soft losses compare with the teacher's outputs."""
        raise NotImplementedError
