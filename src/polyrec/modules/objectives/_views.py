"""Transforms of windows applied to the histories of a batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from polyrec.data.augmentation import Transform
from polyrec.modules.encoders.item import FIRST_ITEM, PADDING_ITEM, UNKNOWN_ITEM


class HistoryViews(NamedTuple):
    """Changed histories.

    Args:
        item_ids, event_features: as in a batch.
        position_BL: [B, L + 1], how many events of the changed history somebody sees who saw that many before.
    """

    item_ids: Tensor
    event_features: dict[str, Tensor]
    position_BL: Tensor


def history_views(
    transform: Transform, item_ids: Tensor, event_features: dict[str, Tensor], rng: np.random.Generator
) -> HistoryViews:
    """Apply a transform that only takes, hides and reorders events (crop, mask, reorder) to each history.

    The transform sees numbers of events instead of items, and what it makes of them is done to the tensors.

    Example:
        >>> from polyrec.data.augmentation import Crop
        >>> seen = history_views(Crop(1.0), torch.tensor([[5, 6, 0]]), {}, np.random.default_rng(1))
        >>> seen.item_ids, seen.position_BL  # one of two events is left
        (tensor([[6, 0, 0]]), tensor([[0, 0, 1, 0]]))
    """
    lengths = (item_ids != PADDING_ITEM).sum(1).tolist()
    shape = item_ids.shape
    source = np.zeros(shape, dtype=np.int64)
    hidden, real = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    position = np.zeros((shape[0], shape[1] + 1), dtype=np.int64)
    for row, length in enumerate(lengths):
        numbers = np.arange(length)
        window = transform(
            {
                "item_ids": numbers + FIRST_ITEM,
                "event_features": {"number": numbers},
                "candidate_positions": np.arange(length + 1),
            },
            rng,
        )
        kept = len(window["item_ids"])
        source[row, :kept] = window["event_features"]["number"]
        hidden[row, :kept] = window["item_ids"] == UNKNOWN_ITEM
        real[row, :kept] = True
        position[row, : length + 1] = window["candidate_positions"]
    device = item_ids.device
    source_BL = torch.from_numpy(source).to(device)
    ids = item_ids.gather(1, source_BL).masked_fill(torch.from_numpy(hidden).to(device), UNKNOWN_ITEM)
    return HistoryViews(
        ids.masked_fill(~torch.from_numpy(real).to(device), PADDING_ITEM),
        {name: _gather(values, source_BL) for name, values in event_features.items()},
        torch.from_numpy(position).to(device),
    )


def _gather(values: Tensor, source_BL: Tensor) -> Tensor:
    """Rows along the axis of events, [B, L(, K)]; where there is padding, any."""
    if values.dim() == 2:
        return values.gather(1, source_BL)
    return values.gather(1, source_BL.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
