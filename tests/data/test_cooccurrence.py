"""Item vectors from co-occurrence, against counting pairs in a loop and a dense singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import arguments, fit, synthetic_log, tiny_config

from polyrec import PolyRecForRecommendation, PolyRecProcessor, PolyRecTrainer
from polyrec.data.cooccurrence import FIRST, cooccurrence_vectors


def pairs_by_loop(user, item, num_items, window):
    """How often two different known items lie within `window` known events of one person, [N, N]."""
    counts = np.zeros((num_items, num_items))
    for one in set(user.tolist()):
        events = [i for p, i in zip(user, item, strict=True) if p == one and i >= FIRST]
        for a in range(len(events)):
            for b in range(a + 1, min(a + window + 1, len(events))):
                if events[a] != events[b]:
                    counts[events[a], events[b]] += 1
                    counts[events[b], events[a]] += 1
    return counts


def information_by_loop(counts, smoothing):
    frequency = counts.sum(1)
    context = frequency**smoothing / (frequency**smoothing).sum()
    found = np.zeros_like(counts)
    for i, j in zip(*counts.nonzero(), strict=True):
        found[i, j] = max(0.0, np.log(counts[i, j] / (frequency[i] * context[j])))
    return found


@st.composite
def logs(draw):
    users = draw(st.integers(1, 6))
    user = np.sort(np.array(draw(st.lists(st.integers(0, users - 1), min_size=2, max_size=40))))
    return user, np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(0, 9, len(user))


@settings(max_examples=60, deadline=None)
@given(logs(), st.integers(1, 12), st.integers(1, 9), st.sampled_from([0.5, 0.75, 1.0]))
def test_vectors_are_those_of_a_dense_decomposition(log, size, window, smoothing):
    """Prevents pairs across people or beyond the window, a wrong normalisation, and vectors that belong to other items."""
    user, item = log
    found = cooccurrence_vectors(user, item, 10, size, window, smoothing)
    assert found.shape == (10, size)
    assert found.dtype == np.float32
    counts = pairs_by_loop(user, item, 10, window)
    met = counts.sum(1) > 0
    assert not found[~met].any()
    if not met.any():
        return
    left, strength, _ = np.linalg.svd(information_by_loop(counts, smoothing))
    rank = min(size, met.sum())
    # Vectors are known up to rotations among equal singular values, so that products are compared, if none is cut.
    if strength[rank - 1] - strength[rank] < 1e-3 * strength[0] and strength[rank] > 1e-9:
        return
    expected = left[:, :rank] * np.sqrt(strength[:rank])
    assert np.square(found[met][:, :rank]).mean() == pytest.approx(1, abs=1e-3)
    products, wanted = found.astype(float) @ found.T.astype(float), expected @ expected.T
    np.testing.assert_allclose(products / np.trace(products), wanted / np.trace(wanted), atol=1e-4)
    lengths = np.linalg.norm(found, axis=0)
    assert (np.diff(lengths) <= 1e-3 * lengths[0]).all()  # strongest directions first


def test_items_taken_together_are_near_each_other():
    """Prevents vectors that decompose something, but not what people take."""
    random = np.random.default_rng(0)
    group = np.repeat(random.integers(0, 2, 200), 6)
    item = FIRST + group * 5 + random.integers(0, 5, len(group))
    vectors = cooccurrence_vectors(np.repeat(np.arange(200), 6), item, 14, 2)
    unit = vectors[FIRST:12] / np.linalg.norm(vectors[FIRST:12], axis=1, keepdims=True)
    near = unit @ unit.T
    assert near[:5, :5].min() > near[:5, 5:].max() + 0.3
    assert not vectors[12:].any()  # nobody took them


def test_large_catalogs_are_decomposed_alike(monkeypatch):
    """Prevents the sparse path, which only large catalogs take, from giving other vectors than the dense one."""
    user = np.repeat(np.arange(300), 5)
    item = np.random.default_rng(0).zipf(1.3, len(user)) % 60 + FIRST
    dense = cooccurrence_vectors(user, item, 70, 8)
    monkeypatch.setattr("polyrec.data.cooccurrence.DENSE", 10)
    sparse, again = (cooccurrence_vectors(user, item, 70, 8) for _ in range(2))
    np.testing.assert_allclose(sparse, dense, atol=1e-3)
    assert np.array_equal(sparse, again)


@settings(max_examples=15, deadline=None)
@given(logs(), st.integers(1, 6))
def test_the_same_log_gives_the_same_vectors(log, size):
    """Prevents seeds from being compared on other starts, and a resumed run from starting elsewhere."""
    one, two = (cooccurrence_vectors(*log, num_items=10, size=size) for _ in range(2))
    assert np.array_equal(one, two)
    assert np.isfinite(one).all()


@pytest.mark.parametrize("item", [[], [2], [0, 1, 1, 0], [3, 3, 3], [2, 1, 0]])
def test_a_log_without_pairs_has_no_vectors(item):
    """Prevents an empty log, or one of unknown items, from failing or from giving vectors of noise."""
    item = np.array(item, dtype=np.int64)
    found = cooccurrence_vectors(np.zeros(len(item), dtype=np.int64), item, 5, 3)
    assert found.shape == (5, 3)
    assert not found.any()


@pytest.mark.parametrize("num_items", [4, 5])
def test_more_dimensions_than_items_are_zeros(num_items):
    """Prevents the smallest catalogs from failing in a sparse decomposition."""
    vectors = cooccurrence_vectors(np.zeros(2, dtype=np.int64), np.array([2, 3]), num_items, 16)
    assert vectors[2:4].any()
    assert not vectors[:, num_items:].any()


# ------------------------------------------------------------------ in a model
def model_of(processor, **options):
    """A tiny model that holds no catalog yet, as a trainer gets it."""
    torch.manual_seed(0)
    return PolyRecForRecommendation(tiny_config(processor, **options))


def trainer_of(processor, splits, model, folder, **options):
    return PolyRecTrainer(model, arguments(folder, max_steps=3, **options), splits.train, processing_class=processor)


def ids(model):
    return model.item_encoder.id_embedding.weight.detach().clone()


def expected_start(processor, share=0.3, size=8):
    return share * torch.from_numpy(processor.item_vectors(size))


def test_vectors_are_those_of_training_rows_and_the_past():
    """Prevents item vectors from knowing what people took in the test, and the past from being left out."""
    tables = synthetic_log(20)
    processor, splits = fit(tables, columns={"prior_history": {"watched": []}, "feedback": ["rating"]})
    past = {"user_id": [3, 5], "watched": [[23, 22], [1, 2, 3]]}
    splits = processor.split(tables["interactions"], prior_history=past)
    log = splits.train.log
    rows = np.sort(splits.train.candidates.event)
    events = [(p, -1, i + 2) for p, watched in ((3, [23, 22]), (5, [1, 2, 3])) for i in watched]
    events = [(log.user_ids.to_pylist().index(p), place, i) for p, place, i in events]
    events += [(int(log.user[r]), 0, int(log.item[r])) for r in rows]
    events.sort(key=lambda e: e[:2])
    user, _, item = (np.array(column) for column in zip(*events, strict=True))
    expected = cooccurrence_vectors(user, item, processor.num_items, 6)
    assert np.array_equal(processor.item_vectors(6), expected)
    assert expected[24:26].any()  # only the past knows them
    with_test = cooccurrence_vectors(log.user, log.item, processor.num_items, 6)
    assert not np.allclose(expected, with_test)


def test_the_trainer_places_items_where_they_co_occur(tmp_path):
    """Prevents the start from being lost on its way into the model, and items without one from starting at 0."""
    processor, splits = fit()
    model = model_of(processor, item_cooccurrence=0.3)
    before = ids(model)
    trainer_of(processor, splits, model, tmp_path)
    start = expected_start(processor)
    placed = start.any(dim=1)
    assert placed[2:].sum() > 10
    torch.testing.assert_close(ids(model)[placed], start[placed])
    torch.testing.assert_close(ids(model)[~placed], before[~placed])
    assert ids(model)[1].any()  # the unknown item
    assert ids(model)[placed].square().mean().sqrt() == pytest.approx(0.3)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_ids_stay_and_others_learn(frozen, tmp_path):
    """Prevents weight decay, or an optimizer that was given all parameters, from moving a table that should stay."""
    processor, splits = fit()
    model = model_of(processor, item_cooccurrence=0.3, freeze_item_ids=frozen)
    trainer = trainer_of(processor, splits, model, tmp_path, weight_decay=0.5, learning_rate=0.05)
    start, other = ids(model), {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer.train()
    assert torch.equal(ids(model), start) == frozen
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, other[n])]
    assert len(moved) > 10


def test_a_start_survives_files_and_is_not_placed_again(tmp_path):
    """Prevents training on from throwing away what the id vectors had learnt, and a loaded processor, which keeps no
    rows of people, from being of no use to a trainer.
    """
    processor, splits = fit()
    model = model_of(processor, item_cooccurrence=0.3)
    trainer = trainer_of(processor, splits, model, tmp_path, learning_rate=0.05)
    start = ids(model)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    learnt = ids(model)
    assert not torch.equal(learnt, start)
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path / "model")
    assert loaded.config.item_cooccurrence == 0.3
    assert torch.equal(ids(loaded), learnt)
    of_files = PolyRecProcessor.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="item embeddings are those of a split's training rows: call split"):
        of_files.item_vectors(8)
    for one in (processor, of_files):
        trainer_of(one, splits, loaded, tmp_path)
        assert torch.equal(ids(loaded), learnt)


def test_a_frozen_table_stays_frozen_in_files(tmp_path):
    """Prevents a loaded model from training what the one that was saved did not."""
    processor, splits = fit()
    model = model_of(processor, item_cooccurrence=0.3, freeze_item_ids=True)
    trainer_of(processor, splits, model, tmp_path).save_model(str(tmp_path / "model"))
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path / "model")
    assert not loaded.item_encoder.id_embedding.weight.requires_grad
    torch.testing.assert_close(ids(loaded), ids(model))


def test_without_the_option_ids_start_at_random(tmp_path):
    """Prevents co-occurrence from being counted, or placed, for models that did not ask for it."""
    processor, splits = fit()
    model = model_of(processor)
    before = ids(model)
    trainer_of(processor, splits, model, tmp_path)
    assert torch.equal(ids(model), before)
