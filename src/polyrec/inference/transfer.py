"""Transfer: a model that represents items by their text scores another catalog."""

from __future__ import annotations

import copy

import torch

from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.heads.terms.base import RetrievalTerm


@torch.no_grad()
def for_catalog(model: PolyRecForRecommendation, processor: PolyRecProcessor) -> PolyRecForRecommendation:
    """The same weights over the items of another processor, without any training there.

    What a model learned about histories transfers wherever items are represented by text only (UniSRec, Hou et al.,
    2022, "Towards Universal Sequence Representation Learning for Recommender Systems"). The result can be trained on.

    Args:
        model: without item ids (`PolyRecConfig(item_ids=False)`) and with a text encoder.
        processor: of the other data, with the same text encoder and features; its tasks do not matter.

    Raises:
        ValueError: the model knows things that the other data cannot have.
    """
    if model.config.item_ids or model.config.text is None:
        raise ValueError(
            "only a model that represents items by text alone transfers to other catalogs: train it with "
            "model_config(item_ids=False) and a processor fitted with text=..."
        )
    if processor.text is None or processor.text.model != model.config.text.model:
        raise ValueError(f"fit the other processor with the text encoder {model.config.text.model!r}")
    ours = {(f.source, f.name): f for f in model.config.feature_configs}
    theirs = {(f.source, f.name): f for f in processor.features}
    if ours != theirs:
        wrong = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        raise ValueError(
            f"the model and the other data differ in features {wrong}: leave out (of both) what only one of them has"
        )
    config = copy.deepcopy(model.config)
    config.num_items = processor.num_items
    other = PolyRecForRecommendation(config)
    own = other.state_dict()
    of_items = ("item_encoder.known", "item_encoder.counts", "item_encoder.text.vectors")
    terms = [(path, module) for path, module in other.named_modules() if isinstance(module, RetrievalTerm)]
    rows = (*of_items, *(f"{path}.{name}" for path, term in terms for name in term.item_tensors))
    state = {name: value for name, value in model.state_dict().items() if name in own}  # no teacher's
    kept = {name: own[name] if name.endswith(rows) else value for name, value in state.items()}
    other.load_state_dict(kept)
    counts = torch.from_numpy(processor.item_counts).float()
    other.load_catalog(processor.items.encoded, counts)
    other.load_texts(processor)
    other.load_times(processor)
    if processor.has_training_rows:
        other.load_neighbours(processor)
    return other.eval()
