"""Which item was it? Masked events of a history, predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import OBJECTIVES
from polyrec.core.schema import TaskConfig
from polyrec.modules.encoders.item import FIRST_ITEM, ItemEncoder, ItemRows
from polyrec.modules.heads.retrieval import RetrievalHead
from polyrec.modules.objectives.base import Objective, Reading


@OBJECTIVES.register("masked_events")
class MaskedEvents(Objective):
    r"""L = -\sum_{l masked} log softmax_j(W s_l . v_j + b_j)[x_l], s_l the state that has read a mask in place of x_l.

    The Cloze task of BERT4Rec (Sun et al., 2019, "BERT4Rec: Sequential Recommendation with Bidirectional Encoder
    Representations from Transformer"; CBiT, Du et al., 2022): the item embeddings of some events become one trained
    vector, and their items are predicted. What else is known of such an event stays (its feedback, context, time).

    Histories are read causally here, since every state must also fit its own context. So a mask is filled from
    the left, and what it teaches beyond next-item prediction is (1) which item goes with the feedback and the time of
    an event, p(item | history, rated 5, on a Monday), and (2) to read histories with holes. Read from the state
    *before* the mask, it would be the next-item task again on a history with holes, which the `Mask` transform of
    `polyrec.data.augmentation` gives already. (Transformers4Rec, de Souza Pereira Moreira et al., 2021, compare masked
    and causal training of one backbone.)

    Measured on protocol A (ml-100k, 2 seeds): with weight .1 validation NDCG@10 .1295 against .1337 without: no gain
    where items start from their co-occurrence.

    Costs a second reading of the histories. The number of masks counts as its expectation, so the reduction is exact.

    Options: `weight`; `share` of the events that are masked; `num_negatives`, `sampled_above` as in a retrieval head.

    Shapes: histories [B, L] -> scalar; v_j are the item embeddings [N, D].

    Example:
        >>> from polyrec import PolyRecConfig, PolyRecForRecommendation
        >>> config = PolyRecConfig(tasks=[{"name": "next_item", "head": "retrieval"}], num_items=9, hidden_size=8,
        ...                        objectives={"masked_events": {"share": 1.0}})
        >>> ids = torch.tensor([[3, 4, 0]])
        >>> output = PolyRecForRecommendation(config).train()(
        ...     item_ids=ids, candidate_ids=ids, candidate_positions=torch.tensor([[0, 1, 0]]),
        ...     labels={"next_item": torch.ones(1, 3)})
        >>> {name: loss.item() > 0 for name, loss in output.objectives.items()}
        {'masked_events': True}
    """

    default_options: ClassVar[dict[str, Any]] = {
        "weight": 0.1,
        "share": 0.2,
        "num_negatives": 1024,
        "sampled_above": 20_000,
    }

    def __init__(self, name: str, options: Mapping[str, Any], config: PolyRecConfig) -> None:
        super().__init__(name, options, config)
        self.check_range("share", 0, 1)
        sampling = {key: self.options[key] for key in ("num_negatives", "sampled_above")}
        self.head = RetrievalHead(TaskConfig(name, "retrieval", options=sampling), config)
        self.mask = nn.Parameter(torch.empty(config.hidden_size))
        self.initial_std = config.initializer_range

    def initialise(self) -> None:
        """The mask starts as an item embedding does."""
        init.normal_(self.mask, mean=0.0, std=self.initial_std)

    def extend(self, num_items: int, known_N: Tensor) -> None:
        """Make place for new items."""
        self.head.extend(num_items, known_N)

    def draw(self, item_encoder: ItemEncoder) -> Tensor | None:
        """Negatives of a sampled softmax."""
        sampled = self.head.sampled and not item_encoder.negatives_of_batch
        return self.head.negatives(item_encoder.counts) if sampled else None

    def count(self, item_encoder: ItemEncoder, item_ids: Tensor) -> Tensor:
        """Masks to be expected."""
        return self.options["share"] * (item_ids >= FIRST_ITEM).sum().float()

    def forward(self, reading: Reading) -> Tensor:
        """Mask, read, predict."""
        ids, items = reading.item_ids, reading.items
        masked_BL = (ids >= FIRST_ITEM) & (torch.rand(ids.shape, device=ids.device) < self.options["share"])
        with_mask, mask_id = self._with_mask(items, reading.item_encoder.num_items)
        states_BLD = reading.states(with_mask, torch.where(masked_BL, mask_id, ids), reading.event_features)
        at_M = masked_BL.flatten().nonzero().squeeze(-1)
        state_MD = states_BLD[:, 1:].flatten(0, 1).index_select(0, at_M)
        counts = reading.item_encoder.counts
        total, _ = self.head.retrieval_loss(state_MD, ids.flatten()[at_M], items, counts, reading.drawn)
        return total

    def _with_mask(self, items: ItemRows, num_items: int) -> tuple[ItemRows, int]:
        """The items and, behind the last of them, the mask, with its id."""
        vectors_MD = torch.cat([items.vectors_MD, self.mask.to(items.vectors_MD).unsqueeze(0)])
        if items.rows_M is None:
            return ItemRows(vectors_MD), len(vectors_MD) - 1
        return ItemRows(vectors_MD, torch.cat([items.rows_M, items.rows_M.new_tensor([num_items])])), num_items
