"""The contract of a coupling: how a task follows from its parent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import Part, checked_options
from polyrec.core.schema import TaskConfig
from polyrec.modules.heads.base import TaskHead


@dataclass
class CoupledTask:
    """What a coupling may read when it computes the loss of a child.

    Args:
        head: the child's head.
        hidden: what the child's head read, [B, C, D] or [B, C, M, D].
        own_logits: the child head's logits before the coupling, [B, C] or [B, C, M].
        logits: what `Coupling.logits` made of them: the child's output.
        parent_logits: the parent's output, same shape.
        labels: of the child, [B, C], NaN = unknown; all NaN where the batch has none.
        parent_labels: of the parent, [B, C], likewise.
        weight: sample weight of the child [B, C], or None.
    """

    head: TaskHead
    hidden: Tensor
    own_logits: Tensor
    logits: Tensor
    parent_logits: Tensor
    labels: Tensor
    parent_labels: Tensor
    weight: Tensor | None


class Coupling(nn.Module, Part):
    """Base of all couplings: three hooks, of which a method overrides those it needs.

    `hidden` passes the parent's information on before the child's head, `logits` makes the child's output of its own
    logits and the parent's output, `loss` replaces the child's loss.

    Which one to take:

    * `monotone`: the child keeps its own head and is only kept from being likelier than its parent.
    * `aitm`: the same, and the child's head also reads what the parent's read. For chains whose children are rare.
    * `esmm`: the child's output IS a product, P(parent) P(child | parent), so the order always holds and the
      conditional is trained from all rows. For children that cannot happen without their parent.
    * `escm2`: `esmm`, whose conditional is also trained by itself, as if every row had been clicked. For ranking by
      what happens after the click, where ESMM's conditional is known to come out too high.

    All of them want the child's label on ALL rows whose outcome is known: 0 where the parent is 0 (nobody bought what
    they did not click), NaN only where it is unknown (not yet attributed, another data set, padding). A child labelled
    only where its parent is 1 would be taught P(child | parent) in the place of P(child).

    Subclasses declare `default_options` and for which heads they make sense.
    """

    heads: ClassVar[tuple[str, ...]] = ("binary",)
    parent_heads: ClassVar[tuple[str, ...]] = ("binary",)
    default_options: ClassVar[dict[str, Any]] = {}

    def __init__(self, task: TaskConfig, parent: TaskConfig, config: PolyRecConfig) -> None:
        super().__init__()
        for what, kind, allowed in (
            (f"task {task.name!r}", task.head, self.heads),
            (f"parent {parent.name!r} of task {task.name!r}", parent.head, self.parent_heads),
        ):
            if kind not in allowed:
                raise ValueError(
                    f"coupling {task.coupling!r} cannot couple {what}, whose head is {kind!r}: it needs "
                    f"{' or '.join(map(repr, allowed))}"
                )
        self.task, self.parent = task, parent
        self.what = f"coupling {task.coupling!r} of task {task.name!r}"  # for messages
        self.options = checked_options(task.coupling_options, self.default_options, self.what)

    def initialise(self) -> None:
        """Set parameters that the default initialisation does not know; called after it."""

    def hidden(self, hidden: Tensor, parent_hidden: Tensor) -> Tensor:
        """What the child's head reads, [B, C, D] or [B, C, M, D]."""
        return hidden

    def logits(self, logits: Tensor, parent_logits: Tensor) -> Tensor:
        """The child's output, [B, C] or [B, C, M]."""
        return logits

    def loss(self, found: CoupledTask) -> tuple[Tensor, Tensor]:
        """The child's loss: (sum, count), scalars."""
        return found.head.loss(found.logits, found.labels, found.weight)
