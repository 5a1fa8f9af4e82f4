"""The benchmark of updates: who may have learnt what, and what is compared."""

import itertools
import json
from argparse import Namespace

import common
import fitting
import numpy as np
import pandas as pd
import pytest
import update
from model_fixtures import synthetic_log

from polyrec.evaluation import evaluator

CONFIG = {
    "columns": {"context": {"surface": "categorical"}},
    "processor": {"max_history": 8},
    "split": {"max_delay": 3000.0},
    "tasks": [
        {"name": "next_item", "head": "retrieval"},
        {"name": "like", "head": "binary", "label": "rating >= 4"},
        {"name": "love", "head": "binary", "label": "rating == 5"},
        {"name": "rating", "head": "regression"},
    ],
    "model": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "candidate_attention_heads": 2},
    "training": {"num_train_epochs": 2, "metric_for_best_model": "mean_improvement", "per_device_train_batch_size": 8},
}
PLAN = {
    "steps": 2,
    "update": {"epochs": 1, "rate_share": 0.5, "replay": 0.5, "members": 2},
    "rehearsal": {"cuts": [0.7], "epochs": 1},
    "grid": {"epochs": [1], "members": [1], "rate_share": [0.1, 0.5]},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("update")
    for name, table in synthetic_log(users=60).items():
        pd.DataFrame(table).to_parquet(folder / f"{name}.parquet")
    args = Namespace(data=folder, threads=1, output=folder / "r.json", seeds=1, systems=list(update.SYSTEMS))
    return args, update.Protocol(args, CONFIG)


def test_steps_cut_a_part_in_the_order_of_time(world):
    """Prevents an update from learning what it is asked next."""
    _, protocol = world
    steps = protocol.steps(protocol.test, 4)
    np.testing.assert_array_equal(np.sum(steps, axis=0), protocol.test)
    for earlier, later in itertools.pairwise(steps):
        assert protocol.log.time[earlier].max() <= protocol.log.time[later].min()


def test_shares_of_time_are_those_of_the_split(world):
    """Prevents a rehearsal from reaching into the test part, and its tenths from overlapping."""
    _, protocol = world
    parts = [protocol.between(0, 0.8), protocol.between(0.8, 0.9), protocol.between(0.9, 1)]
    for own, part in zip(parts, (protocol.train, protocol.valid, protocol.test), strict=True):
        assert (own != part).sum() <= 2  # events of the same second at a border
    np.testing.assert_array_equal(np.sum(parts, axis=0), 1)


def test_training_questions_are_about_the_events_asked_for(world):
    """Prevents later events from being trained on, in whichever view."""
    _, protocol = world
    rows = protocol.train | protocol.steps(protocol.test, 4)[0]
    asked = protocol.about(rows)
    np.testing.assert_array_equal(np.unique(asked.candidates.event), np.flatnonzero(rows))
    assert len(asked.candidates.event) == 2 * rows.sum()  # as it was, and delayed


def test_between_updates_nothing_of_the_step_is_known(world):
    """Prevents a step's own events, or those after a model's training, from being visible to who was not told."""
    _, protocol = world
    model = fitting.new_trainer(protocol.processor, protocol.data, protocol.config, "unused", 0).model
    asked = []
    predict = evaluator.predict
    try:
        evaluator.predict = lambda model, dataset: asked.append(dataset) or predict(model, dataset)
        step = protocol.between(0.5, 1.0)
        for begin in (None, step, protocol.between(0.3, 0.5)):
            protocol.ask(model, step, begin)
    finally:
        evaluator.predict = predict
    log = protocol.log
    for dataset, hidden in zip(asked, (None, step, protocol.between(0.3, 0.5)), strict=True):
        candidates = dataset.candidates
        latest = log.offsets[log.user[candidates.event]] + candidates.position - 1
        seen = latest[candidates.position > 0]
        if hidden is None:
            assert (log.time[seen] >= log.time[step].min()).any()
        else:
            assert (log.time[seen] < log.time[hidden].min()).all()


def test_all_systems_report_the_same_steps(world):
    """Prevents gains from being taken between different rows, and the choice of settings from seeing the test part."""
    args, protocol = world
    seen = []
    plain, update.Protocol = update.Protocol, lambda *_: protocol
    ask = protocol.ask
    protocol.ask = lambda model, rows, begin=None: seen.append(rows) or ask(model, rows, begin)
    try:
        report = common.Report(args, CONFIG)
        update.run(args, CONFIG, PLAN, report)
    finally:
        update.Protocol = plain
    report.write()
    found = json.loads(args.output.read_text())
    assert set(found["systems"]) == {"static", "updated", "retrained"}
    rehearsed = len(PLAN["grid"]["rate_share"]) * PLAN["steps"] + PLAN["steps"]
    assert [bool((rows & protocol.test).any()) for rows in seen[: rehearsed + 1]] == [False] * rehearsed + [True]
    for key in ("step1/improvement", "step2/like/auc", "mean/rating/rmse"):
        systems = found["systems"]
        sign = -1 if key.endswith("rmse") else 1
        assert found["gain"][key] == pytest.approx(sign * (systems["updated"][key] - systems["static"][key]))
    assert found["systems"]["static"]["cpu_seconds"] == 0
    assert found["ratios"]["most expensive update / retraining"] > 0
    assert set(found["intervals"]) == {"updated", "retrained", "between/updated", "between/retrained"}
    for mode in update.MODES:
        for step, interval in enumerate(found["intervals"][f"{mode}updated"], start=1):
            assert interval["gain"] == pytest.approx(found["gain"][f"step{step}/{mode}improvement"], abs=1e-6)
            assert interval["low"] <= interval["gain"] <= interval["high"]
    assert len(found["choice"]) == 2
    first, second = ((row["won"], row["mean_gain"]) for row in found["choice"])
    assert first >= second
    assert len(found["forgetting"][0]) == 2  # steps
    assert all(row["slice"] == "valid" for row in found["forgetting"][0][-1].values())
