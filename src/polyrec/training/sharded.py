"""Models whose parameters lie in shards on many ranks (FSDP)."""

from __future__ import annotations

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation


def whole_copy(model: PolyRecForRecommendation) -> PolyRecForRecommendation:
    """The model without shards, on each rank, in evaluation mode.

    Sharded parameters can be read in the forward pass alone, by all ranks at once. Evaluation ranks the catalog outside
    of it, and its ranks have different numbers of batches. All ranks must call this.
    """
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    with torch.random.fork_rng(devices=[]):  # initial weights must not come out of the training's random state
        whole = PolyRecForRecommendation(model.config)
    whole.load_state_dict({name: value for name, value in state.items() if not name.startswith("soft_losses.")})
    return whole.to(model.device).eval()
