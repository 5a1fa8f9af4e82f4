"""Lists that are drawn: the chances that are logged are the true ones, and another policy's value follows from them."""

from collections import Counter
from itertools import permutations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from model_fixtures import TASKS, fit, synthetic_log, tiny_model

from polyrec import Recommender
from polyrec.core.rules import Explore
from polyrec.evaluation.off_policy import LoggedRows, policy_value, softmax_policy
from polyrec.inference.rules.exploration import drawn
from polyrec.inference.rules.quotas import ColumnValues, Quotas


@pytest.fixture(scope="module")
def recommender():
    log = synthetic_log()
    processor, _ = fit(log)
    processor.resume(log["interactions"])
    model = tiny_model(processor)
    model.heads["next_item"].bias.weight.data.normal_()
    return Recommender(model, processor)


@pytest.mark.parametrize("most", [1, 9], ids=["quotas", "no quotas"])
def test_chances_are_those_of_the_draws(most):
    """Prevents propensities that ignore what was taken above, or what a quota has closed."""
    values = ColumnValues.of(pa.array([["a"], ["a", "b"], ["b"], [], None], pa.list_(pa.string())))
    score, how, k = np.array([1.0, 0.5, 0.2, -0.3, 0.0]), Explore(0.7), 3
    weight = np.exp(score / 0.7)

    def open_items(chosen):
        taken = [entry for n in chosen for entry in {0: "a", 1: "ab", 2: "b"}.get(n, "")]
        full = {entry for entry in "ab" if taken.count(entry) >= most}
        return [n for n in range(5) if n not in chosen and not full & set({0: "a", 1: "ab", 2: "b"}.get(n, ""))]

    exact = {}
    for chosen in permutations(range(5), k):
        chances = [
            weight[item] / weight[open_items(chosen[:n])].sum() if item in open_items(chosen[:n]) else 0.0
            for n, item in enumerate(chosen)
        ]
        exact[chosen] = np.prod(chances)
    short = 1 - sum(exact.values())  # lists that quotas end early: two of a, b and ab, and nothing else
    random, number, seen = np.random.default_rng(0), 3000, Counter()
    for _ in range(number):
        found, chances = drawn(how, score, k, Quotas({"g": values}, {"g": most}, np.arange(5) + 2), random)
        if len(found) == k:
            np.testing.assert_allclose(np.prod(chances), exact[tuple(found)], rtol=1e-9)
        seen[tuple(found)] += 1
    assert abs(short) < 1e-12
    for chosen, chance in exact.items():
        assert abs(seen[chosen] / number - chance) < 4.5 * np.sqrt(chance * (1 - chance) / number) + 1e-12


def test_first_chances_sum_to_one(recommender):
    """Prevents chances over other items than those that can come."""
    rules = {"explore": {"temperature": 2.0}, "where": "price > 0.3", "best": 7}
    chances = {}
    for row, *_ in recommender.recommend_many([{"history": [3, 4]}] * 80, k=2, rules=rules):
        chances[row["item"]] = row["propensity"]
    assert len(chances) == 7
    assert sum(chances.values()) == pytest.approx(1)
    plain = recommender.recommend([3, 4], k=7, where="price > 0.3")
    expected = softmax_policy([[row["score"] for row in plain]], 2.0)[0]
    np.testing.assert_allclose([chances[row["item"]] for row in plain], expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["retrieval", "pairs", "score"])
def test_draws_are_in_log_odds(recommender, kind):
    """Prevents a temperature from meaning shares of one model and log-odds of another."""
    if kind == "pairs":
        processor, _ = fit(tasks=[task for task in TASKS if task["head"] != "retrieval"])
        recommender = Recommender(tiny_model(processor), processor)
    score = {} if kind != "score" else {"score": "like"}
    rules = {"explore": {"temperature": 0.5, "seed": 0}, **score}
    [row, *_] = recommender.recommend([3, 4], k=1, rules=rules)
    plain = recommender.recommend([3, 4], k=99, rules=score)
    scores = np.array([other["score"] for other in plain])
    odds = scores if kind != "pairs" else np.log(scores) - np.log1p(-scores)
    [chance] = [c for c, r in zip(softmax_policy([odds], 0.5)[0], plain, strict=True) if r["item"] == row["item"]]
    assert row["propensity"] == pytest.approx(chance, rel=1e-3)


def test_a_seed_draws_each_user_the_same_list_again(recommender, tmp_path):
    """Prevents a job that goes on from drawing other lists, and users from getting the same noise."""
    rules = {"explore": {"temperature": 5.0, "seed": 1}}
    users = [{"user_id": n} for n in range(20)]
    first, again = (recommender.recommend_many(own, 5, rules=rules) for own in (users, users[::-1]))
    for rows, others in zip(first, again[::-1], strict=True):
        assert [row["item"] for row in rows] == [row["item"] for row in others]
        np.testing.assert_allclose([r["propensity"] for r in rows], [r["propensity"] for r in others], rtol=1e-4)
    assert len({tuple(row["item"] for row in rows) for rows in first}) > 15
    assert first != recommender.recommend_many(users, 5, rules={"explore": {"temperature": 5.0, "seed": 2}})
    with pytest.raises(ValueError, match="explore needs a seed"):
        recommender.recommend_all([1], tmp_path / "recs", rules={"explore": 1.0})
    folder = recommender.recommend_all(list(range(20)), tmp_path / "recs", 5, rules=rules, progress=False)
    found = pd.read_parquet(folder / "part-00000.parquet")
    expected = [row["propensity"] for rows in first for row in rows]
    np.testing.assert_allclose(found.sort_values(["user_id", "rank"])["propensity"], expected, rtol=1e-4)


def test_the_log_tells_what_another_policy_would_earn(recommender):
    """Prevents propensities that look right and mislead: the value of a policy that was never shown is known here."""
    random = np.random.default_rng(0)
    items = np.array([1, 5, 8, 9, 14, 20])
    requests = [{"history": random.integers(0, 22, 3).tolist(), "candidates": items.tolist()} for _ in range(1000)]
    logging = {"explore": {"temperature": 1.0, "seed": 5}, "seen": False}
    plain = list(recommender.rank(requests, len(items), rules={"seen": False}))
    row_of = recommender.rows(items)
    score = np.array([own.scores[np.argsort(own.rows)] for own in plain])
    assert (np.sort(row_of) == np.sort(plain[0].rows)).all()
    reward_rate = 1 / (1 + np.exp(2 * score - score.mean(axis=1, keepdims=True)))  # the model is wrong: low scores earn
    shown = [
        (np.searchsorted(np.sort(row_of), own.rows[0]), own.propensities[0])
        for own in recommender.rank(requests, 2, rules=logging)
    ]
    choice, propensity = (np.array(values) for values in zip(*shown, strict=True))
    rows = np.arange(len(requests))
    np.testing.assert_allclose(propensity, softmax_policy(score, 1.0)[rows, choice], rtol=1e-4)
    reward = (random.random(len(rows)) < reward_rate[rows, choice]).astype(float)
    for policy in (softmax_policy(-score, 1.0), np.full(score.shape, 1 / len(items))):
        truth = (policy * reward_rate).sum(axis=1).mean()
        log = LoggedRows(reward=reward, propensity=propensity, chance=policy[rows, choice])
        for estimator in ("ips", "snips"):
            found = policy_value(log, estimator, n=200)
            error = abs(found.value - truth)
            assert error < 1.5 * (found.high - found.low)
            assert error < abs(reward.mean() - truth) / 2
