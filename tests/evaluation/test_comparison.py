"""The comparison against naive loops, sklearn, and worlds in which the answer is known."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrec.core.registry import HEADS
from polyrec.core.schema import TaskConfig
from polyrec.evaluation import comparison_report, evaluator, ranking
from polyrec.evaluation.bootstrap import draws
from polyrec.evaluation.comparison import compare, plan
from polyrec.evaluation.comparison_runs import ComparisonRun, Cost
from polyrec.evaluation.evaluator import Predictions, Ranking
from polyrec.evaluation.resampled_metrics import repeated_rows, resampled_mean, resampled_metric

TASKS = [
    TaskConfig("like", "binary"),
    TaskConfig("rating", "regression"),
    TaskConfig("next_item", "retrieval"),
]
FAST = ["auc", "gauc", "logloss", "calibration_error", "rmse", "mae", "accuracy", "poisson_deviance"]
COST = Cost(1.0, 2.0, 3.0, 4.0)


@st.composite
def rows(draw):
    """A few rows of a few people, with ties among the scores, and how often each person is drawn."""
    users = draw(st.integers(1, 5))
    count = draw(st.integers(1, 25))
    code = np.array(draw(st.lists(st.integers(0, users - 1), min_size=count, max_size=count)))
    labels = np.array(draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=count, max_size=count)))
    scores = np.array(draw(st.lists(st.sampled_from([0.1, 0.25, 0.5, 0.9]), min_size=count, max_size=count)))
    times = np.array(draw(st.lists(st.integers(0, 3), min_size=users, max_size=users)))
    return labels, scores.astype(np.float32), code, users, times


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=30, deadline=None)
@given(rows())
def test_fast_metrics_equal_the_metric_of_repeated_rows(name, drawn):
    """Prevents the fast forms (weighted AUC with ties, binned calibration, ...) from being other metrics."""
    labels, scores, code, users, times = drawn
    fast = resampled_metric(name, labels, scores, code, users)(times)
    chosen = [r for r in range(len(code)) for _ in range(times[code[r]])]  # the naive loop
    if not chosen:
        assert np.isnan(fast)
        return
    expected = evaluator.PAIR_METRICS[name](labels[chosen], scores[chosen], code[chosen])
    np.testing.assert_allclose(fast, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(repeated_rows(name, labels, scores, code, users)(times), expected)


def test_weighted_auc_equals_that_of_sklearn():
    """Prevents our own AUC from being the only witness of our own AUC."""
    random = np.random.default_rng(0)
    code, labels = random.integers(0, 30, 400), random.integers(0, 2, 400).astype(float)
    scores, times = random.integers(0, 9, 400) / 9, random.integers(0, 4, 30)
    found = resampled_metric("auc", labels, scores, code, 30)(times)
    assert found == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores, sample_weight=times[code]))


def test_resampled_mean_leaves_out_what_is_unknown():
    """Prevents rows without a value from counting as 0."""
    mean = resampled_mean(np.array([1.0, np.nan, 4.0]), np.array([0, 0, 1]), 2)
    assert mean(np.array([3, 1])) == pytest.approx(7 / 4)


# ------------------------------------------------------------------- worlds
def dataset(users=60, each=6, seed=0):
    """Test questions of three tasks; a quarter of the ratings is unknown."""
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), each)
    labels = np.stack(
        [
            random.integers(0, 2, len(user)),
            random.normal(3, 1, len(user)),
            np.ones(len(user)),
        ],
        axis=1,
    ).astype(np.float32)
    labels[random.random(len(user)) < 0.25, 1] = np.nan
    return SimpleNamespace(task_names=[t.name for t in TASKS], labels=lambda: labels, user_codes=lambda: user)


def run(data, variant, tasks, seed, noise):
    """Answers that are the truth plus noise, {task: standard deviation}."""
    random = np.random.default_rng([seed, len(tasks), sum(map(ord, variant))])
    labels = data.labels()
    predictions = Predictions()
    for j, name in enumerate(data.task_names):
        blur = noise[name] * random.normal(size=len(labels))
        if name not in tasks:
            continue
        if name == "next_item":
            shuffled = random.permutation(len(labels))
            greater = np.minimum(np.abs(blur * 10).astype(int), 50)
            predictions.rankings[name] = Ranking(
                shuffled, greater[shuffled], np.zeros(len(labels), dtype=int), np.zeros((len(labels), 10), dtype=int)
            )
        elif name == "like":
            predictions.values[name] = (1 / (1 + np.exp(-(2 * labels[:, j] - 1) - blur))).astype(np.float32)
        else:
            predictions.values[name] = (np.nan_to_num(labels[:, j]) + blur).astype(np.float32)
    return ComparisonRun(variant, tuple(tasks), seed, "", COST, {}, predictions)


def world(noise_of, seeds=(0, 1), tasks=TASKS, data=None):
    """Runs of all variants; noise_of(tasks learnt) -> {task: noise}."""
    data = data or dataset()
    variants = plan([t.name for t in tasks])
    return [run(data, v.name, v.tasks, s, noise_of(set(v.tasks))) for v in variants for s in seeds], data


def rating_suffers(learnt):
    """The rating is answered badly as soon as `like` is learnt, too; `like` gains from `rating`."""
    return {
        "like": 0.5 if "rating" in learnt else 3.0,
        "rating": 1.0 if "like" in learnt else 0.2,
        "next_item": 0.5,
    }


@pytest.fixture(scope="module")
def result():
    """The comparison of that world."""
    runs, data = world(rating_suffers)
    return compare(runs, TASKS, data, resamples=100), runs, data


def test_intervals_equal_those_of_a_naive_loop(result):
    """Prevents resamples from pairing different people, seeds or systems with each other."""
    found, runs, data = result
    by_name = {(r.variant, r.seed): r.predictions for r in runs}
    known = np.flatnonzero(~np.isnan(data.labels()[:, 1]))
    labels, users = data.labels()[known, 1], data.user_codes()[known]
    names = np.unique(users)

    def rmse(variant, seed, index):
        values = by_name[variant, seed].values["rating"][known]
        return np.sqrt(np.mean((labels[index] - values[index].astype(np.float64)) ** 2))

    samples = []
    for drawn in draws(len(names), 100, 0):
        index = np.concatenate([np.flatnonzero(users == names[g]) for g in drawn])
        samples.append(np.mean([rmse("only_rating", s, index) - rmse("all", s, index) for s in (0, 1)]))
    effect = found.tasks["rating"].metrics["rmse"].effect
    assert (effect.low, effect.high) == pytest.approx(tuple(np.quantile(samples, [0.025, 0.975])))
    everyone = np.arange(len(known))
    each = [rmse("only_rating", s, everyone) - rmse("all", s, everyone) for s in (0, 1)]
    assert effect.seeds == pytest.approx(each, rel=1e-5)
    assert effect.gain == pytest.approx(np.mean(each), rel=1e-5)
    assert effect.relative == pytest.approx(
        np.mean(each) / np.mean([rmse("only_rating", s, everyone) for s in (0, 1)]), rel=1e-5
    )


def test_rankings_are_matched_by_row(result):
    """Prevents lists of one row from being subtracted from those of another: their order differs from run to run."""
    found, runs, _ = result
    for r in runs:
        if "next_item" in r.tasks:
            ranked = r.predictions.rankings["next_item"]
            expected = ranking.single_target_metrics(ranked.greater, ranked.ties, ks=[10])["ndcg@10"].mean()
            values = found.tasks["next_item"].metrics["ndcg@10"].values[r.variant]
            assert values[r.seed] == pytest.approx(expected)
    effect = found.tasks["next_item"].metrics["ndcg@10"].effect
    assert effect.verdict == "unclear"
    assert effect.low < 0 < effect.high


def test_forced_negative_transfer_is_said_in_plain_words(result):
    """Prevents a loss from being reported as a gain because less is better, or from hiding in a table."""
    found = result[0]
    assert found.tasks["rating"].metrics["rmse"].effect.verdict == "worse"
    assert found.tasks["like"].metrics["auc"].effect.verdict == "better"
    assert found.affinity["like"]["rating"].verdict == "worse"
    assert found.affinity["rating"]["like"].verdict == "better"
    assert found.affinity["next_item"]["rating"].verdict == "unclear"
    said = comparison_report.findings(found)
    assert said[0].startswith("Transfer is NEGATIVE for `rating`")
    assert any(text.startswith("Adding `like` to the other tasks makes `rating` worse") for text in said)
    assert any(text.startswith("Transfer is positive for `like`") for text in said)
    assert any(text.startswith("No clear transfer for `next_item`") for text in said)


def test_no_effect_is_found_where_there_is_none():
    """Prevents the intervals from being too narrow: of 25 worlds without any effect few may claim one."""
    same = {"like": 1.0, "rating": 1.0, "next_item": 1.0}
    claims = 0
    for seed in range(25):
        data = dataset(users=30, each=4, seed=seed)
        runs = [run(data, v.name, v.tasks, 1000 * seed, same) for v in plan(["like", "rating"], ["multi", "single"])]
        found = compare(runs, TASKS[:2], data, resamples=100)
        claims += found.tasks["rating"].metrics["rmse"].effect.verdict != "unclear"
    assert claims <= 4  # 1 is expected at 95%


def test_seeds_that_disagree_are_no_finding():
    """Prevents one lucky training from being sold as an effect."""
    data = dataset()
    quiet, loud = {"like": 1.0, "rating": 0.1}, {"like": 1.0, "rating": 2.0}
    noise = {("all", 0): quiet, ("only_rating", 0): loud, ("all", 1): loud, ("only_rating", 1): {**loud, "rating": 1.9}}
    runs = [
        run(data, v.name, v.tasks, s, {"next_item": 1.0} | noise.get((v.name, s), quiet))
        for v in plan(["like", "rating"], ["multi", "single"])
        for s in (0, 1)
    ]
    found = compare(runs, TASKS[:2], data, resamples=100)
    effect = found.tasks["rating"].metrics["rmse"].effect
    assert effect.low > 0 > min(effect.seeds)
    assert effect.verdict == "unclear"
    assert any("the seeds disagree" in text for text in comparison_report.findings(found))


def test_order_of_tasks_changes_nothing(result):
    """Prevents tasks from being known by their place."""
    found, runs, data = result
    again = compare(runs[::-1], TASKS[::-1], data, resamples=100)
    first, second = (json.loads(comparison_report.to_json(r)) for r in (found, again))
    assert (
        first["tasks"]["rating"]["metrics"]["rmse"]["effect"] == second["tasks"]["rating"]["metrics"]["rmse"]["effect"]
    )
    assert first["affinity"] == second["affinity"]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [(["multi", "singel"], "did you mean 'single'"), (["single"], "lack 'multi'")],
)
def test_unknown_variants_are_refused(kinds, message):
    """Prevents a misspelt variant from being left out silently."""
    with pytest.raises(ValueError, match=message):
        plan(["a", "b"], kinds)


def test_every_head_has_a_metric_that_decides():
    """Prevents a head whose comparison is a table without intervals, or takes hours."""
    for name in HEADS.names():
        head = HEADS.get(name)
        assert head.reads == "state" or head.metrics[0] in FAST


def test_one_task_cannot_be_compared():
    """Prevents hours of training two equal models."""
    with pytest.raises(ValueError, match="at least two tasks"):
        plan(["a"])


def test_missing_run_is_named(result):
    """Prevents unpaired seeds from being averaged."""
    _, runs, data = result
    with pytest.raises(ValueError, match="only_rating with seed 1"):
        compare([r for r in runs if r.name != "only_rating-seed1"], TASKS, data, resamples=2)


def test_run_survives_the_disk(tmp_path, result):
    """Prevents predictions from changing, or a half-written run from being taken for a finished one."""
    run = result[1][0]
    run = replace(
        run, predictions=replace(run.predictions, details={"like": np.array([[0.25, 0.75]], dtype=np.float32)})
    )
    run.metrics = {"like_auc": 0.5, "like_gauc": float("nan")}
    unfinished = tmp_path / ".all-seed0.unfinished"
    unfinished.mkdir()
    (unfinished / "rubbish").write_text("of an interrupted save")
    run.save(tmp_path / run.name)
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "all-seed0",
        "manifest.json",
        "predictions.npz",
        "run.json",
    ]
    again = ComparisonRun.load(tmp_path / run.name)
    assert again.metrics["like_auc"] == 0.5
    assert np.isnan(again.metrics["like_gauc"])
    assert (again.variant, again.tasks, again.seed, again.cost) == (run.variant, run.tasks, run.seed, COST)
    np.testing.assert_array_equal(again.predictions.values["like"], run.predictions.values["like"])
    assert again.predictions.details["like"].tolist() == [[0.25, 0.75]]
    for name in ("rows", "greater", "ties", "top_ids"):
        expected = getattr(run.predictions.rankings["next_item"], name)
        np.testing.assert_array_equal(getattr(again.predictions.rankings["next_item"], name), expected)


def test_report_is_complete_and_needs_nothing_beside_itself(tmp_path, result):
    """Prevents a page that loads from elsewhere, a figure missing from it, and JSON with NaN in it."""
    pytest.importorskip("matplotlib")
    found = result[0]
    comparison_report.write(found, tmp_path)
    page = (tmp_path / "comparison.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page.replace("<!doctype html>", "")
    for text in ("Transfer is NEGATIVE for <code>rating</code>", "Task affinity", "Training cost", "adding"):
        assert text in page
    read = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert read["tasks"]["rating"]["metrics"]["rmse"]["effect"]["verdict"] == "worse"
    assert {p.name for p in tmp_path.glob("*.png")} == {"gains.png", "affinity.png", "costs.png"}
    assert "3 single-task models together took 3.00 times" in (tmp_path / "comparison.md").read_text()


def test_many_rows_take_seconds():
    """Prevents a resample from becoming a sort again: 130,000 rows of 25,000 people and 1,000 resamples in a minute."""
    random = np.random.default_rng(0)
    code, labels = random.integers(0, 25_000, 130_000), (random.random(130_000) < 0.3).astype(float)
    metric = resampled_metric("auc", labels, random.random(130_000).astype(np.float32), code, 25_000)
    begin = time.process_time()
    for drawn in draws(25_000, 50, 0):
        metric(np.bincount(drawn, minlength=25_000))
    assert time.process_time() - begin < 3  # a minute for 1,000
