"""Trees and scorers as teachers: units, rows that were learnt, and features that are known strictly before."""

import numpy as np
import pytest
import torch
from model_fixtures import fit, synthetic_log
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from teacher_fixtures import batch_of

from polyrec.core.schema import TaskConfig
from polyrec.data.splits import LeakageError
from polyrec.data.trees import known_features
from polyrec.distillation.pair_outputs import canonical_probabilities
from polyrec.distillation.scorers import Scorer, ScorerTeacher
from polyrec.distillation.trees import LightGBMTeacher

TASKS = [
    {"name": "like", "head": "binary", "label": "rating >= 4"},
    {"name": "rating", "head": "regression"},
    {"name": "stars", "head": "ordinal", "label": "rating"},
    {"name": "kind", "head": "multiclass", "label": "rating"},
    {"name": "number", "head": "count", "label": "rating"},
    {"name": "spread", "head": "quantile", "label": "rating", "options": {"quantiles": [0.25, 0.5, 0.75]}},
]
QUICK = {"num_leaves": 8, "min_data_in_leaf": 5, "num_threads": 1, "bagging_freq": 0, "feature_fraction": 1.0}


@pytest.fixture(scope="module")
def case():
    """A processor and the split of a log in which people like one genre."""
    processor, parts = fit(synthetic_log(users=120), TASKS, max_history=8)
    return processor, parts


def test_probabilities_become_exchange_units():
    """Prevents log odds of another event than the label: the head's own formulas give the probabilities back."""
    random = np.random.default_rng(0)
    p = softmax(random.normal(size=(50, 4)), axis=1)
    np.testing.assert_allclose(expit(canonical_probabilities(p[:, 0], TaskConfig("a", "binary"))), p[:, 0])
    both = np.stack([1 - p[:, 0], p[:, 0]], 1)
    np.testing.assert_allclose(expit(canonical_probabilities(both, TaskConfig("a", "binary"))), p[:, 0])
    np.testing.assert_allclose(softmax(canonical_probabilities(p, TaskConfig("a", "multiclass")), axis=1), p)
    further = expit(canonical_probabilities(p, TaskConfig("a", "ordinal")))  # P(y > r_k | y >= r_k)
    again = np.cumprod(np.concatenate([np.ones((50, 1)), further], 1), 1) * np.concatenate(
        [1 - further, np.ones((50, 1))], 1
    )
    np.testing.assert_allclose(again, p, atol=1e-9)
    assert np.isfinite(canonical_probabilities(np.array([[1.0, 0, 0], [0, 0, 1]]), TaskConfig("a", "ordinal"))).all()
    with pytest.raises(ValueError, match="has no probabilities"):
        canonical_probabilities(p[:, 0], TaskConfig("a", "regression"))


def test_features_are_known_before_the_answer(case):
    """Prevents a candidate's own label, or a later event, from being among what is scored."""
    processor, parts = case
    tables = synthetic_log(users=120)
    held = np.concatenate([parts.valid.candidates.event, parts.test.candidates.event])
    changed = {**tables["interactions"], "rating": tables["interactions"]["rating"].copy()}
    changed["rating"][parts.test.log.row[held]] = 1.0
    other = processor.split(changed)
    rows = np.arange(parts.train.num_candidates)
    np.testing.assert_array_equal(known_features(parts.train, rows), known_features(other.train, rows))
    processor.split(tables["interactions"])
    assert known_features(parts.train, rows).shape == (len(rows), parts.train.statistics.shape[1] + 1)


def test_trees_answer_in_the_units_of_every_head(case):
    """Prevents a kind of task from getting raw scores of another scale."""
    pytest.importorskip("lightgbm")
    processor, parts = case
    teacher = LightGBMTeacher(parts.train, processor, folds=1, trees=12, parameters={**QUICK, "learning_rate": 0.15})
    teacher.prepare(parts.train, processor)
    one, two, other = (LightGBMTeacher(parts.train, processor, ["like"], 1, n, QUICK).revision for n in (2, 2, 3))
    assert one == two != other
    rows = np.arange(parts.test.num_candidates)
    found = {task: teacher.numbers(task, parts.test, rows) for task in teacher.pair_tasks}
    label = parts.test.labels()[:, 1]
    known = ~np.isnan(label)
    rating = label[known]
    assert {task: values.shape[1:] for task, values in found.items()} == {
        "like": (), "rating": (), "stars": (4,), "kind": (6,), "number": (), "spread": (3,),
    }  # fmt: skip
    assert roc_auc_score(rating >= 4, found["like"][known]) > 0.8
    constant = np.abs(rating - rating.mean()).mean()
    above = np.cumprod(expit(found["stars"]), 1)
    expected = {
        "rating": found["rating"],
        "stars": 1 + above.sum(1),
        "kind": softmax(found["kind"], axis=1) @ np.arange(6),
        "number": np.exp(found["number"]),
        "spread": found["spread"][:, 1],
    }
    for task, values in expected.items():
        assert np.abs(values[known] - rating).mean() < 0.9 * constant, task
    assert (np.diff(found["spread"], axis=1) >= 0).all()
    batch = batch_of(parts.train)
    answers = teacher.score(batch)["teacher_logits"]
    real = batch["candidate_ids"] > 0
    assert torch.isfinite(answers["stars"][real]).all()
    assert torch.isnan(answers["like"][~real]).all()


def test_training_rows_are_answered_by_trees_that_have_not_learnt_them(case):
    """Prevents the teacher from repeating the labels of its own training rows as if it knew them."""
    pytest.importorskip("lightgbm")
    processor, parts = case
    random = np.random.default_rng(0)
    noise = random.normal(size=(len(parts.train.log), 3)).astype(np.float32)
    chance = {"features": lambda dataset, rows: noise[dataset.candidates.event[rows]]}
    rows = np.arange(parts.train.num_candidates)
    y = parts.train.labels()[:, 0]
    known = ~np.isnan(y)

    def auc(folds):
        teacher = LightGBMTeacher(parts.train, processor, ["like"], folds, 60, {**QUICK, "num_leaves": 31}, **chance)
        return roc_auc_score(y[known], teacher.numbers("like", parts.train, rows)[known])

    assert auc(1) > 0.9  # memorised, from features that say nothing
    assert abs(auc(4) - 0.5) < 0.1


def test_scorers_of_scikit_learn(case):
    """Prevents a classifier's answers from reaching other rows or from losing the fold between units."""
    processor, parts = case
    rows = np.flatnonzero(~np.isnan(parts.train.labels()[:, 0]))
    x, y = np.nan_to_num(known_features(parts.train, rows)), parts.train.labels()[rows, 0]
    classifier = LogisticRegression(max_iter=500).fit(x, y)

    def clean(dataset, rows):
        return np.nan_to_num(known_features(dataset, rows))

    scorers = {"like": Scorer(classifier.predict_proba), "rating": Scorer(lambda f: 3 + 0 * f[:, 0], "number")}
    teacher = ScorerTeacher(scorers, processor, clean, fitted_on=parts.train)
    teacher.prepare(parts.train, processor)
    batch = batch_of(parts.train)
    answers = teacher.score(batch)["teacher_logits"]
    real = batch["candidate_ids"] > 0
    expected = classifier.decision_function(clean(parts.train, batch["candidate_rows"][real].numpy()))
    np.testing.assert_allclose(answers["like"][real].clip(-8, 8), expected.clip(-8, 8), atol=1e-3)
    assert (answers["rating"][real] == 3).all()


def test_what_is_refused(case):
    """Prevents scorers of judged rows, of unknown rows, of wrong shapes and of NaN from teaching."""
    processor, parts = case
    one = {"like": Scorer(lambda f: f[:, 0] * 0 + 0.5)}
    with pytest.raises(LeakageError, match="does not say which rows"):
        ScorerTeacher(one, processor).prepare(parts.train, processor)
    ScorerTeacher(one, processor, trust=True).prepare(parts.train, processor)
    with pytest.raises(LeakageError, match="was trained on"):
        ScorerTeacher(one, processor, fitted_on=parts.test).prepare(parts.train, processor)
    wide = ScorerTeacher({"stars": Scorer(lambda f: f[:, :2], "log odds")}, processor, trust=True)
    wide.prepare(parts.train, processor)
    with pytest.raises(ValueError, match=r"outputs of shape \[\d+, 2\] for \d+ candidates: they must be \[\d+, 4\]"):
        wide.score(batch_of(parts.train))
    broken = ScorerTeacher({"like": Scorer(lambda f: f[:, 0] * np.nan)}, processor, trust=True)
    broken.prepare(parts.train, processor)
    with pytest.raises(ValueError, match="gives NaN"):
        broken.score(batch_of(parts.train))
    with pytest.raises(ValueError, match="unknown units 'odds'"):
        Scorer(np.sum, "odds")
    with pytest.raises(ValueError, match="unknown pair task 'likes'; .*did you mean 'like'"):
        ScorerTeacher({"likes": one["like"]}, processor)
    bare, bare_parts = fit(synthetic_log(users=20), TASKS[:1], statistics=False, columns={})
    with pytest.raises(ValueError, match="neither running statistics nor context columns"):
        known_features(bare_parts.train, np.arange(3))
    assert bare.statistics is None


def test_trees_say_what_is_missing(case, monkeypatch):
    """Prevents an import error from the depth of a fit."""
    processor, parts = case
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"trees need lightgbm: pip install 'polyrec\[classical\]'"):
        LightGBMTeacher(parts.train, processor)
