"""What is popular now, whoever asks.

Letters: M questions, U snapshots of a batch, N items, K items of a snapshot, D width.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import initialization as init

from polyrec.core.linear_loss import SparseBias
from polyrec.modules.encoders.request_context import RequestContext, Trending
from polyrec.modules.heads.terms.item_terms import find_items, place_numbers
from polyrec.modules.heads.terms.weighed import WeighedTerm


class RecentItems(nn.Module):
    """What a question's time says of items: log p_j of the K hottest, 0 of others.

    p_j = 1 + sum_t a_t n_tj, n_tj how often item j was taken strictly before the question, an event of age x counting
    2^{-x / h_t} (see [`~polyrec.data.trending.RecentCounts`]). What was counted comes with each batch, so that nothing
    here grows with catalog or log.

    Args:
        task: whose label says which events count.

    Shapes: questions [M] -> numbers of items [M, N].
    """

    size = 1

    def __init__(self, num_items: int, task: str = "") -> None:
        super().__init__()
        self.num_items, self.task = num_items, task

    def extend(self, num_items: int) -> None:
        """There are more items now."""
        self.num_items = num_items

    def biases(self, context: RequestContext, ids: Tensor) -> SparseBias:
        """The columns and numbers of trending items for the logits of some items.

        Args:
            ids: ascending, each once.
        """
        rows_M1, items, values = self._snapshots(context)
        return place_numbers(items, values.unsqueeze(-2), rows_M1, ids, self.num_items)

    def training_biases(self, context: RequestContext, ids: Tensor, targets_M: Tensor) -> SparseBias:
        """The same, whatever came then."""
        return self.biases(context, ids)

    def of_items(self, of_groups: Tensor, context: RequestContext, ids: Tensor) -> Tensor:
        """The numbers of items of each question's own, [..., 1], [...] and [..., K] -> [..., K]."""
        rows, items, values = self._snapshots(context)
        rows = rows.expand_as(ids)
        place, is_trending = find_items(items, rows, ids)
        return values[rows, place].to(of_groups.dtype) * of_groups * is_trending

    def _snapshots(self, context: RequestContext) -> tuple[Tensor, Tensor, Tensor]:
        """Rows [..., 1] of the snapshots' items and values [U, K]."""
        found: Trending | None = (context.trending or {}).get(self.task)
        if found is None:
            raise ValueError(
                f"task {self.task!r} reads `trending` and the batch does not say what was: set the option in the tasks "
                "of the processor before split, or pass what `model.request_context(...)` returns where it "
                "scores the catalog"
            )
        return found.snapshot.unsqueeze(-1), found.items, found.values


class TrendingItems(RecentItems):
    r"""The term of recent popularity of a retrieval logit that training learns, (A s_i + c) log p_j(t_i).

    An untrained model ranks by recent popularity: c starts at the power that fits late training rows best, A at 0.

    Args:
        start: c as it starts.
        rate: how many times faster than other parameters c learns.
        task: as of `RecentItems`.

    Shapes: states [M, D] -> logits [M, 1].
    """

    def __init__(self, num_items: int, hidden_size: int, start: float = 1.0, rate: float = 1.0, task: str = "") -> None:
        super().__init__(num_items, task)
        self.start, self.rate = start, rate
        self.by_state = nn.Linear(hidden_size, 1, bias=False)
        self.prior = nn.Embedding(1, 1)

    def initialise(self) -> None:
        """Start with what everybody prefers."""
        init.zeros_(self.by_state.weight)
        init.constant_(self.prior.weight, self.start / self.rate)

    def logits(self, state: Tensor) -> Tensor:
        """The weight of a state, [..., D] -> [..., 1]."""
        return self.by_state(state) + self.rate * self.prior.weight.squeeze(-1)


class WeighedRecentItems(RecentItems, WeighedTerm):
    """Recent popularity beside the network, a log p_j(t_i), a being one number that validation chooses."""

    def __init__(self, num_items: int, task: str = "") -> None:
        super().__init__(num_items, task)
        self.register_weights(1)
