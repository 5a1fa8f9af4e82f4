"""Nothing leaves a tensor on the CPU beside those of another device; no GPU is needed to see it."""

from __future__ import annotations

import copy

import pytest
import torch
from device_fixtures import ELSEWHERE, AnotherDevice
from model_fixtures import fit, synthetic_log, tiny_model
from text_fixtures import tiny_bert

from polyrec import PolyRecCollator
from polyrec.data.batch import Batch
from polyrec.evaluation import evaluator
from polyrec.training.callbacks import WeightAveraging

TASKS = [
    {"name": "next_item", "head": "retrieval", "options": {"repeats": True, "item_age": "first_event"}},
    {"name": "like", "head": "binary", "label": "rating >= 4"},
    {"name": "stars", "head": "ordinal", "label": "rating"},
    {"name": "class", "head": "multiclass", "label": "rating"},
    {"name": "spread", "head": "quantile", "label": "rating"},
    {"name": "count", "head": "count", "label": "rating"},
    {"name": "love", "head": "binary", "label": "rating >= 5", "parent": "like", "coupling": "esmm"},
]
NEW = {"item_id": [100, 101], "title": ["title 1", "title 2"], "genre": ["action", "drama"], "price": [0.5, 0.1]}
OPTIONS = [
    {"experts": "ple", "weighting": "gradnorm", "item_embedding_rank": 4, "task_item_embeddings": True},
    {"weighting": "aggregation", "weighting_options": {"method": "mgda"}, "text": {"tuning": "full"}},
]


def step(model, batch):
    """Losses of a training step, after which the model is another one."""
    torch.manual_seed(0)  # of dropout in the text encoder
    inputs = {name: values for name, values in batch.items() if name != "candidate_rows"}
    output = model.train()(Batch.of(inputs).to(model.device))
    output.loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1, foreach=False).step()
    model.zero_grad()
    observed = {name: loss.item() for name, loss in output.losses.items()}
    model.weighting.observe(observed, output.gramian)
    model.eval()
    return observed


@pytest.fixture(scope="module")
def world():
    return fit(synthetic_log(users=24), tasks=TASKS, text={"model": str(tiny_bert()), "template": "{title} {genre}"})


@pytest.mark.parametrize("options", OPTIONS, ids=["tables", "texts"])
def test_a_model_on_another_device_does_what_it_does_here(world, options):
    """Prevents index tensors, constants and masks that are made on the CPU from meeting a model on a GPU."""
    processor, splits = world
    here = tiny_model(processor, hidden_size=16, candidate_attention_heads=1, **options)
    here.load_times(processor)
    here.load_texts(processor)
    batch = PolyRecCollator()([splits.train[n] for n in range(4)])
    there = copy.deepcopy(here)
    expected = step(here, batch)
    with AnotherDevice():
        there.to(ELSEWHERE)
        assert {p.device for p in (*there.parameters(), *there.buffers())} == {ELSEWHERE}
        assert step(there, batch) == pytest.approx(expected, rel=1e-5)
        user = {"age": 30.0}
        found = [there.recommend(processor, [3, 4], k=3, task=task, user=user) for task in (None, "like")]
        metrics = evaluator.evaluate(there, splits.valid, evaluator.predict(there, splits.valid))
        assert there.explain(processor, [3, 4], k=1)[0]["item"] == found[0][0]["item"]
        averaging = WeightAveraging(0.9)
        averaging.start(there)
        averaging.update(there)
        averaging.load_tensors(there, {name: value.cpu() for name, value in averaging.tensors(there).items()})
        larger = copy.deepcopy(processor)
        larger.extend({**NEW, "tags": [["action"], []]})
        there.extend(larger)
        assert {100, 101} <= {row["item"] for row in there.recommend(larger, [3], k=30)}
        there.quantize()
        there.recommend(larger, [3], k=3)
    for task, rows in zip((None, "like"), found, strict=True):
        own = here.recommend(processor, [3, 4], k=3, task=task, user=user)
        assert [row["item"] for row in own] == [row["item"] for row in rows]
        assert [row["like"] if task is None else row["score"] for row in own] == pytest.approx(
            [row["like"] if task is None else row["score"] for row in rows], rel=1e-4
        )
    right = evaluator.evaluate(here, splits.valid, evaluator.predict(here, splits.valid))
    assert metrics == pytest.approx(right, rel=1e-4, nan_ok=True)


def test_the_other_device_refuses_what_a_gpu_refuses():
    """Prevents the test above from passing because its device takes everything."""
    with AnotherDevice():
        far = torch.arange(3.0, device=ELSEWHERE)
        with pytest.raises(RuntimeError, match=r"aten::add: tensors \[\(3,\)\] of the CPU"):
            far + torch.ones(3)
        with pytest.raises(RuntimeError, match="an index on another device"):
            torch.ones(3)[far.long()]
        with pytest.raises(RuntimeError, match="no double precision"):
            far.double()
        with pytest.raises((RuntimeError, TypeError)):
            far.numpy()
        assert (far + 1).cpu().tolist() == [1.0, 2.0, 3.0]
