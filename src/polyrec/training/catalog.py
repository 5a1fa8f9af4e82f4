"""What a processor knows of the items, given to a model before it trains."""

from __future__ import annotations

import torch

from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor


def load_catalog(model: PolyRecForRecommendation, processor: PolyRecProcessor) -> None:
    """Give a model what the processor knows of the items."""
    vectors = None
    # A model that holds a catalog has been trained, or was loaded: it keeps its id embeddings.
    is_new = not model.item_encoder.known.any()
    if model.config.item_cooccurrence and is_new:
        found = processor.item_vectors(model.config.hidden_size)
        vectors = model.config.item_cooccurrence * torch.from_numpy(found)
    model.load_catalog(processor.items.encoded, torch.from_numpy(processor.item_counts).float(), vectors)
    model.load_texts(processor)
    model.load_times(processor)
    if processor.has_training_rows:
        model.load_neighbours(processor)
    if is_new:
        model.item_encoder.start_from_text(model.config)
