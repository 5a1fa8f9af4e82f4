"""Baselines of the recipes: strictly before, of the right items, and asked the same questions as the model."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import recipe_baselines

from polyrec import PolyRecProcessor
from polyrec.cli.recipe import Recipe
from polyrec.evaluation.metrics import log_loss
from polyrec.registry import HEADS

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


def at(parts, time):
    return np.flatnonzero(parts.test.log.time[parts.test.candidates.event] == time)


def test_repeat_counts_what_was_taken_before(questions):
    """Counting the row itself would find every answer; popularity must not outweigh one purchase of one's own."""
    recipe, processor, parts = questions
    score = recipe_baselines.repeat(recipe, processor, parts, "next")
    named = dict(zip(["c", "b", "a", "d"], score(at(parts, 50))[0], strict=True))
    assert named["a"] > 2 > named["b"] > 1 > named["c"] > named["d"] == 0  # own: a twice, b once
    first, second = score(at(parts, 60))[0], score(at(parts, 70))[0]
    assert int(first[1]) == 2  # b was taken again at 50
    assert [int(x) for x in second] == [2, 0, 0, 0]


def test_repeat_leaves_out_what_was_refused():
    """An item that was shown again and again, and never taken, is no habit."""
    log = {**LOG, "bought": [0.0, 1.0, 1.0, 1.0, 1.0, None, 1.0, 1.0]}
    tasks = [{"name": "next", "head": "retrieval", "label": "bought"}]
    processor = PolyRecProcessor.fit(log, ITEMS, tasks=tasks, statistics=False)
    parts = processor.split(log, cuts=(45, 45))
    score = recipe_baselines.repeat(SimpleNamespace(), processor, parts, "next")
    assert [int(x) for x in score(at(parts, 60))[0]] == [0, 1, 1, 0]  # c, b, a, d


def test_newest_is_what_was_there(questions):
    """An item that comes later is no candidate, and would always be the newest."""
    recipe, processor, parts = questions
    score = recipe_baselines.newest(recipe, processor, parts, "next")
    assert score(at(parts, 60))[0].tolist() == [5, 15, 10, -np.inf]
    assert score(at(parts, 70))[0].tolist() == [5, 15, 10, 65]


def test_lists_are_measured(questions):
    """Ranks against the naive definition; lists may repeat, so nothing is left out."""
    recipe, processor, parts = questions
    score = recipe_baselines.newest(recipe, processor, parts, "next")
    found = recipe_baselines.rank(parts.test, "next", 4, score, recipe)
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
