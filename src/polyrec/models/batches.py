"""Batches as a model on its device reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from polyrec.data.batch import Batch
from polyrec.data.collator import PolyRecCollator
from polyrec.models.pretrained import PolyRecPreTrainedModel


def as_batch(windows: Sequence[dict[str, Any]], model: PolyRecPreTrainedModel) -> Batch:
    """Windows that the model can score, without their labels."""
    batch = Batch.of(PolyRecCollator()(windows))
    return replace(batch, labels=None, candidate_rows=None).to(model.device)
