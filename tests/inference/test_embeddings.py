"""Tables of embeddings are what the model scores with."""

import numpy as np
import pytest
import torch
from model_fixtures import TASKS, fit, synthetic_log, tiny_model

from polyrec import Recommender
from polyrec.inference.embeddings import item_embeddings, similar_items, user_embeddings
from polyrec.models.batches import as_batch


@pytest.fixture(scope="module")
def recommender():
    processor, _ = fit()
    processor.resume(synthetic_log()["interactions"])
    model = tiny_model(processor)
    model.heads["next_item"].bias.weight.data.normal_()
    return Recommender(model, processor)


def matrix(table):
    return np.stack(table["embedding"].to_numpy(zero_copy_only=False))


@torch.no_grad()
def test_dot_products_are_the_scores_of_the_network(recommender):
    """Prevents embeddings without the bias, of the wrong users, or of a layer that the scores do not read."""
    users = [7, 0, 31]
    scores = matrix(user_embeddings(recommender, users, batch_size=2)) @ matrix(item_embeddings(recommender)).T
    processor, model = recommender.processor, recommender.model
    rows = np.arange(2, processor.num_items)
    for user, found in zip(users, scores, strict=True):
        batch = as_batch([processor.request(None, rows, user_id=user)], model)
        states, ids, items = model(batch).states, batch.candidate_ids, recommender.items
        context = model.request_context(batch)
        parts = model.heads["next_item"].pair_parts(states, items.lookup(ids), ids, items, context)
        np.testing.assert_allclose(found, (parts["network"] + parts["bias"])[0].numpy(), rtol=1e-4, atol=1e-5)


def test_similar_items_are_the_nearest_by_cosine(recommender, monkeypatch):
    """Prevents an item from being its own neighbour, and blocks from mixing up items."""
    monkeypatch.setattr("polyrec.inference.embeddings._SCORES", 100)
    found = similar_items(recommender, k=3).to_pandas()
    vectors = recommender.items.vectors_MD.numpy()[2:]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    ids = np.array(recommender.processor.items.ids.to_pylist())
    for item, own in found.groupby("item_id"):
        expected = np.sort(cosine[np.flatnonzero(ids == item)[0]])[::-1][:3]
        np.testing.assert_allclose(own.similarity, expected, rtol=1e-4, atol=1e-5)
        assert item not in own.similar.tolist()
    assert len(found) == 3 * len(ids)
    assert similar_items(recommender, k=2, items=[5])["item_id"].to_pylist() == [5, 5]


def test_models_without_retrieval_have_no_such_embeddings():
    """Prevents a table of numbers that no score is made of."""
    processor, _ = fit(tasks=[task for task in TASKS if task["head"] != "retrieval"])
    with pytest.raises(ValueError, match="task 'like' scores pairs; retrieval tasks: none"):
        item_embeddings(Recommender(tiny_model(processor), processor))
