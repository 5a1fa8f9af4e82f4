"""The batch contract as one object."""

import pytest
import torch
from model_fixtures import fit, synthetic_log, tiny_model

from polyrec.data.batch import Batch
from polyrec.data.collator import PolyRecCollator


@pytest.fixture(scope="module")
def world():
    processor, parts = fit(synthetic_log(users=8))
    return tiny_model(processor), PolyRecCollator()([parts.train[i] for i in range(4)])


def test_a_batch_and_its_fields_as_keywords_are_one(world):
    """Prevents a field from being lost between the collator, the object and the keywords that the Trainer passes."""
    model, collated = world
    batch = Batch.of(collated)
    assert set(collated) <= set(batch)
    torch.testing.assert_close({n: batch[n] for n in collated}, collated, equal_nan=True)
    loss = model(**collated).loss
    for same in (batch, Batch(**batch), batch.to("cpu")):
        assert torch.equal(model(same).loss, loss)
        assert torch.equal(model(**same).loss, loss)
    assert model(Batch.inputs(collated)).loss is None


def test_wrong_batches_are_refused(world):
    """Prevents a misspelt field from being dropped without a word, and an error deep inside for one that is missing."""
    model, collated = world
    with pytest.raises(TypeError, match="a batch has no 'lables'.*did you mean 'labels'"):
        model(**collated, lables={})
    with pytest.raises(ValueError, match="pass candidate_ids and candidate_positions"):
        model(item_ids=collated["item_ids"])
