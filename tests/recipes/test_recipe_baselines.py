"""Baselines of the recipes: strictly before, of the right items, and asked the same questions as the model."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import recipe_baselines

from polyrec import PolyRecProcessor
from polyrec.core.registry import HEADS
from polyrec.evaluation.metrics import log_loss
from polyrec.runs.recipe import Recipe

LOG = {
    "user_id": [1, 1, 1, 2, 2, 1, 1, 2],
    "item_id": ["a", "a", "b", "c", "c", "b", "a", "a"],
    "timestamp": [10, 20, 20, 30, 40, 50, 60, 70],
    "bought": [1.0] * 8,
}
ITEMS = {"item_id": ["c", "b", "a", "d"], "title": ["red cup", "red car", "big blue car", ""], "asked": [5, 15, 10, 65]}


@pytest.fixture
def questions():
    """The recipe, the processor and the parts; a test of three events, and an item that nobody took."""
    recipe = Recipe(
        tasks=[{"name": "next", "head": "retrieval", "label": "bought"}],
        columns={"feedback": ["bought"], "item_time": "asked"},
        training={"exclude_seen": False},
    )
    processor = PolyRecProcessor.fit(LOG, ITEMS, tasks=recipe.tasks, columns=recipe.columns, statistics=False)
    return recipe, processor, processor.split(LOG, cuts=(45, 45))


def test_lists_are_measured(questions):
    """Ranks against the naive definition; lists may repeat, so nothing is left out."""
    recipe, _, parts = questions
    scores = np.array([[5, 15, 10, -np.inf], [5, 15, 10, -np.inf], [5, 15, 10, 65]])  # of c, b, a, d
    position = {row: n for n, row in enumerate(np.argsort(parts.test.log.time[parts.test.candidates.event]))}
    found = recipe_baselines.rank(parts.test, "next", 4, lambda rows: scores[[position[r] for r in rows]], recipe)
    ranks = [1, 2, 3]  # b at 50; a at 60; a at 70, after d and b
    assert found["mrr@10"] == pytest.approx(np.mean([1 / r for r in ranks]))
    assert found["ndcg@10"] == pytest.approx(np.mean([1 / np.log2(1 + r) for r in ranks]))


def test_words_weigh_by_how_rare_they_are(tmp_path):
    """A title without words, or a query of unknown ones, is no division by zero; "blue" says more than "car"."""
    pd.DataFrame({"query": ["Blue car!", None, "xyz"]}).to_parquet(tmp_path / "log.parquet")
    recipe = SimpleNamespace(interactions=tmp_path / "log.parquet", columns={"query": "query"})
    processor = SimpleNamespace(items=SimpleNamespace(table=pa.table({"title": ITEMS["title"]})))
    test = SimpleNamespace(log=SimpleNamespace(row=np.arange(3)), candidates=SimpleNamespace(event=np.arange(3)))
    found = recipe_baselines.tf_idf(recipe, processor, SimpleNamespace(test=test), "search")(np.arange(3))
    rarity = {"red": np.log(4 / 2), "cup": np.log(4), "car": np.log(4 / 2), "big": np.log(4), "blue": np.log(4)}

    def length(*words):
        return np.sqrt(sum(rarity[w] ** 2 for w in words))

    query = length("blue", "car")
    assert found[0, 1] == pytest.approx(rarity["car"] ** 2 / (query * length("red", "car")), rel=1e-5)
    assert found[0, 2] == pytest.approx(query**2 / (query * length("big", "blue", "car")), rel=1e-5)
    assert found[0, [0, 3]].tolist() == [0, 0]
    assert not found[1:].any()


def test_habits_answer_the_rows_of_the_test(questions):
    """Answers are in the order of the table, questions in that of people: taken as they lie they would be mixed up."""
    _, _, parts = questions
    values = np.linspace(0.1, 0.8, 8)
    found = recipe_baselines.answer(parts.test, "next", HEADS.get("binary"), values)
    assert found["logloss"] == pytest.approx(log_loss(np.ones(3), values[5:]))
