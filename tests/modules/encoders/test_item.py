"""Item vectors, and the path of items that nobody has met."""

from __future__ import annotations

import pytest
import torch
from model_fixtures import fit, random_config, synthetic_log, tiny_model

from polyrec import FeatureConfig
from polyrec.modules.encoders.item import FIRST_ITEM, PADDING_ITEM, UNKNOWN_ITEM, ItemEncoder, ItemRows
from polyrec.modules.encoders.request_context import LATEST, RequestContext

ITEMS = 10
FEATURES = [FeatureConfig("genre", "item", "categorical", size=5), FeatureConfig("price", "item", "numeric")]


def encoder_of(features=FEATURES, **overrides):
    """An encoder of 10 items, of which number 5 and the last one were never met in training."""
    torch.manual_seed(0)
    encoder = ItemEncoder(random_config(num_items=ITEMS, features=features, **overrides)).eval()
    for module in encoder.modules():
        if hasattr(module, "reset_edges"):
            with torch.no_grad():
                module.reset_edges()
    counts = torch.arange(ITEMS).float()
    counts[[0, 1, 5, ITEMS - 1]] = 0
    attributes = {"genre": torch.arange(ITEMS) % 5, "price": torch.linspace(-1, 1, ITEMS)}
    attributes["genre"][:FIRST_ITEM] = 0
    encoder.load_catalog({f.name: attributes[f.name] for f in features}, counts)
    return encoder


def vectors(encoder):
    return encoder.encode(torch.arange(ITEMS))


def test_padding_item_is_zero_whatever_its_attributes():
    """Prevents padded events from adding anything, and the padding row from being trained."""
    encoder = encoder_of()
    found = vectors(encoder)
    assert found[PADDING_ITEM].count_nonzero() == 0
    found[PADDING_ITEM].sum().backward()
    assert all(p.grad is None or p.grad.count_nonzero() == 0 for p in encoder.parameters())


def test_item_without_training_events_does_not_depend_on_its_own_row():
    """Prevents a new item from being described by an id vector that was never trained, i.e. by noise."""
    encoder = encoder_of()
    before = vectors(encoder)
    with torch.no_grad():
        encoder.id_embedding.weight[5].normal_()
        encoder.id_embedding.weight[7].normal_()
    after = vectors(encoder)
    assert torch.equal(before[5], after[5])
    assert not torch.equal(before[7], after[7])
    with torch.no_grad():
        encoder.id_embedding.weight[UNKNOWN_ITEM].normal_()
    assert not torch.equal(vectors(encoder)[5], after[5])
    assert torch.equal(vectors(encoder)[7], after[7])


def test_new_items_are_told_apart_by_their_attributes():
    """Prevents all new items from having one and the same vector."""
    encoder = encoder_of()
    found = vectors(encoder)
    assert not torch.allclose(found[5], found[ITEMS - 1])
    attributes = {"genre": torch.full((ITEMS,), 2), "price": torch.zeros(ITEMS)}
    encoder.load_catalog(attributes, encoder.counts.clone())
    found = vectors(encoder)
    torch.testing.assert_close(found[5], found[ITEMS - 1])
    assert not torch.allclose(found[5], found[7])


def test_without_attributes_a_new_item_is_the_unknown_item():
    """Prevents ids-only models from failing on items without training events."""
    encoder = encoder_of(features=[])
    assert torch.equal(vectors(encoder)[5], vectors(encoder)[UNKNOWN_ITEM])


def test_id_dropout_replaces_ids_in_training_only():
    """Prevents the unknown-item vector from staying untrained, and dropout from acting in evaluation."""
    encoder = encoder_of(features=[], item_id_dropout=0.5)
    assert torch.equal(vectors(encoder), vectors(encoder))
    encoder.train()
    rows = torch.full((2000,), 7)
    found = encoder.encode(rows)
    dropped = (found == encoder.id_embedding.weight[UNKNOWN_ITEM]).all(-1).float().mean()
    assert 0.45 < dropped < 0.55
    assert encoder.encode(torch.zeros(50, dtype=torch.int64)).count_nonzero() == 0


def test_only_mentioned_items_are_encoded_in_a_large_catalog(monkeypatch):
    """Prevents the path for large catalogs from giving other vectors than the one for small ones."""
    encoder = encoder_of()
    whole = encoder.rows(torch.tensor([3]))
    assert whole.rows_M is None
    monkeypatch.setattr("polyrec.modules.encoders.item.WHOLE_TABLE", ITEMS - 1)
    ids = torch.tensor([[3, 0, 7], [7, 1, 9]])
    part = encoder.rows(ids, torch.tensor([5]))
    assert part.rows_M.tolist() == [0, 1, 3, 5, 7, 9]
    torch.testing.assert_close(part.lookup(ids), whole.lookup(ids))


def test_lookup_gradient_equals_indexing():
    """Prevents repeated items from losing gradient."""
    table = torch.randn(4, 3, requires_grad=True)
    ids = torch.tensor([1, 1, 3])
    (found,) = torch.autograd.grad(ItemRows(table).lookup(ids).square().sum(), table)
    (expected,) = torch.autograd.grad(table[ids].square().sum(), table)
    torch.testing.assert_close(found, expected)


def test_catalog_of_another_length_is_refused():
    """Prevents attributes from being shifted against the items."""
    encoder = encoder_of()
    with pytest.raises(ValueError, match="'genre' has 9 rows but the model has num_items=10"):
        encoder.load_catalog({"genre": torch.zeros(9), "price": torch.zeros(10)}, torch.zeros(10))
    with pytest.raises(ValueError, match="'training counts' has 3 rows"):
        encoder.load_catalog({"genre": torch.zeros(10), "price": torch.zeros(10)}, torch.zeros(3))


def test_items_that_enter_the_catalog_after_training_are_scored_by_their_attributes():
    """Prevents a grown catalog from needing a new training: weights and processor of the old one go on.

    The model is built for a catalog whose last two items never occur in the log (see `synthetic_log`).
    """
    processor, _ = fit(synthetic_log(users=20))
    model = tiny_model(processor)
    new = processor.num_items - 1
    assert processor.item_counts[new] == 0
    assert not model.item_encoder.known[new]
    state = torch.randn(1, 8)
    nobody = RequestContext(latest={"next_item": torch.zeros(1, LATEST, dtype=torch.int64)})
    before = model.score_items(state, "next_item", context=nobody)[0, new]
    with torch.no_grad():
        model.item_encoder.id_embedding.weight[new].add_(100)
    assert model.score_items(state, "next_item", context=nobody)[0, new] == before
    model.item_encoder.catalog.genre[new] = 2 + (model.item_encoder.catalog.genre[new] - 1) % 3
    assert model.score_items(state, "next_item", context=nobody)[0, new] != before


@torch.no_grad()
def test_a_kept_table_is_that_of_the_weights():
    """Prevents answers from vectors of weights that are gone: written through `.data`, loaded, grown or trained."""
    processor, _ = fit()
    model = tiny_model(processor)
    encoder = model.item_encoder
    first = encoder.table()
    assert encoder.table() is first
    with model.eval_mode() as view:
        assert view.item_encoder.table() is first  # requests, which each read a view of their own, share it

    def swap_rows():
        weight = encoder.id_embedding.weight.data
        weight[[3, 4]] = weight[[4, 3]]

    changes = {
        "through .data": lambda: encoder.id_embedding.weight.data[3].add_(1e-3),
        "rows exchanged": swap_rows,
        "attributes": lambda: encoder.catalog.price.add_(1.0),
        "which ids are known": lambda: encoder.known.fill_(False),
        "loaded": lambda: model.load_state_dict(tiny_model(processor, seed=5).state_dict()),
        "type": lambda: model.double(),
    }
    for name, change in changes.items():
        before = encoder.table()
        change()
        found = encoder.table()
        assert found is not before, name
        assert torch.equal(found.vectors_MD, encoder.encode(torch.arange(encoder.num_items))), name
    with torch.enable_grad():
        assert encoder.table().vectors_MD.requires_grad  # one that learns is made anew
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.table() is not found
    model.train()
    assert not encoder._kept
