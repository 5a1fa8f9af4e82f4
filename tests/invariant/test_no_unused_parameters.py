"""`ddp_find_unused_parameters=False` is right: each parameter gets a gradient in each batch."""

from __future__ import annotations

import pytest
from model_fixtures import PAIR_TASKS, TASKS, fit, model_inputs, tiny_model

from polyrec import PolyRecCollator
from polyrec.core.registry import EXPERTS, WEIGHTINGS

AITM = {"name": "love", "head": "binary", "label": "rating >= 5", "parent": "like", "coupling": "aitm"}
OPTIONS = {
    **{f"experts {kind}": {"experts": kind} for kind in EXPERTS.names()},
    **{f"weighting {kind}": {"weighting": kind} for kind in WEIGHTINGS.names()},
    "no layers": {"num_hidden_layers": 0},
    "no attention": {"candidate_attention_heads": 0},
    "frozen ids": {"freeze_item_ids": True},
    "own items": {"task_item_embeddings": True},
    "objectives": {"objectives": {"masked_events": {}, "contrastive": {"views": "augmented"}}},
    "wide pairs": {"pair_size": 16},
    "retrieval alone": {"tasks": TASKS[:1]},
    "pairs alone": {"tasks": PAIR_TASKS},
    "coupled": {"tasks": [*PAIR_TASKS, AITM]},
    "sampled": {"tasks": [{**TASKS[0], "options": {"sampled_above": 2, "num_negatives": 5}}, *PAIR_TASKS]},
}


@pytest.fixture(scope="module")
def world():
    """A processor and batches: all labels, none of "like", none at all."""
    processor, splits = fit()
    batches = []
    for missing in ((), ("like",), ("like", "rating", "next_item")):
        batch = model_inputs(PolyRecCollator()([splits.train[i] for i in range(8)]))
        for task in missing:
            batch["labels"][task].fill_(float("nan"))
        batches.append(batch)
    return processor, batches


@pytest.mark.parametrize("name", OPTIONS)
def test_every_parameter_gets_a_gradient(world, name):
    """Prevents DDP, which waits for the gradient of each parameter, from stopping in the second step."""
    processor, batches = world
    model = tiny_model(processor, **OPTIONS[name]).train()
    for batch in batches:
        model.zero_grad()
        model(**batch).loss.backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, name
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen == (["model.item_encoder.id_embedding.weight"] if name == "frozen ids" else [])
