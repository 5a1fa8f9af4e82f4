"""Ratios to what can be perfect: a task that cannot be judged is left out and said to be, and nothing explodes."""

import logging
import math
import warnings

import numpy as np
import pytest
from model_fixtures import TASKS, arguments, fit, synthetic_log, tiny_model

from polyrec import PolyRecProcessor, PolyRecTrainer
from polyrec.core.registry import HEADS
from polyrec.distillation.gating import select_alpha
from polyrec.evaluation import cautions, evaluator
from polyrec.evaluation.comparison import Measured, MetricComparison, TaskComparison
from polyrec.evaluation.comparison_report import _percent
from polyrec.evaluation.report import compare_with_baselines, format_report
from polyrec.modules.heads.base import TaskHead
from polyrec.training.callbacks import watched_metric
from polyrec.training.forgetting import fall, falls_beyond, forgetting

HEADS_WITH_CONSTANTS = ["binary", "regression", "ordinal", "multiclass", "count", "quantile", "watch_time"]


@pytest.mark.parametrize("head", HEADS_WITH_CONSTANTS)
def test_a_constant_label_says_nothing_of_a_task(head, caplog):
    """Prevents 1 - loss / 1e-12: a mean of -20,000 chose the first epoch, however much the other tasks improved."""
    cautions.warn_of_constant.cache_clear()
    names, ones = HEADS.get(head).metrics, np.ones(4)
    details = np.full((4, 3), 1 / 3) if "class_logloss" in names else np.zeros((4, 3))
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        found, better = evaluator.pair_metrics(names, ones, np.full(4, 0.9), np.arange(4), "a", details)
    assert math.isnan(better)
    assert len(found) > 0
    assert ["'a': all labels of the evaluated rows are 1" in r.message for r in caplog.records] == [True]


def test_the_mean_is_that_of_the_tasks_that_can_be_judged(tmp_path):
    """Prevents a task whose positives all lie in training from choosing the weights of all others."""
    log = synthetic_log()
    rows = log["interactions"]
    rows["buy"] = np.where(np.arange(len(rows["item_id"])) % 10 == 0, 1.0, 0.0)
    tasks = [*TASKS, {"name": "buy", "head": "binary"}]
    processor = PolyRecProcessor.fit(**log, tasks=tasks, max_history=8)
    parts = processor.split(rows)
    parts.valid.log.labels[parts.valid.candidates.event, 3] = 0.0
    model = tiny_model(processor)
    found = PolyRecTrainer(model, arguments(tmp_path), None, parts.valid, processor).evaluate()
    labels, answers = parts.valid.labels().astype(float), evaluator.predict(model, parts.valid)
    known = ~np.isnan(labels[:, 1])
    rate = labels[known, 1].mean()
    constant = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    rating = labels[known, 2]
    expected = [
        1 - found["eval_like_logloss"] / constant,
        1 - found["eval_rating_rmse"] / rating.std(),
        found["eval_next_item_ndcg@10"],
    ]
    assert found["eval_mean_improvement"] == pytest.approx(np.mean(expected))
    assert math.isnan(evaluator.improvements(model, parts.valid, answers)["buy"])
    parts.valid.log.labels[:] = np.nan
    nothing = evaluator.evaluate(model, parts.valid, evaluator.predict(model, parts.valid))
    assert math.isnan(nothing["mean_improvement"])  # there, so that a trainer that asks for it does not stop


def test_falls_of_what_was_nearly_perfect_or_nothing():
    """Prevents an update from being refused because an error of 1e-9 became 1e-6, and divisions by 0."""
    assert fall("rmse", 0.0, 1e-6) == pytest.approx(1e-4)
    assert fall("logloss", 1e-9, 1e-6) < 1e-3
    assert fall("ndcg@10", 0.002, 0.001) == pytest.approx(0.5)  # small, and a real loss
    assert fall("recall@10", 0.0, 0.0) == 0.0
    before, after = ({"old": {"like": {"auc": a, "logloss": b}}} for a, b in ((np.nan, 1e-9), (np.nan, 1e-6)))
    assert falls_beyond(before, after, 0.02) == []
    assert forgetting(tiny_model(fit()[0]), before, after) == {}


def test_relative_gains_over_nearly_nothing_are_not_given():
    """Prevents a report of +1,000,000% where the other model's error is next to 0."""
    values = {"all": [0.5], "only_like": [1e-9]}
    task = TaskComparison("binary", 3, 3, "logloss", {"logloss": MetricComparison(False, values)})
    measured = Measured(task, {"logloss": {name: np.full(9, v[0]) for name, v in values.items()}})
    effect = measured.effect("logloss", "all", "only_like", 0.95)
    assert effect.gain == pytest.approx(-0.5)
    assert math.isnan(effect.relative)
    assert math.isnan(effect.relative_low)
    assert _percent(effect.relative) == "-"


def test_a_metric_that_is_0_before_and_after():
    """Prevents a division by 0 that stops `polyrec retrain`: a ranking metric of few new events is often 0 twice."""
    values = {"after": [0.0], "before": [0.0]}
    task = TaskComparison("ranking", 3, 3, "ndcg@10", {"ndcg@10": MetricComparison(True, values)})
    effect = Measured(task, {"ndcg@10": dict.fromkeys(values, np.zeros(9))}).effect("ndcg@10", "after", "before", 0.95)
    assert (effect.gain, effect.low, effect.high, effect.verdict) == (0.0, 0.0, 0.0, "unclear")
    assert math.isnan(effect.relative)


def test_a_fall_without_an_interval_counts():
    """Prevents a metric that cannot be resampled from falling to nothing unseen, where only certain falls count."""
    before, after = ({"new": {"like": {"auc": auc, "logloss": loss}}} for auc, loss in ((0.8, 0.5), (0.4, 0.6)))
    chance = {"new": {"like": {"logloss": {"high": 0.1}}}}
    assert [row["metric"] for row in falls_beyond(before, after, 0.05, chance)] == ["auc"]
    assert [row["metric"] for row in falls_beyond(before, after, 0.6, chance)] == []
    unknown = {"new": {"like": {"logloss": {"high": math.nan}}}}
    assert [row["metric"] for row in falls_beyond(before, after, 0.05, unknown)] == ["auc", "logloss"]
    assert [row["metric"] for row in falls_beyond(before, after, 0.05, {"new": {}})] == ["auc", "logloss"]


def test_a_teacher_that_cannot_be_judged_keeps_its_alpha():
    """Prevents NaN from reading as `no better than a constant`."""
    assert select_alpha(0.5, float("nan"), 0.0, float("nan")).alpha == 0.5


def test_every_head_has_a_metric_by_which_it_may_stop():
    """Prevents tasks of some kinds from never stopping, and their fine-tuning from never keeping an epoch."""
    for name in HEADS.names():
        head: type[TaskHead] = HEADS.get(name)
        metrics = {f"eval_a_{metric}": 0.5 for metric in head.metrics}
        assert watched_metric("eval_a", metrics) is not None, name


def test_no_column_without_a_number():
    """Prevents `All-NaN axis` warnings and a column of nan GAUC where each user has one row."""
    log = synthetic_log()
    processor = PolyRecProcessor.fit(**log, tasks=TASKS, max_history=8)
    parts = processor.split(log["interactions"], by="leave_one_out")
    model = tiny_model(processor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictions = evaluator.predict(model, parts.test)
        report = compare_with_baselines(model, parts.train, parts.test, predictions, resamples=5)
        text = format_report(report)
        assert not any("gauc" in name for name in evaluator.evaluate(model, parts.test, predictions))
    assert "gauc" not in text
    assert "nan" not in text
    assert "logloss" in text
