"""Trees of pair tasks: what LightGBM says, by torch, from the batch, beside the network."""

from __future__ import annotations

from dataclasses import replace

import lightgbm
import numpy as np
import pytest
import torch
from model_fixtures import COLUMNS, arguments, fit, model_inputs, synthetic_log, tiny_config

from polyrec import PolyRecForRecommendation, PolyRecProcessor, PolyRecTrainer
from polyrec.data import trees as trees_data
from polyrec.data.collator import PolyRecCollator
from polyrec.data.trees import DEPTH, FORESTS, PairTrees, as_arrays, known_features
from polyrec.evaluation import tree_weight
from polyrec.evaluation.tree_weight import choose_tree_weights
from polyrec.modules.heads._trees import TreeBlend, read_inputs

OPTIONS = {"num_leaves": 31, "max_depth": DEPTH, "min_data_in_leaf": 20, "verbosity": -1, "num_threads": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A log, and a model that was trained for a step and let validation weigh its trees."""
    processor, parts = fit(synthetic_log(users=200))
    model = PolyRecForRecommendation(tiny_config(processor))
    args = arguments(tmp_path_factory.mktemp("trees"), max_steps=1)
    trainer = PolyRecTrainer(model, args, parts.train, parts.valid, processing_class=processor)
    trainer.train()
    return processor, parts, trainer


def rows(seed, known=2000):
    """Numbers, whole numbers that no row lacks, and numbers of which half are missing."""
    drawn = np.random.default_rng(seed)
    x = drawn.normal(size=(known, 6)).astype(np.float32)
    x[:, 1] = np.round(2 * x[:, 1])
    x[drawn.random(known) < 0.5, 2] = np.nan
    x[drawn.random(known) < 0.1, 3] = np.nan
    x[:, 4] = np.where(drawn.random(known) < 0.3, np.nan, 1)  # only whether it is known says something
    y = np.nan_to_num(x[:, 0] * x[:, 1]) + np.isnan(x[:, 2]) - 2.0 * np.isnan(x[:, 4]) + drawn.normal(size=known)
    return x, y


@pytest.mark.parametrize("objective", ["binary", "regression"])
def test_torch_reads_trees_as_lightgbm_does(objective):
    """Missing numbers go the way LightGBM sends them, also those of a feature that no training row lacked."""
    x, y = rows(0)
    y = (y > 0).astype(float) if objective == "binary" else y
    booster = lightgbm.train({**OPTIONS, "objective": objective}, lightgbm.Dataset(x, y), 30)
    trees = TreeBlend(40).eval()
    trees.load(as_arrays(booster, x.shape[1], base=0.5), 30, 1.0)
    other, _ = rows(1)
    other[::7, 1] = np.nan
    other[::5] = x[::5]  # numbers that may stand at thresholds
    found = trees(read_inputs({"x": torch.from_numpy(other)[None]}, [("x", x.shape[1])])) + 0.5
    np.testing.assert_allclose(found.numpy(), booster.predict(other, raw_score=True), atol=1e-5)
    trees.load(as_arrays(booster, x.shape[1], base=0.5), 7, 1.0)
    found = trees(read_inputs({"x": torch.from_numpy(other)[None]}, [("x", x.shape[1])])) + 0.5
    np.testing.assert_allclose(found.numpy(), booster.predict(other, raw_score=True, num_iteration=7), atol=1e-5)


def forests_of(objective, x, y, weight=None):
    """LightGBM models whose mean the trees should be."""
    options = {**trees_data._SETTINGS, "objective": objective, "num_threads": 1}
    data = [lightgbm.Dataset(x, y, weight=weight) for _ in range(FORESTS)]
    return [lightgbm.train({**options, "seed": n}, d, trees_data.MOST // FORESTS) for n, d in enumerate(data)]


def losses(trainer, part):
    """Mean losses of a part by its predictions alone."""
    labels, found = part.labels(), trainer.predictions(part).values
    like, rating = (labels[:, part.task_names.index(name)] for name in ("like", "rating"))
    known, rated = ~np.isnan(like), ~np.isnan(rating)
    p = found["like"][known].astype(float)
    logloss = -np.mean(np.where(like[known] == 1, np.log(p), np.log1p(-p)))
    return {"like": logloss, "rating": np.mean((found["rating"][rated] - rating[rated]) ** 2)}


def test_what_validation_chose_is_what_it_measures(run):
    """Prevents weights of other rows, scales or base rates than those of the answers that are served."""
    _, parts, trainer = run
    heads = trainer.model.heads
    limits = heads["rating"].options
    heads["rating"].options = limits | {"minimum": None, "maximum": None}  # of predictions, not of logits
    served = losses(trainer, parts.valid)
    kept = {name: heads[name].trees.weight.clone() for name in ("like", "rating")}
    for name in kept:
        heads[name].trees.weight.zero_()
    without = losses(trainer, parts.valid)
    for name, weight in kept.items():
        heads[name].trees.weight.copy_(weight)
    heads["rating"].options, spread = limits, limits["std"] ** 2
    for name, scale in (("like", 1.0), ("rating", spread)):
        chosen = trainer.validated[name]
        assert chosen.weight > 0
        assert chosen.value < chosen.without
        assert without[name] == pytest.approx(chosen.without * scale, rel=1e-4)
        assert served[name] == pytest.approx(chosen.value * scale, rel=1e-4)
        assert {line[f"trees_{name}"] for line in trainer.state.log_history if f"trees_{name}" in line} == {
            chosen.weight
        }


def test_of_several_sets_the_named_one_weighs_and_none_is_told(run, tmp_path, caplog):
    """Prevents sets by name, and none at all, from leaving linear terms and trees without a say, and without a word."""
    processor, parts, trainer = run
    own = choose_tree_weights(trainer.model, processor, parts.test)["like"][1]
    assert own.rows != trainer.validated["like"].rows
    for sets, metric, rows, message in (
        ({"late": parts.test, "valid": parts.valid}, "eval_valid_mean_improvement", trainer.validated["like"].rows, ""),
        ({"valid": parts.valid, "valid_late": parts.test}, "valid_late_like_auc", own.rows, ""),
        (
            {"late": parts.test, "valid": parts.valid},
            None,
            own.rows,
            "'late', the first of 2, weighs the linear terms of 'next_item', the trees of 'like', ",
        ),
        (
            None,
            "like_auc",
            None,
            "no validation rows weigh the linear terms of 'next_item', the trees of 'like', the trees of 'rating'",
        ),
        ({}, "like_auc", None, "no validation rows weigh"),
    ):
        caplog.clear()
        args = arguments(tmp_path, metric_for_best_model=metric)
        model = PolyRecForRecommendation(tiny_config(processor))
        other = PolyRecTrainer(model, args, parts.train, sets, processing_class=processor)
        other.weigh_by_validation()
        assert (other.validated["like"].rows if other.validated else None) == rows
        assert (message in caplog.text) if message else not caplog.text


def test_answers_are_means_of_the_network_and_lightgbm(run):
    """What the batch carries is what trees were grown on: scale, order and missing numbers of every column."""
    _, parts, trainer = run
    train, data = parts.train, parts.test
    known = ~np.isnan(train.labels()) & train.own_view[:, None]
    column = train.task_names.index("like")
    rows = np.flatnonzero(known[:, column])
    y = train.labels()[rows, column]
    forests = forests_of("binary", known_features(train, rows), y)
    chosen, head = trainer.validated["like"], trainer.model.heads["like"]
    known = known_features(data, np.arange(data.num_candidates))
    each = [b.predict(known, raw_score=True, num_iteration=chosen.trees // FORESTS) for b in forests]
    theirs = np.mean(each, axis=0)
    served = trainer.predictions(data).values["like"].astype(float)
    weight = head.trees.weight.clone()
    head.trees.weight.zero_()
    own = trainer.predictions(data).values["like"].astype(float)
    head.trees.weight.copy_(weight)
    expected = (1 - chosen.weight) * np.log(own / (1 - own)) + chosen.weight * theirs
    np.testing.assert_allclose(served, 1 / (1 + np.exp(-expected)), atol=1e-6)


def test_weights_scales_and_context_of_the_model_count(tmp_path):
    """Prevents trees on columns that the model does not read, in units of their own, or of rows that all weigh alike."""
    log = synthetic_log(users=200)
    drawn = np.random.default_rng(5)
    log["interactions"]["importance"] = drawn.integers(1, 5, len(log["interactions"]["user_id"])).astype(float)
    columns = {**COLUMNS, "weight": {"rating": "importance"}, "statistics_only": ["context.surface"]}
    tasks = [{"name": "rating", "head": "regression", "options": {"mean": 1.0, "std": 10.0}}]
    processor, parts = fit(log, tasks, columns=columns)
    model = PolyRecForRecommendation(tiny_config(processor))
    trainer = PolyRecTrainer(
        model, arguments(tmp_path, max_steps=1), parts.train, parts.valid, processing_class=processor
    )
    trainer.train()
    context = [name for name, _ in model.tree_inputs]
    head, train = model.heads["rating"], parts.train
    rows = np.flatnonzero(train.own_view & ~np.isnan(train.labels()[:, 0]))
    y = train.labels()[rows, 0]
    weight = train.log.sample_weight["rating"][train.candidates.event[rows]]
    forests = forests_of("regression", known_features(train, rows, context), (y - 1) / 10, weight)
    assert sorted(set(weight)) == [1, 2, 3, 4]
    assert "surface" in train.log.candidate_features
    assert "surface" not in context
    trees = processor.pair_trees.forests(head.task, context, 1.0, 10.0).grow(trees_data.MOST)
    blend = TreeBlend(len(trees.leaf)).eval()
    blend.load(trees, len(trees.leaf), 1.0)
    known = known_features(parts.test, np.arange(parts.test.num_candidates), context)
    found = blend(read_inputs({"x": torch.from_numpy(known)[None]}, [("x", known.shape[1])]))
    np.testing.assert_allclose(found.numpy(), np.mean([b.predict(known) for b in forests], axis=0), atol=1e-4)
    assert trainer.validated["rating"].value < 0.05  # of labels between 1 and 5, in units of 10


def test_training_does_not_read_trees(run):
    """Else the network would learn from what knows the row's label, and every step would pay for it."""
    _, parts, trainer = run
    batch = model_inputs(PolyRecCollator()(parts.train[0:4]))
    model = trainer.model.train()
    found = []
    for weight in (0.0, 1.0):
        kept = model.heads["rating"].trees.weight.clone()
        model.heads["rating"].trees.weight.fill_(weight)
        torch.manual_seed(0)
        found.append(model(**batch).logits["rating"])
        model.heads["rating"].trees.weight.copy_(kept)
    model.eval()
    assert torch.equal(*found)


def test_trees_that_do_not_help_have_no_say(run):
    """Prevents trees beside a network that knows better."""
    processor, parts, trainer = run
    labels = parts.valid.labels()[:, parts.valid.task_names.index("like")]
    head, known = trainer.model.heads["like"], known_features(parts.valid, np.arange(parts.valid.num_candidates))
    context = [name for name, _ in trainer.model.tree_inputs]
    trees = processor.pair_trees.forests(head.task, context).grow(trees_data.SOME)
    sure = torch.from_numpy(np.where(labels == 1, 40.0, -40.0)).float()
    found = tree_weight._chosen(head, trees, known, labels, sure)
    assert found.weight == 0
    assert found.value == found.without


def test_a_saved_model_keeps_its_trees(run, tmp_path):
    """Serving needs no LightGBM and no training rows."""
    _, parts, trainer = run
    model = trainer.model.eval()
    model.save_pretrained(tmp_path)
    again = PolyRecForRecommendation.from_pretrained(tmp_path).eval()
    batch = model_inputs(PolyRecCollator()(parts.test[0:4]))
    with torch.no_grad():
        expected = model(**batch).logits
        for name, logits in expected.items():
            torch.testing.assert_close(again(**batch).logits[name], logits)
    assert again.heads["like"].trees.speaks
    half = PolyRecForRecommendation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(half.heads["like"].trees.threshold, model.heads["like"].trees.threshold)


def test_few_labels_and_coupled_tasks_get_no_trees_and_other_features_are_refused(run):
    processor, parts, trainer = run
    few, _ = fit(synthetic_log(users=20))
    assert tiny_config(few).task_configs[1].options.get("trees", 0) == 0
    assert processor.model_config().task_configs[1].options["trees"] > 0
    coupled = [replace(t, parent="like", coupling="aitm") if t.name == "rating" else t for t in processor.tasks]
    assert PairTrees(parts.train, coupled).tasks == []
    model = trainer.model
    inputs, model.tree_inputs = model.tree_inputs, model.tree_inputs[1:]
    with pytest.raises(ValueError, match="trees of task 'like' read"):
        choose_tree_weights(model, processor, parts.valid)
    model.tree_inputs = inputs


def test_more_trees_are_grown_where_the_last_ones_still_help(monkeypatch):
    """Prevents a large log from being held to the number of trees that a small one needs, and a small one from growing
    trees that nothing reads."""
    drawn = np.random.default_rng(0)
    events, users = 6000, 300
    item, hour = drawn.integers(0, 40, events), drawn.random(events).astype(np.float32)
    wave = 2 * np.sin(12 * hour)
    log = {
        "user_id": np.repeat(np.arange(users), events // users), "item_id": item, "timestamp": np.arange(events),
        "hour": hour, "stars": 3 + wave + 0.1 * drawn.normal(size=events),
    }  # fmt: skip
    processor = PolyRecProcessor.fit(
        log, tasks=[{"name": "stars", "head": "regression"}], columns={"context": ["hour"]}, verbose=False
    )
    parts = processor.split(log)
    model = PolyRecForRecommendation(tiny_config(processor))
    assert model.heads["stars"].options["trees"] == trees_data.MOST
    monkeypatch.setattr(tree_weight, "SOME", 32)
    trees, said = choose_tree_weights(model, processor, parts.valid)["stars"]
    assert len(trees.leaf) >= 64
    model.heads["stars"].options["trees"] = 16
    capped, worse = choose_tree_weights(model, processor, parts.valid)["stars"]
    assert len(capped.leaf) == worse.trees == 16
    assert said.value < 0.8 * worse.value


def test_trees_of_many_rows_are_grown_on_some_that_are_drawn(monkeypatch):
    """Prevents trees of a large log from seeing positives alone where each list begins with its positive."""
    events = 5000
    log = {
        "user_id": np.repeat(np.arange(events // 10), 10),
        "item_id": np.arange(events) % 7,
        "timestamp": np.repeat(np.arange(events // 5), 5),
        "like": np.tile([1, 0, 0, 0, 0], events // 5),
    }
    processor = PolyRecProcessor.fit(log, tasks=[{"name": "like", "head": "binary"}], verbose=False)
    processor.split(log)
    monkeypatch.setattr(trees_data, "_MOST_ROWS", 800)
    forests = processor.pair_trees.forests(processor.tasks[0], [])
    assert len(forests._y) == 800
    assert forests._y.mean() == pytest.approx(0.2, abs=0.05)
