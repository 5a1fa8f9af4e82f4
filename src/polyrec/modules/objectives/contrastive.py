"""Two views of one history lie closer together than those of different users."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from polyrec.core.configuration_polyrec import PolyRecConfig
from polyrec.core.registry import OBJECTIVES, nearest
from polyrec.data.augmentation import Crop, Mask, OneOf, Reorder, Transform
from polyrec.modules.encoders.item import PADDING_ITEM, UNKNOWN_ITEM, ItemEncoder
from polyrec.modules.objectives._views import history_views
from polyrec.modules.objectives.base import Objective, Reading, symmetric_info_nce

VIEWS = ("dropout", "augmented")


@OBJECTIVES.register("contrastive")
class Contrastive(Objective):
    r"""L = -1/2 \sum_i [log softmax_j(cos(a_i, b_j) / \tau)_i + log softmax_j(cos(b_i, a_j) / \tau)_i], a, b two views.

    A view is a state after some prefix of a user's history; negatives are the states of the other users in the
    batch. Several prefixes of a history are compared at once, since one reading gives all of their states.

    * `views="dropout"`: the history twice, under different dropout (DuoRec, Qiu et al., 2022, "Contrastive Learning for
      Representation Degeneration Problem in Sequential Recommendation", without its same-target positives). The first
      view is what the tasks read; one more reading.
    * `views="augmented"`: each view is cropped, masked or reordered, one of them by chance (CL4SRec, Xie et al., 2022,
      "Contrastive Learning for Sequential Recommendation"), with the transforms of `polyrec.data.augmentation`; two
      more readings. A prefix that a crop leaves nothing of is not compared, and counts.

    Measured on protocol A (ml-100k, 2 seeds): with weight .1 validation NDCG@10 .1258 with dropout views and .1341
    with augmented ones against .1337 without: no gain there, where items start from their co-occurrence.

    In-batch negatives depend on the cut into batches: an accumulation window divides by its whole count, but each of
    its batches has its own users alone as negatives.

    Options: `weight`; `views`; `temperature` \tau; `prefixes` per history; `crop`, `mask`, `reorder`: shares of events.

    Shapes: histories [B, L] -> scalar; up to B * prefixes states [D] on each side.

    Example:
        >>> from polyrec import PolyRecConfig, PolyRecForRecommendation
        >>> config = PolyRecConfig(tasks=[{"name": "next_item", "head": "retrieval"}], num_items=9, hidden_size=8,
        ...                        objectives={"contrastive": {"views": "augmented"}})
        >>> ids = torch.tensor([[3, 4, 0], [5, 6, 7]])
        >>> output = PolyRecForRecommendation(config).train()(
        ...     item_ids=ids, candidate_ids=ids, candidate_positions=torch.tensor([[0, 1, 0], [0, 1, 2]]),
        ...     labels={"next_item": torch.ones(2, 3)})
        >>> list(output.objectives)
        ['contrastive']
    """

    default_options: ClassVar[dict[str, Any]] = {
        "weight": 0.1,
        "views": "dropout",
        "temperature": 0.1,
        "prefixes": 16,
        "crop": 0.4,
        "mask": 0.3,
        "reorder": 0.2,
    }

    def __init__(self, name: str, options: Mapping[str, Any], config: PolyRecConfig) -> None:
        super().__init__(name, options, config)
        self.check_range("temperature", 0, float("inf"))
        if self.options["views"] not in VIEWS:
            raise self.option_error("views", nearest(str(self.options["views"]), list(VIEWS)))
        if self.options["prefixes"] < 1:
            raise self.option_error("prefixes", "it must be >= 1")
        self.transform: Transform | None = None
        if self.options["views"] == "augmented":
            own = self.options
            self.transform = OneOf(Crop(own["crop"]), Mask(own["mask"]), Reorder(own["reorder"]))
        elif config.dropout == 0:
            raise self.option_error(
                "views", "with dropout=0 both views are the same: set dropout, or views='augmented'"
            )

    def draw(self, item_encoder: ItemEncoder) -> Tensor | None:
        """The unknown item, which stands for masked ones."""
        return None if self.transform is None else torch.full((1,), UNKNOWN_ITEM, device=item_encoder.known.device)

    def count(self, item_encoder: ItemEncoder, item_ids: Tensor) -> Tensor:
        """Prefixes that are compared."""
        return (item_ids != PADDING_ITEM).sum(1).clamp(max=self.options["prefixes"]).sum().float()

    def forward(self, reading: Reading) -> Tensor:
        """Two views, compared."""
        user_M, prefix_M = self._prefixes(reading.item_ids)
        if self.transform is None:
            views = [reading.states_BLD, reading.states(reading.items, reading.item_ids, reading.event_features)]
            positions = [prefix_M, prefix_M]
        else:
            rng = np.random.default_rng(int(torch.randint(2**31, ())))
            views, positions = [], []
            for _ in range(2):
                seen = history_views(self.transform, reading.item_ids, reading.event_features, rng)
                views.append(reading.states(reading.items, seen.item_ids, seen.event_features))
                positions.append(seen.position_BL[user_M, prefix_M])
        kept_M = ((positions[0] > 0) & (positions[1] > 0)).nonzero().squeeze(-1)
        user_K = user_M[kept_M]
        if not len(kept_M):
            return 0.0 * views[1].sum()
        one_KD, two_KD = (
            _rows(view, user_K, position[kept_M]) for view, position in zip(views, positions, strict=True)
        )
        return symmetric_info_nce(one_KD, two_KD, self.options["temperature"], user_K)

    def _prefixes(self, item_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Some prefixes of each history, all different, by chance: whose they are [M], and their lengths [M]."""
        real_BL = item_ids != PADDING_ITEM
        chance_BL = torch.rand(item_ids.shape, device=item_ids.device).masked_fill(~real_BL, 2.0)
        # The ranks of random numbers: those of real events come first.
        drawn_BL = (chance_BL.argsort(1).argsort(1) < self.options["prefixes"]) & real_BL
        user_M, last_M = drawn_BL.nonzero(as_tuple=True)
        return user_M, last_M + 1


def _rows(states_BLD: Tensor, user_M: Tensor, position_M: Tensor) -> Tensor:
    """States of users after some events, [M, D]."""
    return states_BLD.flatten(0, 1).index_select(0, user_M * states_BLD.shape[1] + position_M)
