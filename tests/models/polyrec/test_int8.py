"""Weights as int8."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import arguments, fit, model_inputs, synthetic_log, tiny_model
from safetensors.torch import load_file
from torch import nn

from polyrec import PolyRecForRecommendation, PolyRecTrainer
from polyrec.data.collator import PolyRecCollator
from polyrec.models.polyrec.int8 import Int8BatchedLinear, Int8Embedding, Int8Linear, convert, to_int8
from polyrec.modules.experts._batched import BatchedLinear

VARIANTS = {
    "shared": {},
    "experts": {"experts": "mmoe", "task_item_embeddings": True, "hidden_size": 16},
    "low rank": {"item_embedding_rank": 8, "hidden_size": 16},
    "very low rank": {"item_embedding_rank": 3},
    "no history layers": {"num_hidden_layers": 0, "candidate_attention_heads": 0},
}


@pytest.fixture(scope="module")
def world():
    processor, parts = fit(synthetic_log(users=24))
    batch = model_inputs(PolyRecCollator()([parts.train[i] for i in range(8)]))
    del batch["labels"]
    return processor, parts, batch


@given(seed=st.integers(0, 1000), scale=st.floats(1e-6, 1e6))
@settings(max_examples=30, deadline=None)
def test_numbers_are_within_half_a_step(seed, scale):
    """Prevents a scale of the wrong axis, truncation in place of rounding, and an overflow at the largest number."""
    rows = np.random.default_rng(seed).normal(size=(5, 9)) * scale * np.logspace(-3, 0, 5)[:, None]
    numbers, scales = to_int8(torch.from_numpy(rows))
    step = np.abs(rows).max(1) / 127
    np.testing.assert_allclose(scales.numpy(), step, rtol=1e-5)
    assert (np.abs(numbers.numpy() * step[:, None] - rows) <= 0.501 * step[:, None]).all()


def test_modules_compute_with_what_their_numbers_stand_for():
    """Prevents a scale that is applied to inputs instead of outputs, or to the wrong map of several."""
    torch.manual_seed(0)
    linear, table, several = nn.Linear(12, 5), nn.Embedding(7, 12, padding_idx=0), BatchedLinear(3, 12, 5)
    nn.init.normal_(several.weight)
    nn.init.normal_(several.bias)
    x, ids = torch.randn(4, 12), torch.tensor([[1, 0], [6, 3]])
    one, two, three = Int8Linear.of(linear), Int8Embedding.of(table), Int8BatchedLinear.of(several)
    torch.testing.assert_close(one(x), x @ one.weight.T + linear.bias)
    torch.testing.assert_close(two(ids), two.weight[ids])
    assert not two(torch.tensor(0)).any()
    for i in range(3):
        expected = x @ three.weight[i].T + several.bias[i]
        torch.testing.assert_close(three(x)[i], expected)
        torch.testing.assert_close(three(torch.stack([x, x, x]))[i], expected)
        torch.testing.assert_close(three.weight[i].T, several.weight[i], atol=0.02, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_answers_stay_near_and_come_back(name, world, tmp_path):
    """Prevents a part that reads numbers as if they were weights, and a file that loads as something else."""
    processor, _, batch = world
    model = tiny_model(processor, **VARIANTS[name])
    with torch.no_grad():
        before = model(**batch).logits
        model.save_pretrained(tmp_path / "a")
        model.quantize()
        after = model(**batch).logits
        model.save_pretrained(tmp_path / "b")
        loaded, info = PolyRecForRecommendation.from_pretrained(tmp_path / "b", output_loading_info=True)
        again = loaded(**batch).logits
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for task, logits in before.items():
        assert (after[task] - logits).abs().max() < 0.1 * logits.std(), task
        assert not torch.equal(after[task], logits), task
        torch.testing.assert_close(again[task], after[task], rtol=1e-5, atol=1e-6)
    state = load_file(tmp_path / "b" / "model.safetensors")
    assert sum(t.dtype == torch.int8 for t in state.values()) > 3
    assert loaded.recommend(processor, history=[3, 4], k=3)


def test_files_are_a_quarter(world, tmp_path):
    """Prevents numbers of 8 bits from being saved with 32."""
    processor, _, _ = world
    model = tiny_model(processor, hidden_size=128)
    model.save_pretrained(tmp_path / "a")
    model.quantize()
    model.save_pretrained(tmp_path / "b")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in "ab"]
    assert sizes[1] < 0.32 * sizes[0]


def test_what_cannot_be_done_is_said(world, tmp_path):
    """Prevents training, growing and quantizing a model that would silently not follow."""
    processor, parts, _ = world
    model = tiny_model(processor)
    model.quantize()
    for call in (model.quantize, lambda: model.extend(processor), lambda: model.add_task_adapter("like", 2)):
        with pytest.raises(ValueError, match="weights are int8"):
            call()
    with pytest.raises(ValueError, match="take no training"):
        PolyRecTrainer(model, arguments(tmp_path), parts.train, parts.valid, processing_class=processor)


def test_short_rows_stay():
    """Prevents a scale of 32 bits beside a row of one number."""
    module = nn.ModuleDict({"bias": nn.Embedding(9, 1), "small": nn.Linear(7, 9), "large": nn.Linear(8, 1)})
    convert(module)
    assert [type(m) for m in module.values()] == [nn.Embedding, nn.Linear, Int8Linear]
