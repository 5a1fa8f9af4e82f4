"""Id vectors of low rank: a product of two matrices that behaves as a table does."""

import numpy as np
import pytest
import torch
from model_fixtures import arguments, fit, model_inputs, synthetic_log, tiny_config, tiny_model

from polyrec import PolyRecForRecommendation, PolyRecTrainer
from polyrec.data.collator import PolyRecCollator
from polyrec.modules.encoders.item import UNKNOWN_ITEM
from polyrec.modules.encoders.item_table import ItemTable, LowRankItemTable


def table(num_items=30, width=12, rank=4, seed=0):
    torch.manual_seed(seed)
    made = LowRankItemTable(num_items, width, rank, std=0.1, padding_idx=0)
    made.initialise()
    return made


def test_placed_vectors_are_met_as_an_svd_meets_them():
    """Prevents a start that is worse than the best of its rank: compared with numpy's truncated SVD."""
    random = np.random.default_rng(0)
    wanted = random.normal(size=(30, 12)).astype(np.float32)
    wanted[0] = 0
    made = table()
    made.set_rows(torch.ones(30, dtype=torch.bool), torch.from_numpy(wanted))
    left, values, right = np.linalg.svd(wanted.astype(np.float64), full_matrices=False)
    best = (left[:, :4] * values[:4]) @ right[:4]
    np.testing.assert_allclose(made.whole().detach().numpy(), best, atol=1e-5)
    assert not made(torch.tensor(0)).any()


def test_full_rank_is_exact_for_placed_rows_and_the_others():
    """Prevents the rows that are not placed from moving when the shared matrix is replaced."""
    made = table(rank=12)
    before = made.whole().detach().clone()
    rows = torch.arange(30) % 3 == 2
    wanted = torch.randn(30, 12)
    made.set_rows(rows, wanted)
    torch.testing.assert_close(made.whole()[rows], wanted[rows], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.whole()[~rows], before[~rows], atol=1e-5, rtol=1e-4)


def test_vectors_start_as_large_as_those_of_a_whole_table():
    """Prevents a product of two small matrices, whose vectors hardly differ from 0."""
    made = table(num_items=2000, width=32, rank=8)
    assert made(torch.arange(1, 2000)).std().item() == pytest.approx(0.1, rel=0.05)


def test_a_whole_table_answers_as_before():
    """Prevents models from before low ranks from changing: same keys, same random draws."""
    torch.manual_seed(3)
    plain = torch.nn.Embedding(5, 4, padding_idx=0)
    torch.manual_seed(3)
    made = ItemTable(5, 4, padding_idx=0)
    assert list(made.state_dict()) == ["weight"]
    assert torch.equal(made.weight, plain.weight)


def batch_of(parts):
    return PolyRecCollator()([parts.train[i] for i in range(6)])


@pytest.mark.parametrize("options", [{}, {"item_id_dropout": 0.5, "experts": "mmoe"}])
def test_it_trains_saves_and_loads(options, tmp_path):
    """Prevents a matrix without gradient, or one that a saved model does not bring back."""
    processor, parts = fit(synthetic_log(users=24))
    model = tiny_model(processor, item_embedding_rank=3, **options).train()
    model(**model_inputs(batch_of(parts))).loss.backward()
    ids = model.item_encoder.id_embedding
    assert ids.up.weight.grad.abs().sum() > 0
    assert ids.weight.grad.abs().sum() > 0
    PolyRecTrainer(model, arguments(tmp_path), parts.train, parts.valid, processing_class=processor).train()
    model.eval().save_pretrained(tmp_path / "m")
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path / "m").eval()
    with torch.no_grad():
        one, other = (m.item_encoder.table().vectors_MD for m in (model, loaded))
    assert torch.equal(one, other)
    count = model.num_parameters() - tiny_model(processor, **options).num_parameters()
    rows, width = processor.num_items, 8
    assert count == rows * 3 + 3 * width - rows * width


def test_frozen_ids_stay_frozen(tmp_path):
    """Prevents the shared matrix from training where the vectors are to stay."""
    processor, _ = fit(synthetic_log(users=24))
    model = tiny_model(processor, item_embedding_rank=3, freeze_item_ids=True)
    model.save_pretrained(tmp_path)
    for found in (model, PolyRecForRecommendation.from_pretrained(tmp_path)):
        assert not any(p.requires_grad for p in found.item_encoder.id_embedding.parameters())


def test_it_grows_and_old_answers_stay():
    """Prevents new items from moving old ones, and from starting elsewhere than at the unknown item."""
    log = synthetic_log(users=24)
    processor, parts = fit(log)
    model, batch = tiny_model(processor, item_embedding_rank=3), model_inputs(batch_of(parts))
    with torch.no_grad():
        before = model(**batch).logits
        processor.extend(
            {name: list(values[:2]) if name != "item_id" else [100, 101] for name, values in log["items"].items()}
        )
        model.extend(processor)
        after = model(**batch).logits
        ids = model.item_encoder.id_embedding
        assert torch.equal(ids(torch.tensor(processor.num_items - 1)), ids(torch.tensor(UNKNOWN_ITEM)))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_cooccurrence_start_is_met():
    """Prevents id vectors that are placed by co-occurrence from being lost in a table of full rank."""
    processor, _ = fit(synthetic_log(users=24))
    starts = []
    for rank in (None, 8):
        model = PolyRecForRecommendation(tiny_config(processor, item_cooccurrence=0.5, item_embedding_rank=rank))
        PolyRecTrainer.load_processor(model, processor)
        starts.append(model.item_encoder.id_embedding.whole()[model.item_encoder.known])
    torch.testing.assert_close(starts[1], starts[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "options", [{"item_embedding_rank": 0}, {"item_embedding_rank": 9}, {"item_embedding_rank": 2, "item_ids": False}]
)
def test_ranks_that_make_no_sense_are_refused(options):
    """Prevents a rank that is larger than the width, or of vectors that there are not."""
    processor, _ = fit(synthetic_log(users=24))
    with pytest.raises(ValueError, match="item_embedding_rank is"):
        tiny_config(processor, **options)
