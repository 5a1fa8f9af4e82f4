"""Batches as a model on its device reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from polyrec.data.collator import PolyRecCollator
from polyrec.models.pretrained import PolyRecPreTrainedModel


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move a nested batch to a device."""
    return {k: to_device(v, device) if isinstance(v, dict) else v.to(device) for k, v in batch.items()}


def as_batch(windows: Sequence[dict[str, Any]], model: PolyRecPreTrainedModel) -> dict[str, Any]:
    """Windows that the model can answer."""
    batch = PolyRecCollator()(windows)
    return to_device({k: v for k, v in batch.items() if k not in ("labels", "candidate_rows")}, model.device)
