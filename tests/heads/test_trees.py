"""Trees of pair tasks: what LightGBM says, by torch, from the batch, without a row's own label."""

from __future__ import annotations

import lightgbm
import numpy as np
import pytest
import torch
from model_fixtures import arguments, fit, model_inputs, synthetic_log, tiny_config

from polyrec import PolyRecForRecommendation, PolyRecProcessor, PolyRecTrainer
from polyrec.data.collator import PolyRecCollator
from polyrec.data.neighbours import FOLDS, fold_of
from polyrec.data.trees import DEPTH, as_arrays, grow_trees, known_features
from polyrec.heads._trees import TreeEvidence, read_inputs

OPTIONS = {"num_leaves": 31, "max_depth": DEPTH, "min_data_in_leaf": 20, "verbosity": -1, "num_threads": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    processor, parts = fit(synthetic_log(people=200))
    model = PolyRecForRecommendation(tiny_config(processor))
    args = arguments(tmp_path_factory.mktemp("trees"))
    PolyRecTrainer(model, args, train_dataset=parts.train, processing_class=processor)  # loads them
    return processor, parts, model.eval()


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
    evidence = TreeEvidence(40).eval()
    evidence.load(as_arrays(booster, 30, x.shape[1], base=0.5))
    other, _ = rows(1)
    other[::7, 1] = np.nan
    other[::5] = x[::5]  # numbers that may stand at thresholds
    found = evidence(read_inputs({"x": torch.from_numpy(other)[None]}, [("x", x.shape[1])])) + 0.5
    np.testing.assert_allclose(found.numpy(), booster.predict(other, raw_score=True), atol=1e-5)


def test_trees_of_a_fold_never_saw_its_labels():
    """Cross-fitting that leaks would make training trust trees that know the answer."""
    x, y = rows(0)
    fold = np.arange(len(x)) % FOLDS + 1
    other = y.copy()
    other[fold == 2] = np.random.default_rng(2).permutation(y[fold == 2])
    sets, changed = (grow_trees("regression", x, labels, fold, most=5) for labels in (y, other))
    assert len(sets) == len(changed) == 1 + FOLDS
    for number in range(1 + FOLDS):
        same = np.array_equal(sets[number].leaf, changed[number].leaf)
        assert same == (number == 2), f"set {number}"


def test_nothing_is_grown_on_noise():
    x, _ = rows(0)
    noise = np.random.default_rng(3).normal(size=len(x))
    assert grow_trees("regression", x, noise, np.arange(len(x)) % FOLDS + 1) == []


def test_an_untrained_model_answers_as_its_trees(run):
    """What the batch carries is what trees were grown on: scale, order and missing numbers of every column."""
    _, parts, model = run
    data = parts.test
    batch = PolyRecCollator()(data[0 : len(data)])
    with torch.no_grad():
        logits = model(**model_inputs(batch)).logits
    real = batch["candidate_rows"] >= 0
    known = known_features(data, batch["candidate_rows"][real].numpy())
    x = read_inputs({"x": torch.from_numpy(known)[None]}, [("x", known.shape[1])])
    for task in ("like", "rating"):
        own, start = model.heads[task].trees(x), model.heads[task].output.bias
        assert own.std() > 0.1
        assert (logits[task][real] - start - own).abs().max() < 0.25 * own.std()


def test_a_training_row_reads_the_trees_without_its_user(run):
    """Else the network would learn from evidence that knows the row's label."""
    _, parts, model = run
    batch = PolyRecCollator()(parts.train[0:8])
    real = batch["candidate_rows"] >= 0
    folds = torch.from_numpy(fold_of(parts.train.people()))[batch["candidate_rows"][real]]
    assert torch.equal(batch["user_fold"][:, None].expand_as(real)[real], folds)
    trees = model.heads["rating"].trees
    x = torch.randn(50, 2 * parts.train.statistics.shape[1] + 2)
    fold = torch.arange(50) % (FOLDS + 1)
    found = trees.train()(x, fold)
    for number in range(FOLDS + 1):
        single = TreeEvidence(len(trees.leaf)).eval()
        tables = trees.fold_feature, trees.fold_threshold, trees.fold_leaf
        single.feature, single.threshold, single.leaf = (values[number] for values in tables)
        torch.testing.assert_close(found[fold == number], single(x[fold == number]))
    torch.testing.assert_close(trees.eval()(x, fold), trees(x))  # in evaluation mode all rows read the trees of all


def test_a_saved_model_keeps_its_trees(run, tmp_path):
    """Serving needs no LightGBM and no training rows."""
    processor, parts, model = run
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = PolyRecForRecommendation.from_pretrained(tmp_path).eval()
    loaded = PolyRecProcessor.from_pretrained(tmp_path)
    again.load_trees(loaded)
    batch = model_inputs(PolyRecCollator()(parts.test[0:4]))
    with torch.no_grad():
        for name, logits in model(**batch).logits.items():
            torch.testing.assert_close(again(**batch).logits[name], logits)
    half = PolyRecForRecommendation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(half.heads["like"].trees.threshold, model.heads["like"].trees.threshold)


def test_few_labels_get_no_trees_and_other_features_are_refused(run):
    processor, _, model = run
    few, _ = fit(synthetic_log(people=20))
    assert tiny_config(few).task_configs[1].options.get("trees", 0) == 0
    assert processor.model_config().task_configs[1].options["trees"] > 0
    inputs, model.tree_inputs = model.tree_inputs, model.tree_inputs[1:]
    with pytest.raises(ValueError, match="trees of task 'like' read"):
        model.load_trees(processor)
    model.tree_inputs = inputs
