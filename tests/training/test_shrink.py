"""A student that starts where its teacher stands."""

import numpy as np
import pytest
import torch
from model_fixtures import clone, fit, model_inputs, synthetic_log, tiny_model

from polyrec import PolyRecForRecommendation
from polyrec.data.collator import PolyRecCollator
from polyrec.training.shrink import factorise_items, start_from_teacher


@pytest.fixture(scope="module")
def world():
    processor, parts = fit(synthetic_log(users=24))
    batch = model_inputs(PolyRecCollator()([parts.train[i] for i in range(8)]))
    del batch["labels"]
    return processor, batch


def start(world, student, teacher):
    return start_from_teacher(student, world[0], teacher, world[0])


@pytest.mark.parametrize(
    "options",
    [{}, {"experts": "mmoe", "num_hidden_layers": 3}, {"item_embedding_rank": 4, "task_item_embeddings": True}],
)
def test_all_layers_answer_as_the_teacher(options, world):
    """Prevents a part that is left at random: student and teacher of one shape give the same answers."""
    teacher, student = tiny_model(world[0], 1, **options), tiny_model(world[0], 2, **options)
    found = start(world, student, teacher)
    assert not found.fresh
    assert found.parameters == student.num_parameters()
    with torch.no_grad():
        one, other = student(**world[1]).logits, teacher(**world[1]).logits
    for task in one:
        torch.testing.assert_close(one[task], other[task], rtol=1e-4, atol=1e-5)


def test_a_full_rank_table_answers_as_the_whole_one(world):
    """Prevents factors that give other vectors than those they are made of."""
    teacher, student = tiny_model(world[0], 1), tiny_model(world[0], 2, item_embedding_rank=8)
    found = start(world, student, teacher)
    assert found.items_kept == pytest.approx(1)
    with torch.no_grad():
        one, other = student(**world[1]).logits, teacher(**world[1]).logits
    for task in one:
        torch.testing.assert_close(one[task], other[task], rtol=1e-3, atol=1e-4)


def test_every_other_layer(world):
    """Prevents the wrong layers, or layers in another order, from being taken."""
    teacher, student = (tiny_model(world[0], s, num_hidden_layers=n) for s, n in ((1, 4), (2, 2)))
    assert start(world, student, teacher).layers == [0, 2]
    own, theirs = (m.model.history_encoder.backbone.layers for m in (student, teacher))
    for mine, his in ((0, 0), (1, 2)):
        torch.testing.assert_close(own[mine].state_dict(), theirs[his].state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="has as many or fewer"):
        start(world, teacher, student)


@pytest.mark.parametrize("width", [6, 16])
def test_another_width_keeps_inner_products(width, world):
    """Prevents a narrower table that keeps less of the items' inner products than numpy's truncated SVD does."""
    teacher = tiny_model(world[0], 1)
    student = tiny_model(world[0], 2, hidden_size=width, num_attention_heads=1)
    before = clone(student.heads.state_dict())
    found = start(world, student, teacher)
    wanted = teacher.item_encoder.id_embedding.weight.detach().numpy().astype(np.float64)
    left, values, right = np.linalg.svd(wanted, full_matrices=False)
    values[width:] = 0
    best = (left * values) @ right
    own = student.item_encoder.id_embedding.weight.detach().numpy()
    np.testing.assert_allclose(own @ own.T, best @ best.T, atol=1e-4)
    assert found.items_kept == pytest.approx((values**2).sum() / (wanted**2).sum(), abs=1e-5)
    assert found.copied == ["model.item_encoder.id_embedding.weight"]
    torch.testing.assert_close(student.heads.state_dict(), before, rtol=0, atol=0, equal_nan=True)


def test_what_does_not_fit_is_left_or_refused(world):
    """Prevents matrices that are cut into other attention heads, and rows of other items, from being taken."""
    processor, _ = world
    teacher = tiny_model(processor, 1)
    found = start(world, tiny_model(processor, 2, num_attention_heads=1), teacher)
    assert any("history_encoder.backbone" in name for name in found.fresh)
    assert all("history_encoder.backbone" not in name for name in found.copied)
    other, _ = fit(synthetic_log(users=24, items=20))
    with pytest.raises(ValueError, match="same catalog"):
        start_from_teacher(tiny_model(other), other, teacher, processor)
    teacher.quantize()
    with pytest.raises(ValueError, match="weights are int8"):
        start(world, tiny_model(processor), teacher)


@pytest.mark.parametrize("rank", [1, 3])
def test_items_of_a_lower_rank_are_the_nearest(world, rank, tmp_path):
    """Prevents factors that are not the best of their rank, and a folder that comes back with a table at random."""
    model = tiny_model(world[0], 1)
    whole = model.item_encoder.id_embedding.weight.detach().clone()
    kept = factorise_items(model, rank)
    left, values, right = np.linalg.svd(whole.double().numpy(), full_matrices=False)
    expected = left[:, :rank] * values[:rank] @ right[:rank]
    np.testing.assert_allclose(model.item_encoder.id_embedding.whole().detach(), expected, atol=1e-5)
    assert kept == pytest.approx((values[:rank] ** 2).sum() / (values**2).sum(), rel=1e-5)
    assert model.item_encoder.id_embedding.weight.shape == (world[0].num_items, rank)
    model.save_pretrained(tmp_path)
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path)
    with torch.no_grad():
        one, other = loaded.eval()(**world[1]).logits, model(**world[1]).logits
    assert all(torch.equal(one[task].nan_to_num(), other[task].nan_to_num()) for task in one)


def test_ranks_that_save_nothing_are_refused(world):
    """Prevents a table that grows, or is replaced by nothing, without a word."""
    model = tiny_model(world[0], 1)
    for rank in (0, 9):
        with pytest.raises(ValueError, match="a rank of 1 to 8"):
            factorise_items(model, rank)
    factorise_items(model, 4)
    with pytest.raises(ValueError, match="a rank of 1 to 3"):
        factorise_items(model, 4)
    factorise_items(model, 2)
    with pytest.raises(ValueError, match="has no id embeddings"):
        factorise_items(tiny_model(world[0], 1, item_ids=False), 2)
    model.quantize()
    with pytest.raises(ValueError, match="take no other factors"):
        factorise_items(model, 1)
