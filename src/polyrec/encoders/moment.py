"""When a question is asked and after which events: what a logit may depend on beside the person's state.

Letters: B windows, C candidates, L events of a window, M questions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Moment(NamedTuple):
    """The moments of some questions.

    Args:
        times: int64 [...], milliseconds since the epoch; None: nobody said.
        history: int64 [..., L], items of the visible events, oldest first, 0 = none; None: nobody said.
    """

    times: Tensor | None = None
    history: Tensor | None = None

    def rows(self, chosen_M: Tensor) -> Moment:
        """Some questions of a batch, [B, C] -> [M].

        Args:
            chosen_M: int64 or bool, places in the flattened batch.
        """
        return Moment(*(None if part is None else part.flatten(0, 1)[chosen_M] for part in self))

    def at(self, index: Any) -> Moment:
        """Some of the questions, by any index of their own dimensions."""
        return Moment(*(None if part is None else part[index] for part in self))


NOT_TOLD = Moment()


def visible_items(item_ids: Tensor, positions: Tensor) -> Tensor:
    """Items of the events that each candidate sees, [B, L] and [B, C] -> [B, C, L], 0 where there is none.

    Example:
        >>> visible_items(torch.tensor([[5, 6, 7]]), torch.tensor([[0, 2]])).tolist()
        [[[0, 0, 0], [5, 6, 0]]]
    """
    index_L = torch.arange(item_ids.shape[1], device=item_ids.device)
    return torch.where(index_L < positions.unsqueeze(-1), item_ids.unsqueeze(1), 0)
