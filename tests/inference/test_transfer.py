"""A model of one catalog over the items of another."""

import pytest
import torch
from model_fixtures import arguments, tiny_model
from text_fixtures import tiny_bert

from polyrec import PolyRecProcessor, PolyRecTrainer
from polyrec.inference.transfer import for_catalog

TASKS = [{"name": "next_item", "head": "retrieval"}]


def processor_of(titles, feedback=()):
    users = [p for p in range(8) for _ in range(6)]
    log = {
        "user_id": users,
        "item_id": [(3 * p + n) % len(titles) for n, p in enumerate(users)],
        "timestamp": list(range(len(users))),
        "stars": [1 + n % 5 for n in range(len(users))],
    }
    items = {"item_id": list(range(len(titles))), "title": titles}
    processor = PolyRecProcessor.fit(
        log,
        items,
        tasks=TASKS,
        columns={"feedback": list(feedback), "item_features": {"title": "text"}},
        statistics=False,
        text={"model": str(tiny_bert()), "template": "{title}"},
    )
    return processor, processor.split(log, by="leave_one_out")


FILMS = [f"title {n} action" for n in range(12)]
BOOKS = [f"title {n} drama" for n in range(20, 37)]


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_weights_stay_and_items_are_the_others(tuning, tmp_path):
    """Prevents a transferred model from answering with the old catalog, or with fresh weights."""
    films, data = processor_of(FILMS)
    model = tiny_model(films, text={"tuning": tuning}, item_ids=False)
    PolyRecTrainer(model, arguments(tmp_path, max_steps=2), data.train, data.valid, processing_class=films).train()
    books, _ = processor_of(BOOKS)
    other = for_catalog(model, books)
    assert other.config.num_items == books.num_items
    names = {"known", "counts", "vectors", "items", "values"}
    for name, value in model.state_dict().items():
        if name.rpartition(".")[2] not in names:
            assert torch.equal(value, other.state_dict()[name]), name
    found = other.recommend(books, [1, 2], k=5)
    assert [row["title"] in BOOKS for row in found] == [True] * 5
    again = for_catalog(other, films).recommend(films, [1, 2], k=5)
    assert [row["item"] for row in again] == [row["item"] for row in model.eval().recommend(films, [1, 2], k=5)]


def test_what_cannot_be_carried_over_is_refused():
    """Prevents id vectors of one catalog from speaking for items of another."""
    films, _ = processor_of(FILMS)
    books, _ = processor_of(BOOKS, feedback=["stars"])
    with pytest.raises(ValueError, match="item_ids=False"):
        for_catalog(tiny_model(films, text={}), books)
    with pytest.raises(ValueError, match=r"differ in features \[\('event', 'stars'\)\]"):
        for_catalog(tiny_model(films, text={}, item_ids=False), books)
