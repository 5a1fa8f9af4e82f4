"""The contract of a retrieval term: what is added to the score of an item beside s . v + b.

Letters: M requests, N items, K items of a request's own, G groups, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.linear_loss import AnyBias, Groups
from polyrec.core.registry import RETRIEVAL_TERMS
from polyrec.modules.encoders.growth import BLOCK
from polyrec.modules.encoders.request_context import RequestContext
from polyrec.modules.heads.base import TaskHead


class RetrievalTerm(nn.Module):
    r"""Base of all terms of a retrieval score, z_ij = s_i . v_j + b_j + sum of terms.

    A term sorts items into G groups for each request, or gives them numbers in each group, and says by the user's state
    how much a group adds: `logits` [M, G] times `biases`. So it costs a small product and a look-up, in the full and in
    the sampled softmax, and is an exact part of an explanation.

    A term is registered, `RETRIEVAL_TERMS.register("name")`, and is then an option of every retrieval head. Subclasses
    declare what follows, and implement `build`, `logits`, `biases` and `of_items`. What a term reads beside `times` of
    a [`RequestContext`] it says by `reads_history` and `latest_events`. `of_catalog` is for exported graphs.

    * `option`: the option that turns it on, by which explanations name it, too.
    * `default_options`: all options that it adds to the head, with their defaults.
    * `found_options`: those that a processor finds in the training rows.
    * `order`: its place in the sum, whose last bits depend on it.
    * `key`: the attribute of the head that holds it, and so the name of its tensors on disk; default: its name.
    * `network_share`: the size at which s . v starts beside it, relative to a head without terms. A term that starts
      with what the log knows would only be blurred by a projection at random.
    * `is_evidence`: whether it says what goes with the user's items, of which new items have none.
    * `item_tensors`: buffers with a row per item, which a model for another catalog does not take over.
    * `dense`: whether it adds something to all items, so that none can be found without a look at each.
    * `reads_targets`: whether `training_biases` differ from `biases`.
    """

    option: ClassVar[str]
    default_options: ClassVar[dict[str, Any]] = {}
    found_options: ClassVar[tuple[str, ...]] = ()
    order: ClassVar[int] = 100
    key: ClassVar[str | None] = None
    network_share: ClassVar[float] = 1.0
    is_evidence: ClassVar[bool] = False
    dense: ClassVar[bool] = False
    reads_targets: ClassVar[bool] = False
    item_tensors: ClassVar[tuple[str, ...]] = ()
    size: int  # G

    @classmethod
    def build(cls, head: TaskHead, config: PolyRecConfig) -> RetrievalTerm | None:
        """The term as the head's options ask for it; None: they do not. Wrong ones raise `head.option_error(...)`."""
        raise NotImplementedError

    def initialise(self) -> None:
        """Set parameters and buffers as they start; called after the default initialisation."""

    def extend(self, num_items: int) -> None:
        """Add what the term holds per item; what it holds already stays bit-equal."""

    def load_times(self, processor: Any) -> None:
        """Take when items appeared, if the term reads it; before training, and after new items or events."""

    def load_neighbours(self, processor: Any) -> None:
        """Take what the processor has counted in the training rows, if the term reads it; before training."""

    @property
    def speaks(self) -> bool:
        """Whether it changes a score now."""
        return True

    @property
    def reads_history(self) -> bool:
        """Whether it reads all visible events."""
        return False

    @property
    def latest_events(self) -> int:
        """How many of the latest items it reads."""
        return 0

    def logits(self, state: Tensor) -> Tensor:
        """What a state says of each group, [..., D] -> [..., G]."""
        raise NotImplementedError

    def biases(self, context: RequestContext, ids: Tensor) -> AnyBias:
        """Which group is added to which item for each request, [M] and [N] -> [M, ...].

        Args:
            ids: ascending, each once.
        """
        raise NotImplementedError

    def training_biases(self, context: RequestContext, ids: Tensor, targets_M: Tensor) -> AnyBias:
        """The same where some items are positives, and so were there: of `targets_M`, places in `ids`."""
        return self.biases(context, ids)

    def of_items(self, of_groups: Tensor, context: RequestContext, ids: Tensor) -> Tensor:
        """What groups add to items of each request's own, [..., G], [...] and [..., K] -> [..., K]."""
        raise NotImplementedError

    def of_catalog(self, of_groups: Tensor, context: RequestContext, num_items: int) -> Tensor:
        """What groups add to all items, [M, G] and [M] -> [M, N]: as `biases` say, by shapes that depend on no values.

        It is what exported graphs compute. As it is here, it may take long in large catalogs.
        """
        ids_N = torch.arange(num_items, device=of_groups.device)
        return self.of_items(of_groups, context, ids_N.expand(of_groups.shape[0], num_items))


def registered_terms() -> dict[str, type[RetrievalTerm]]:
    """{attribute of a head: ...} of all terms, in the order of the sum; one attribute may have several."""
    found: list[tuple[str, type[RetrievalTerm]]] = [
        (name, RETRIEVAL_TERMS.get(name)) for name in RETRIEVAL_TERMS.names()
    ]
    return dict(sorted(found, key=lambda pair: (pair[1].order, pair[0])))


class ItemTerms:
    """The sum of some terms, whose groups are numbered one term after the other."""

    def __init__(self, terms: Sequence[RetrievalTerm]) -> None:
        self.terms = terms

    def __bool__(self) -> bool:
        return bool(self.terms)

    def logits(self, state: Tensor) -> Tensor:
        """What a state says of each group, [..., D] -> [..., G]."""
        return torch.cat([term.logits(state) for term in self.terms], dim=-1)

    def biases(self, context: RequestContext, ids: Tensor) -> list[AnyBias]:
        """Which groups are added to which items for each request; ids as of a term's."""
        return self._numbered([term.biases(context, ids) for term in self.terms])

    def groups(self, context: RequestContext, ids: Tensor) -> Groups:
        """The same for some of the requests at a time."""
        return lambda at: self.biases(context.at(at), ids)

    def groups_beside(self, context: RequestContext, targets_M: Tensor, ids: Tensor) -> Groups:
        """The same where what stands at the places `targets_M` in `ids` was taken, and so was there."""
        return lambda at: self._numbered(
            [term.training_biases(context.at(at), ids, targets_M[at]) for term in self.terms]
        )

    def add_to(
        self, logits_MN: Tensor, state_MD: Tensor, context: RequestContext, ids: Tensor, distinct: bool = True
    ) -> Tensor:
        """Logits of items with what the terms say of them, a block of requests at a time.

        Args:
            distinct: whether ids are ascending, each once; any others take longer.
        """
        of_groups_MG, found = self.logits(state_MD), []
        for at in torch.arange(len(logits_MN), device=ids.device).split(max(BLOCK * BLOCK // max(len(ids), 1), 1)):
            some = context.at(at)
            known, column = (ids, None) if distinct else ids.unique(return_inverse=True)
            logits = logits_MN[at] if column is None else logits_MN.new_zeros(len(at), len(known))
            for term in self.biases(some, known):
                logits = term.add(logits, of_groups_MG[at])
            found.append(logits if column is None else logits_MN[at] + logits[:, column])
        return torch.cat(found)

    def entries(self, state_MD: Tensor, context: RequestContext, ids: Tensor) -> tuple[Tensor, Tensor] | str:
        """Items of which the terms say something and what they add, [M, E] each; an item may stand there several times.

        Args:
            ids: all rows of the item table.

        Returns:
            the option of a term instead, if that adds something to all items.
        """
        of_groups_MG, found = self.logits(state_MD), list[tuple[Tensor, Tensor]]()
        for term, bias in zip(self.terms, self.biases(context, ids), strict=True):
            own = bias.entries(of_groups_MG)
            if own is None:
                return term.option
            found.append(own)
        columns, numbers = zip(*found, strict=True)
        return torch.cat(columns, dim=1), torch.cat([own.float() for own in numbers], dim=1)

    def of_pairs(self, state: Tensor, context: RequestContext, ids: Tensor) -> Tensor:
        """The terms of items of each request's own, [..., D], [...] and [..., K] -> [..., K]."""
        return torch.stack([term.of_items(term.logits(state), context, ids) for term in self.terms]).sum(0)

    def _numbered(self, biases: Sequence[AnyBias]) -> list[AnyBias]:
        begins = [0]
        for term in self.terms:
            begins.append(begins[-1] + term.size)
        return [p.beyond(begin) for p, begin in zip(biases, begins[:-1], strict=True)]
