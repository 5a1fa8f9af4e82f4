"""Checks that a saved folder can be used, before it is shared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from polyrec.core.offers import offer
from polyrec.data.processor_files import CONFIG_NAME
from polyrec.hub.files import MODEL_CONFIG
from polyrec.inference.recommender import recommend
from polyrec.models.cross_encoder.modeling_cross_encoder import PolyRecCrossEncoder
from polyrec.models.cross_encoder.processing_cross_encoder import PolyRecCrossEncoderProcessor
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor


@offer
def check_loads(folder: Path) -> None:
    """Load the model and the processor of a folder, and recommend once if both are there.

    Raises:
        ValueError: a file is missing, damaged, or not of the same run.
    """
    config = json.loads((folder / MODEL_CONFIG).read_text("utf-8")) if (folder / MODEL_CONFIG).exists() else None
    reranks = config is not None and "cross_encoder" in str(config.get("model_type", ""))
    model = processor = None
    if (folder / CONFIG_NAME).exists():
        cls = PolyRecCrossEncoderProcessor if reranks else PolyRecProcessor
        processor = cls.from_pretrained(folder)
    if config is not None:
        model = (PolyRecCrossEncoder if reranks else PolyRecForRecommendation).from_pretrained(folder)
    if model is None or processor is None:
        return
    if model.item_counts.any() and model.item_counts.tolist() != processor.item_counts.astype(np.float32).tolist():
        raise ValueError(f"{folder}: model and processor are of different runs: they count other events of items")
    if not reranks and (model.pair_tasks or model.history_tasks):
        recommend(model, processor, [processor.items.ids[0].as_py()], k=1)
