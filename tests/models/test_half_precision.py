"""Models of half precision answer like those of single precision, and what must be counted exactly stays exact."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from model_fixtures import TASKS, arguments, fit, random_config, tiny_model
from text_fixtures import tiny_bert

from polyrec import PolyRecCollator, PolyRecForRecommendation, PolyRecTrainer
from polyrec.core.registry import WEIGHTINGS
from polyrec.evaluation import evaluator
from polyrec.modules.heads._sampling import draw, draw_by_sums

NEW = {"item_id": [100, 101], "title": ["title 1", "title 2"], "genre": ["action", "drama"], "price": [0.5, 0.1]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model with texts, running statistics and every kind of number as input; its processor, parts and folder."""
    tasks = copy.deepcopy(TASKS)
    tasks[0]["options"] = {"item_age": "first_event", "repeats": True}
    processor, splits = fit(tasks=tasks, text={"model": str(tiny_bert()), "template": "{title} {genre}"})
    model = tiny_model(processor, text={}, weighting="uncertainty", task_item_embeddings=True)
    model.load_texts(processor)
    model.load_times(processor)
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return processor, splits, model, folder


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16])
def half(request, saved):
    return PolyRecForRecommendation.from_pretrained(saved[-1], dtype=request.param)


def test_everything_that_answers_answers_alike(half, saved):
    """Prevents numbers of single precision from meeting weights of half precision, which torch refuses."""
    processor, splits, model, _ = saved
    expected, found = (m.recommend(processor, [3, 4, 5], k=24, user={"age": 30.0}) for m in (model, half))
    liked = {row["item"]: row["like"] for row in expected}
    assert max(abs(row["like"] - liked[row["item"]]) for row in found) < 0.02
    one, other = (evaluator.predict(m, splits.valid) for m in (model, half))
    np.testing.assert_allclose(other.values["like"], one.values["like"], atol=0.02)
    assert other.values["like"].dtype == np.float32
    assert half.explain(processor, [3, 4], k=1)


def test_it_trains_grows_shrinks_and_is_saved(half, saved, tmp_path):
    """Prevents half precision from ending at the first thing that is done with a model beside answering."""
    processor, splits, _, _ = saved
    model = copy.deepcopy(half).train()
    model.load_texts(processor)
    batch = PolyRecCollator()([splits.train[n] for n in range(4)])
    loss = model(**{name: values for name, values in batch.items() if name != "candidate_rows"}).loss
    loss.backward()
    assert torch.isfinite(loss)
    model.eval()
    model.save_pretrained(tmp_path / "half")
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path / "half")
    assert loaded.recommend(processor, [3], k=3) == model.recommend(processor, [3], k=3)
    larger = copy.deepcopy(processor)
    larger.extend({**NEW, "tags": [["action"], []]})
    model.extend(larger)
    assert {100, 101} <= {row["item"] for row in model.recommend(larger, [3], k=30)}
    model = copy.deepcopy(half)
    model.quantize()
    before = {row["item"]: row["like"] for row in half.recommend(processor, [3], k=24)}
    after = model.recommend(processor, [3], k=24)
    assert max(abs(row["like"] - before[row["item"]]) for row in after) < 0.05


def exact_state(model):
    """What is counted, measured or learnt of losses: no weight of a layer."""
    names = ("counts", "edges", "calibration", "catalog.price", "scale", "log_variance")
    return {n: t for n, t in model.state_dict().items() if n.endswith(names) and "skip" not in n}


@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.float16)])
def test_counts_and_scales_are_not_rounded(cast, saved, half):
    """Prevents an item taken 1,001 times from counting 1,000, and 70,000 from being infinitely many."""
    model = copy.deepcopy(saved[2])
    model.item_encoder.counts += torch.arange(len(model.item_encoder.counts)) * 70_001
    before = {name: value.clone() for name, value in exact_state(model).items()}
    for name, value in exact_state(cast(model)).items():
        assert value.dtype == torch.float32
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num()), name
    assert {value.dtype for value in exact_state(half).values()} == {torch.float32}
    assert half.heads["like"].output.weight.dtype != torch.float32


@pytest.mark.parametrize("kind", ["dwa", "gradnorm", "famo", "geometric", "uncertainty"])
def test_a_weighting_learns_in_half_precision_what_it_learns_in_single(kind):
    """Prevents sums of losses that stop growing at 256, and weights whose steps round to none."""
    options = {"weighting": kind, "weighting_options": {"period": 280} if kind == "dwa" else {}}
    model = PolyRecForRecommendation(random_config(**options))
    single = copy.deepcopy(model.weighting)
    half = model.bfloat16().weighting
    for step in range(290):
        losses = {name: 1.0 + 0.5 * n + 0.001 * step * n for n, name in enumerate(single.task_names)}
        for weighting in (single, half):
            weighting.observe(losses, torch.eye(3) * torch.tensor([1.0, 4.0, 9.0]))
    assert single.state_dict().keys() == half.state_dict().keys()
    for name, value in single.state_dict().items():
        assert torch.equal(value, half.state_dict()[name]), name
    assert WEIGHTINGS.get(kind) is type(half)


def test_items_of_a_catalog_beyond_the_limit_of_multinomial_are_drawn_in_proportion(monkeypatch):
    """Prevents training on more than 2^24 items from ending in an error, and impossible items from being drawn."""
    weight = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0])
    assert draw_by_sums(weight, torch.tensor([0.0, 0.249, 0.251, 1.0])).tolist() == [1, 1, 3, 3]
    with pytest.raises(RuntimeError):
        torch.multinomial(torch.ones(1).expand((1 << 24) + 1), 1)
    monkeypatch.setattr("polyrec.modules.heads._sampling._MULTINOMIAL", 4)
    torch.manual_seed(0)
    shares = torch.bincount(draw(weight, 20_000), minlength=5) / 20_000
    torch.testing.assert_close(shares, weight / 4, atol=0.02, rtol=0)


@pytest.mark.parametrize("options", [{"bf16": True}, {"activation_checkpointing": True}], ids=["bf16", "checkpointing"])
def test_mixed_precision_and_checkpointing_train_alike(options, tmp_path):
    """Prevents a Trainer's usual switches from failing on nested batches, or from changing what is learnt."""
    processor, splits = fit()
    losses, metrics = [], []
    for own in ({}, options):
        settings = {"max_steps": 3, "logging_steps": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-3}
        trainer = PolyRecTrainer(
            tiny_model(processor),
            arguments(tmp_path, **settings, **own),
            splits.train,
            splits.valid,
            processing_class=processor,
        )
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
        metrics.append(trainer.evaluate()["eval_rating_rmse"])
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
    assert metrics[1] == pytest.approx(metrics[0], rel=5e-3)
    assert losses[1] != losses[0] or "bf16" not in options  # it did something


def test_types_are_asked_for_by_both_names(saved):
    """Prevents `torch_dtype`, the older name, from being ignored."""
    loaded = PolyRecForRecommendation.from_pretrained(saved[-1], torch_dtype=torch.bfloat16)
    assert loaded.dtype == loaded.heads["like"].output.weight.dtype == torch.bfloat16
