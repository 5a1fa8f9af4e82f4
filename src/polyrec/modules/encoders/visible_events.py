"""The events that requests see, of which each window's are held once, however many requests see them.

Letters: B windows, L events of a window, M requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyrec.modules.encoders.item import FIRST_ITEM, UNKNOWN_ITEM


class VisibleEvents(NamedTuple):
    """The first so many events of a window, for each request.

    Written out, [..., L] of all requests of one long history would grow with the square of its length: terms `read`
    them for some requests at a time (`polyrec.modules.heads.terms._blocks`).

    Args:
        items: int64 [B, L], oldest first, 0 = padding.
        positions: int64 [...], how many of them each request sees.
        windows: int64 [...], the window of each request.
        refused: {task: bool [B, L]}, events that are negatives of a task (seen, and not clicked).

    Example:
        >>> events = VisibleEvents.of_batch(torch.tensor([[5, 6, 7]]), torch.tensor([[0, 2]]))
        >>> events.read().tolist(), events.at((0, 1)).read().tolist()
        ([[[0, 0, 0], [5, 6, 0]]], [5, 6, 0])
    """

    items: Tensor
    positions: Tensor
    windows: Tensor
    refused: Mapping[str, Tensor]

    @classmethod
    def of_batch(cls, items: Tensor, positions: Tensor, refused: Mapping[str, Tensor] | None = None) -> VisibleEvents:
        """Those of the candidates of a batch, [B, L] and [B, C]."""
        windows = torch.arange(items.shape[0], device=positions.device).unsqueeze(1).expand_as(positions)
        return cls(items, positions, windows, refused or {})

    @classmethod
    def of_requests(cls, items: Tensor, refused: Mapping[str, Tensor] | None = None) -> VisibleEvents:
        """Those of M requests with a history each, int64 [M, L], of which they see all."""
        every = torch.arange(items.shape[0], device=items.device)
        return cls(items, torch.full_like(every, items.shape[1]), every, refused or {})

    @property
    def length(self) -> int:
        """L."""
        return self.items.shape[1]

    def counted(self, task: str | None = None) -> Tensor:
        """Items of the windows' events, int64 [B, L]; those that are negatives of a task are the unknown item."""
        if task is None or task not in self.refused:
            return self.items
        return torch.where(self.refused[task] & (self.items >= FIRST_ITEM), UNKNOWN_ITEM, self.items)

    def read(self, task: str | None = None) -> Tensor:
        """Items of the visible events, oldest first, int64 [..., L]; 0 where there is none.

        Args:
            task: as of [`counted`].
        """
        items_BL = self.counted(task)
        index_L = torch.arange(self.length, device=items_BL.device)
        rows = items_BL.index_select(0, self.windows.flatten()).view(*self.windows.shape, self.length)
        return torch.where(index_L < self.positions.unsqueeze(-1), rows, 0)

    def at(self, index: Any) -> VisibleEvents:
        """Those of some requests, by any index of their own dimensions."""
        return self._replace(positions=self.positions[index], windows=self.windows[index])

    def flatten(self, dims: int = 2) -> VisibleEvents:
        """Requests whose first dimensions are one."""
        positions, windows = (part.flatten(0, dims - 1) for part in (self.positions, self.windows))
        return self._replace(positions=positions, windows=windows)
