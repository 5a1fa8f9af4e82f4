"""What is popular now, weighed by the user's state.

Letters: M requests, D width.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import RETRIEVAL_TERMS
from polyrec.modules.heads.base import TaskHead
from polyrec.modules.heads.terms._recent_items import RecentItems
from polyrec.modules.heads.terms.base import RetrievalTerm


@RETRIEVAL_TERMS.register("trending")
class TrendingItems(RecentItems):
    r"""The term of recent popularity of a retrieval logit that training learns, (A s_i + c) log p_j(t_i).

    An untrained model ranks by recent popularity: c starts at the power that fits late training rows best, A at 0.

    Options: `trending`, [half-life in seconds, weight of the counts that fade by it] of each of some half-lives, e.g.
    [[3600, 100]], by which the processor counts; it finds them in late training rows. (): no such term.
    `trending_start`: c as it starts; 0: no training reads the term, as where it tells no more than the popularity of
    all time.

    Args:
        start: c as it starts.
        rate: how many times faster than other parameters c learns.
        task: as of `RecentItems`.

    Shapes: states [M, D] -> logits [M, 1].
    """

    option = "trending"
    found_options = ("trending", "trending_start")
    order = 60
    network_share = 0.1

    @classmethod
    def build(cls, head: TaskHead, config: PolyRecConfig) -> RetrievalTerm | None:
        """With `trending` and `trending_start`."""
        start = head.options["trending_start"]
        if not cls.is_counted(head) or not start:
            return None
        return cls(config.num_items, config.hidden_size, start, head.options["bias_rate"], head.task.name)

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
