"""The evaluator against a loop over windows and candidates."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import COLUMNS, PAIR_TASKS, TASKS, arguments, fit, model_inputs, synthetic_log, tiny_model
from window_fixtures import gaps, make_log, users

from polyrec import PolyRecCollator, PolyRecProcessor, PolyRecTrainer
from polyrec.data.event_log import Candidates
from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation import cautions, evaluator
from polyrec.evaluation.evaluator import Predictions, Ranking
from polyrec.evaluation.report import compare_with_baselines, format_report
from polyrec.modules.encoders.item import FIRST_ITEM

K = 5


@pytest.fixture(scope="module")
def world():
    """Histories of up to 20 events in windows of 6, so that much of what was seen lies outside the window."""
    processor, splits = fit(synthetic_log(users=12, events=20), max_history=6)
    model = tiny_model(processor)
    model.heads["next_item"].bias.weight.data.normal_()
    return processor, splits, model


def naive_predictions(model, dataset, exclude_seen):
    """Values of pair tasks and (row, greater, ties, scores) of the retrieval task, one window and candidate at a time."""
    values = {name: np.full(dataset.num_candidates, np.nan) for name in model.pair_tasks}
    ranked = {}
    log = dataset.log
    for window in range(len(dataset)):
        batch = PolyRecCollator()([dataset[window]])
        with torch.no_grad():
            output = model(**model_inputs(batch))
        for c, row in enumerate(batch["candidate_rows"][0].tolist()):
            for name in values:
                values[name][row] = model.heads[name].predict(output.logits[name])[0, c]
            event = dataset.candidates.event[row]
            target = log.item[event]
            if target < FIRST_ITEM or not dataset.labels()[row, 0] > 0:
                continue
            with torch.no_grad():
                context = model.request_context(**model_inputs(batch)).at((slice(None), c))
                scores = model.score_items(output.states[0, c : c + 1], "next_item", context=context)
                scores = scores[0, FIRST_ITEM:].numpy().copy()
            mine = scores[target - FIRST_ITEM]
            if exclude_seen:
                earlier = (log.user == log.user[event]) & (log.time < log.time[event])
                seen = log.item[earlier]
                scores[seen[seen >= FIRST_ITEM] - FIRST_ITEM] = -np.inf
            others = np.delete(scores, target - FIRST_ITEM)
            ranked[row] = ((others > mine).sum(), (others == mine).sum(), scores)
    return values, ranked


@pytest.mark.parametrize("part", ["train", "valid", "test"])
@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("batch_size", [3, 64])
def test_predictions_equal_a_loop(world, part, exclude_seen, batch_size):
    """Prevents answers from landing on the wrong candidate, and seen items beyond the window from being ranked.

    Training data is included: there the order of events of one time and the windows without times are drawn anew, which
    must not reach an evaluation.
    """
    _, splits, model = world
    dataset = getattr(splits, part)
    found = evaluator.predict(model, dataset, batch_size=batch_size, k=K, exclude_seen=exclude_seen)
    values, ranked = naive_predictions(model, dataset.fixed(), exclude_seen)
    for name, expected in values.items():
        assert found.values[name].dtype == np.float32
        np.testing.assert_allclose(found.values[name], expected, rtol=1e-4, atol=1e-5)
    ranking = found.rankings["next_item"]
    assert sorted(ranking.rows) == sorted(ranked)
    for row, greater, ties, top in zip(ranking.rows, ranking.greater, ranking.ties, ranking.top_ids, strict=True):
        expected_greater, expected_ties, scores = ranked[row]
        assert (greater, ties) == (expected_greater, expected_ties)
        assert top.shape == (K,)
        np.testing.assert_allclose(scores[top], np.sort(scores)[::-1][:K], rtol=1e-5, atol=1e-6)


def test_the_catalog_is_encoded_once(world):
    """Prevents every batch of an evaluation from encoding all items again."""
    processor, splits, _ = world
    model = tiny_model(processor)
    calls = []
    hook = model.item_encoder.attributes.register_forward_hook(lambda *_: calls.append(1))
    evaluator.predict(model, splits.test, batch_size=3, k=K)
    hook.remove()
    assert len(calls) == 1 < len(splits.test) // 3


@pytest.mark.parametrize("whole_table", [0, 65_536])
@pytest.mark.parametrize("options", [{}, {"task_item_embeddings": True}, {"item_ids": False}], ids=str)
def test_a_table_encoded_before_answers_alike(world, monkeypatch, whole_table, options):
    """Prevents a forward pass that is given the items from answering otherwise than one that encodes them."""
    processor, splits, _ = world
    model = tiny_model(processor, **options)
    monkeypatch.setattr("polyrec.modules.encoders.item.WHOLE_TABLE", whole_table)
    batch = model_inputs(PolyRecCollator()([splits.test[i] for i in range(6)]))
    with torch.no_grad():
        own, given = model(**batch), model(**batch, items=model.item_encoder.table())
    assert own.logits.keys() == given.logits.keys()
    for task, logits in own.logits.items():
        torch.testing.assert_close(given.logits[task], logits, rtol=1e-5, atol=1e-6)


def test_much_of_what_was_seen_lies_outside_the_window(world):
    """Prevents the test above from being easier than it looks."""
    _, splits, _ = world
    positions = splits.test.candidates.position
    windows = [splits.test[i] for i in range(len(splits.test))]
    assert max(len(w["item_ids"]) for w in windows) == 6
    assert positions.max() > 12


def test_predict_leaves_the_model_as_it_was(world):
    """Prevents an evaluation in the middle of training from switching dropout off for the rest of it."""
    _, splits, model = world
    model.train()
    evaluator.predict(model, splits.valid)
    assert model.training
    model.eval()
    evaluator.predict(model, splits.valid)
    assert not model.training
    assert splits.train.shuffle_ties


@pytest.mark.parametrize("shards", [2, 3, 50])
def test_shards_together_equal_the_whole(world, shards, monkeypatch):
    """Prevents distributed evaluation from dropping, doubling or averaging windows; more ranks than windows are fine."""
    _, splits, model = world
    whole = evaluator.predict(model, splits.test, k=K)
    parts = [evaluator.predict(model, splits.test, k=K, shard=(rank, shards)) for rank in range(shards)]
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: shards)

    def all_gather_object(found, mine):
        found[:] = parts

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    joined = evaluator.gather(parts[0])
    for name, values in whole.values.items():
        np.testing.assert_allclose(joined.values[name], values, rtol=1e-5, atol=1e-6)
        assert all(np.isnan(p.values[name]).any() for p in parts)
    a, b = whole.rankings["next_item"], joined.rankings["next_item"]
    order_a, order_b = np.argsort(a.rows), np.argsort(b.rows)
    for name in ("rows", "greater", "ties", "top_ids"):
        np.testing.assert_array_equal(getattr(a, name)[order_a], getattr(b, name)[order_b])
    expected = evaluator.evaluate(model, splits.test, whole, k=K)
    assert evaluator.evaluate(model, splits.test, joined, k=K) == pytest.approx(expected, nan_ok=True)


def test_k_larger_than_the_catalog_and_an_idle_rank(world):
    """Prevents a short list of a tiny catalog, or a rank without windows, from breaking the gathering."""
    processor, splits, model = world
    k = processor.num_items + 5
    some = evaluator.predict(model, splits.test, k=k).rankings["next_item"]
    none = evaluator.predict(model, splits.test, k=k, shard=(len(splits.test), len(splits.test) + 1))
    assert len(none.rankings["next_item"].rows) == 0
    assert none.rankings["next_item"].top_ids.shape[1] == some.top_ids.shape[1]


# ------------------------------------------------------------------ heads of several numbers
MANY = [
    {"name": "stars", "head": "multiclass", "label": "rating"},
    {"name": "level", "head": "ordinal", "label": "rating"},
    {"name": "spread", "head": "quantile", "label": "rating"},
    {"name": "times", "head": "count", "label": "rating"},
    {"name": "watch", "head": "watch_time", "label": "rating", "options": {"duration": "length"}},
    {"name": "like", "head": "binary", "label": "rating >= 4"},
]


@pytest.fixture(scope="module")
def many():
    """A model of every kind of pair head, with an ensemble of two members."""
    log = synthetic_log()
    log["interactions"]["length"] = np.random.default_rng(5).lognormal(2, 1, len(log["interactions"]["user_id"]))
    columns = {**COLUMNS, "context": {"surface": "categorical", "length": "numeric"}}
    processor, splits = fit(log, tasks=MANY, columns=columns)
    return processor, splits, tiny_model(processor, expert_options={"members": 2}, hidden_size=16)


def test_every_kind_of_head_starts_at_what_training_knows(many):
    """Prevents a head from starting anywhere but at the distribution of the training labels."""
    processor, _, model = many
    summary = processor.label_summary["stars"]
    assert summary["maximum"] == 5
    assert model.heads["stars"].logit_width == 6
    assert (model.heads["level"].minimum, model.heads["level"].maximum) == (1, 5)
    mean = summary["mean"]
    for task in ("level", "times"):
        assert model.heads[task].predict(model.heads[task].output.bias.detach()).item() == pytest.approx(mean, rel=0.05)
    assert model.heads["watch"].quantiles.max() == 5


def test_details_land_on_their_candidates(many, monkeypatch):
    """Prevents probabilities of classes from landing in other rows than the predictions, also over several ranks."""
    _, splits, model = many
    whole = evaluator.predict(model, splits.test)
    assert set(whole.details) == {"stars", "spread"}
    assert np.array_equal(whole.details["stars"].argmax(1), whole.values["stars"])
    np.testing.assert_allclose(whole.details["stars"].sum(1), 1, rtol=1e-5)
    assert np.array_equal(whole.details["spread"][:, 1], whole.values["spread"])
    shards = len(splits.test) + 1  # one of them reads nothing
    parts = [evaluator.predict(model, splits.test, shard=(rank, shards)) for rank in range(shards)]
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: shards)
    monkeypatch.setattr(
        torch.distributed, "all_gather_object", lambda found, mine: found.__setitem__(slice(None), parts)
    )
    joined = evaluator.gather(parts[0])
    for name, values in whole.details.items():
        np.testing.assert_allclose(joined.details[name], values, rtol=1e-5, atol=1e-6)


def test_every_head_is_judged_against_its_constant(many):
    """Prevents a head without RMSE or log loss from failing, and a judge that the constant cannot have."""
    _, splits, model = many
    predictions = evaluator.predict(model, splits.test)
    found = evaluator.evaluate(model, splits.test, predictions)
    for task, head in model.heads.items():
        assert {f"{task}_{metric}" for metric in head.metrics} <= set(found)
    rating = splits.test.labels()[:, 0]
    known = ~np.isnan(rating)
    y, p = rating[known].astype(int), predictions.details["stars"][known].astype(np.float64)
    logloss = sklearn.metrics.log_loss(y, p / p.sum(1, keepdims=True), labels=range(6))
    assert found["stars_class_logloss"] == pytest.approx(logloss, rel=1e-5)
    assert found["stars_accuracy"] == pytest.approx((predictions.values["stars"][known] == y).mean())
    shares = np.bincount(y) / len(y)
    users = splits.test.user_codes()
    for task, constant, details, metric in (
        ("stars", np.bincount(y).argmax(), np.tile(shares, (len(rating), 1)), "accuracy"),
        ("spread", np.median(y), None, "mae"),
        ("times", y.mean(), None, "poisson_deviance"),
        ("watch", np.median(y), None, "mae"),
        ("level", y.mean(), None, "rmse"),
    ):
        names = model.heads[task].metrics
        assert names[0] == metric
        values = np.full(len(rating), cautions.constant_prediction(names, rating))
        assert values[0] == pytest.approx(constant)
        metrics, better = evaluator.pair_metrics(names, rating, values, users, task, details)
        assert better == pytest.approx(0, abs=1e-6)
        assert list(metrics) == [n for n in names if n in evaluator.PAIR_METRICS or details is not None]


def test_a_report_of_every_head_is_readable(many):
    """Prevents baselines, which know one number per pair, from failing where the model has probabilities."""
    _, splits, model = many
    report = compare_with_baselines(
        model, splits.train, splits.test, evaluator.predict(model, splits.test), resamples=5
    )
    assert set(report) == set(model.heads)
    assert "class_logloss" in report["stars"]["polyrec"]
    assert "class_logloss" not in report["stars"]["bias"]
    text = format_report(report)
    assert "nan" not in text  # what a system does not have is a dash


# ------------------------------------------------------------------ metrics
def test_metrics_are_named_as_documented_and_right(world):
    """Prevents one metric for all tasks, metrics of the wrong column, and a name that nobody finds."""
    _, splits, model = world
    found = evaluator.evaluate(model, splits.test, predictions := evaluator.predict(model, splits.test, k=K), k=K)
    assert set(found) == {
        *(f"like_{m}" for m in ("auc", "gauc", "logloss", "calibration_error")),
        *(f"rating_{m}" for m in ("rmse", "mae")),
        *(f"next_item_{m}@{K}" for m in ("ndcg", "recall", "mrr", "coverage", "novelty")),
        "mean_improvement",
    }
    labels = splits.test.labels().astype(np.float64)  # as the evaluator sums
    like, rating = labels[:, 1], labels[:, 2]
    known = ~np.isnan(like)
    p, r = predictions.values["like"], predictions.values["rating"]
    assert found["like_auc"] == pytest.approx(sklearn.metrics.roc_auc_score(like[known], p[known]))
    logloss = sklearn.metrics.log_loss(like[known], p[known].astype(np.float64))
    assert found["like_logloss"] == pytest.approx(logloss)
    rmse = sklearn.metrics.root_mean_squared_error(rating[known], r[known])
    assert found["rating_rmse"] == pytest.approx(rmse)
    ranking = predictions.rankings["next_item"]
    assert (ranking.ties == 0).all()
    ranks = ranking.greater + 1
    assert found[f"next_item_recall@{K}"] == pytest.approx((ranks <= K).mean())
    assert found[f"next_item_mrr@{K}"] == pytest.approx(np.where(ranks <= K, 1 / ranks, 0).mean())
    ndcg = np.where(ranks <= K, 1 / np.log2(ranks + 1), 0).mean()
    assert found[f"next_item_ndcg@{K}"] == pytest.approx(ndcg)
    base = like[known].mean()
    constant = -(base * np.log(base) + (1 - base) * np.log(1 - base))
    improvements = [1 - logloss / constant, 1 - rmse / rating[known].std(), ndcg]
    assert found["mean_improvement"] == pytest.approx(np.mean(improvements))


def test_every_metric_a_head_names_is_reported(world):
    """Prevents a head from promising a metric that the evaluator does not know."""
    _, splits, model = world
    found = evaluator.evaluate(model, splits.test, evaluator.predict(model, splits.test))
    for task, head in model.heads.items():
        assert {f"{task}_{metric}" for metric in head.metrics} <= set(found)


def test_groups_are_evaluated_apart(world):
    """Prevents a group's metrics from being those of all rows."""
    _, splits, model = world
    predictions = evaluator.predict(model, splits.test, k=K)
    even = splits.test.user_codes() % 2 == 0
    groups = {"even": even, "odd": ~even, "all": np.ones(len(even), dtype=bool)}
    found = evaluator.evaluate(model, splits.test, predictions, k=K, groups=groups)
    for name in ("like_logloss", f"next_item_ndcg@{K}", "mean_improvement"):
        assert found[f"all/{name}"] == found[name]
        assert found[f"even/{name}"] != found[f"odd/{name}"]
    ranked = {name: group[predictions.rankings["next_item"].rows].sum() for name, group in groups.items()}
    joined = sum(ranked[g] * found[f"{g}/next_item_ndcg@{K}"] for g in ("even", "odd"))
    assert joined / ranked["all"] == pytest.approx(found[f"next_item_ndcg@{K}"])


def test_a_group_without_rows_or_labels_has_no_metrics(world, caplog):
    """Prevents an empty group from raising or from reporting NaN as a result."""
    _, splits, model = world
    predictions = evaluator.predict(model, splits.test, k=K)
    nobody = np.zeros(splits.test.num_candidates, dtype=bool)
    with caplog.at_level(logging.WARNING, logger="polyrec"):
        found = evaluator.evaluate(model, splits.test, predictions, k=K, groups={"none": nobody})
    assert not [name for name in found if name.startswith("none/")]
    assert "task 'like' has no label in the evaluated rows" in caplog.text


def test_mean_improvement_is_0_for_the_constant_and_grows_with_quality(world):
    """Prevents early stopping from keeping the worst model: larger must mean better for every kind of task."""
    _, splits, model = world
    labels = splits.test.labels()
    constant = {t["name"]: np.full(len(labels), np.nanmean(labels[:, 1 + j])) for j, t in enumerate(PAIR_TASKS)}
    perfect = {"like": np.clip(labels[:, 1], 0.01, 0.99), "rating": labels[:, 2]}
    rows = np.arange(len(labels))

    def quality(values, greater):
        empty = np.zeros(len(rows), dtype=np.int64)
        ranking = Ranking(rows, empty + greater, empty, np.tile(np.arange(K), (len(rows), 1)))
        predictions = Predictions({k: v.astype(np.float32) for k, v in values.items()}, {"next_item": ranking})
        return evaluator.evaluate(model, splits.test, predictions, k=K)["mean_improvement"]

    assert quality(constant, K) == pytest.approx(0, abs=1e-6)
    assert quality(perfect, 0) > 0.98
    assert 0 < quality(perfect, K) < quality(perfect, 1) < quality(perfect, 0)


def test_model_of_some_tasks_is_evaluated_on_those(world):
    """Prevents a single-task model from failing on a data set with more labels."""
    processor, splits, _ = world
    model = tiny_model(processor, tasks=TASKS[1:2])
    found = evaluator.evaluate(model, splits.test, evaluator.predict(model, splits.test))
    assert {name.split("_")[0] for name in found} == {"like", "mean"}


def random_answers(users=300, before=4, asked=6):
    """A log of coin flips, everybody's first answers in training and the others in the test; and its processor."""
    random = np.random.default_rng(0)
    user, step = np.repeat(np.arange(users), before + asked), np.tile(np.arange(before + asked), users)
    log = {
        "user_id": user,
        "item_id": random.integers(0, 20, len(user)),
        "timestamp": 1000.0 * step + user,
        "like": random.integers(0, 2, len(user)),
    }
    tasks = [{"name": "coin", "head": "binary", "label": "like"}]
    processor = PolyRecProcessor.fit(log, tasks=tasks, max_history=8, statistics=False)
    cuts = 1000.0 * (before - 1), 1000.0 * before
    return processor, processor.split(log, cuts=cuts).test, cuts[1]


def seen_rate(dataset):
    """The rate of positive answers in what each candidate sees, float32 [C]."""
    log, asked = dataset.log, dataset.candidates
    begin = log.offsets[log.user[asked.event]]
    seen = [log.labels[b : b + n, 0] for b, n in zip(begin, asked.position, strict=True)]
    return np.array([(0.5 + labels.sum()) / (1 + len(labels)) for labels in seen], dtype=np.float32)


def test_prequential_gauc_is_biased_and_said_to_be(caplog):
    """Prevents a GAUC of 0.3 on random answers from being read as a model that has it all backwards."""
    processor, prequential, cutoff = random_answers()
    frozen = processor.without_updates(prequential, cutoff)
    assert cautions.sees_evaluated_labels(prequential)
    assert not cautions.sees_evaluated_labels(frozen)
    model = tiny_model(processor)
    found = {}
    for name, dataset in (("frozen", frozen), ("prequential", prequential), ("again", prequential)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="polyrec"):
            found[name] = evaluator.evaluate(model, dataset, Predictions({"coin": seen_rate(dataset)}))
        assert ("GAUC of 'coin' is biased" in caplog.text) == (name == "prequential")  # and one warning is enough
    assert found["prequential"]["coin_gauc"] < 0.4
    assert found["prequential"]["coin_auc"] == pytest.approx(0.5, abs=0.03)
    assert found["frozen"]["coin_gauc"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("view", ["own", "delayed"])
@settings(deadline=None, max_examples=50)
@given(users, gaps, st.floats(0, 5), st.data())
def test_seen_labels_equal_a_loop(view, users, gaps, delay, data):
    """Prevents the check from mixing up people, or positions with events: biased figures would pass without a word."""
    log = make_log(users, gaps)
    asked = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=len(log), max_size=len(log))))
    position = log.visible() if view == "own" else log.visible_before(log.time - delay)
    found = SequenceDataset(log, Candidates(asked, np.minimum(position, log.visible())[asked]), ["y"], max_history=5)
    visible = {
        (event, earlier)
        for event, n in zip(found.candidates.event, found.candidates.position, strict=True)
        for earlier in np.flatnonzero(log.user == log.user[event])[:n]
    }
    assert cautions.sees_evaluated_labels(found) == any(earlier in asked for _, earlier in visible)


def test_workers_and_precision_of_an_evaluation(world, tmp_path, monkeypatch):
    """Prevents the trainer's workers and precision from being ignored, and its weights from being rounded for good."""
    processor, splits, _ = world
    model = tiny_model(processor)
    expected = evaluator.predict(model, splits.test)
    loaders, found = [], []

    def loader(*args, **kwargs):
        loaders.append(kwargs["num_workers"])
        return torch.utils.data.DataLoader(*args, **{**kwargs, "num_workers": 0})

    monkeypatch.setattr("polyrec.data.window_loader.DataLoader", loader)
    weight = next(model.parameters()).detach().clone()
    for options in ({"dataloader_num_workers": 2}, {"bf16": True}, {"bf16_full_eval": True}):
        trainer = PolyRecTrainer(model, arguments(tmp_path, **options), processing_class=processor)
        found.append(trainer.predict(splits.test).values["like"])
    assert loaders == [2, 0, 0]
    np.testing.assert_array_equal(found[0], expected.values["like"])
    for half in found[1:]:
        assert half.dtype == np.float32
        assert 1e-6 < np.abs(half - found[0]).max() < 0.05
    assert torch.equal(next(model.parameters()), weight)
