"""Windows become a padded batch with prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from polyrec.data.batching import WindowBatch
from polyrec.data.collator import PolyRecCollator
from polyrec.models.cross_encoder.processing_cross_encoder import PolyRecCrossEncoderProcessor


@dataclass(kw_only=True)
class CrossEncoderCollator(PolyRecCollator):
    """What [`PolyRecCollator`] makes, `list_items` [B, C, K] where windows have them, and the prompts of all pairs.

    Args:
        processor: writes the prompts.
    """

    processor: PolyRecCrossEncoderProcessor

    def __call__(self, windows: Sequence[dict[str, Any]] | WindowBatch) -> dict[str, Any]:
        """Collate windows."""
        return self.processor.with_prompts(collate(windows, self.pad_to_multiple_of))


def collate(windows: Sequence[dict[str, Any]] | WindowBatch, multiple: int = 1) -> dict[str, Any]:
    """A padded batch, lists included, before prompts are written."""
    batch = PolyRecCollator(multiple)(windows)
    if not isinstance(windows, WindowBatch) and "list_items" in windows[0]:
        length = windows[0]["list_items"].shape[1]
        batch["list_items"] = torch.zeros((*batch["candidate_ids"].shape, length), dtype=torch.int64)
        for row, window in enumerate(windows):
            batch["list_items"][row, : len(window["list_items"])] = torch.from_numpy(window["list_items"])
    return batch
