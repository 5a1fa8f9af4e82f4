"""What is popular now, beside the network."""

from __future__ import annotations

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import RETRIEVAL_TERMS
from polyrec.modules.heads.base import TaskHead
from polyrec.modules.heads.terms._recent_items import RecentItems
from polyrec.modules.heads.terms._weighed import WeighedTerm
from polyrec.modules.heads.terms.base import RetrievalTerm


@RETRIEVAL_TERMS.register("recent")
class WeighedRecentItems(RecentItems, WeighedTerm):
    """Recent popularity beside the network, a log p_j(t_i), a being one number that validation chooses: option
    `recent`."""

    option = "recent"
    title = "recent popularity"
    found_options = ("recent",)
    order = 50

    @classmethod
    def build(cls, head: TaskHead, config: PolyRecConfig) -> RetrievalTerm | None:
        """With `trending` and `recent`."""
        return cls(config.num_items, head.task.name) if cls.is_counted(head) and head.options["recent"] else None

    def __init__(self, num_items: int, task: str = "") -> None:
        super().__init__(num_items, task)
        self.register_weights(1)
