"""When a question is asked and after which events: what a logit may depend on beside the person's state.

Letters: B windows, C candidates, L events of a window, M questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Moment(NamedTuple):
    """The moments of some questions.

    Args:
        times: int64 [...], milliseconds since the epoch; None: nobody said.
        history: int64 [..., L], items of the visible events, oldest first, 0 = none; None: nobody said.
        refused: {task: bool [..., L]}, which of the events say that the item was not taken (seen, and not clicked).
    """

    times: Tensor | None = None
    history: Tensor | None = None
    refused: Mapping[str, Tensor] | None = None

    def rows(self, chosen_M: Tensor) -> Moment:
        """Some questions of a batch, [B, C] -> [M].

        Args:
            chosen_M: int64 or bool, places in the flattened batch.
        """
        return self._each(lambda part: part.flatten(0, 1)[chosen_M])

    def at(self, index: Any) -> Moment:
        """Some of the questions, by any index of their own dimensions."""
        return self._each(lambda part: part[index])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Moment:
        times, history = (None if part is None else change(part) for part in (self.times, self.history))
        refused = None if self.refused is None else {task: change(part) for task, part in self.refused.items()}
        return Moment(times, history, refused)


NOT_TOLD = Moment()


def visible_items(item_ids: Tensor, positions: Tensor) -> Tensor:
    """Items of the events that each candidate sees, [B, L] and [B, C] -> [B, C, L], 0 where there is none.

    Example:
        >>> visible_items(torch.tensor([[5, 6, 7]]), torch.tensor([[0, 2]])).tolist()
        [[[0, 0, 0], [5, 6, 0]]]
    """
    index_L = torch.arange(item_ids.shape[1], device=item_ids.device)
    return torch.where(index_L < positions.unsqueeze(-1), item_ids.unsqueeze(1), 0)
