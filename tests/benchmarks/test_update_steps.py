"""The benchmark of updates: who may have learnt what, and what is compared."""

import itertools
import json
from argparse import Namespace

import common
import numpy as np
import pandas as pd
import pytest
import update
from model_fixtures import synthetic_log

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
    "update": {"epochs": 1, "rate_share": 0.5, "replay": 0.5},
    "grid": {"epochs": [1], "rate_share": [0.1, 0.5]},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("update")
    for name, table in synthetic_log(people=60).items():
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


def test_training_questions_are_about_the_events_asked_for(world):
    """Prevents later events from being trained on, in whichever view."""
    _, protocol = world
    rows = protocol.train | protocol.steps(protocol.test, 4)[0]
    asked = protocol.about(rows)
    np.testing.assert_array_equal(np.unique(asked.candidates.event), np.flatnonzero(rows))
    assert len(asked.candidates.event) == 2 * rows.sum()  # as it was, and delayed


def test_all_systems_report_the_same_steps(world):
    """Prevents gains from being taken between different rows, and the choice of settings from seeing the test part."""
    args, protocol = world
    seen = []
    plain, update.Protocol = update.Protocol, lambda *_: protocol
    score = protocol.score
    protocol.score = lambda model, rows: seen.append(rows) or score(model, rows)
    try:
        report = common.Report(args, CONFIG)
        update.run(args, CONFIG, PLAN, report)
    finally:
        update.Protocol = plain
    report.write()
    found = json.loads(args.output.read_text())
    assert set(found["systems"]) == {"static", "updated", "retrained"}
    assert [set(np.flatnonzero(rows)) <= set(np.flatnonzero(protocol.valid)) for rows in seen[:3]] == [True] * 3
    for key in ("step1/improvement", "step2/like/auc", "mean/rating/rmse"):
        systems = found["systems"]
        sign = -1 if key.endswith("rmse") else 1
        assert found["gain"][key] == pytest.approx(sign * (systems["updated"][key] - systems["static"][key]))
    assert found["systems"]["static"]["cpu_seconds"] == 0
    assert found["ratios"]["most expensive update / retraining"] > 0
    assert len(found["choice"]) == 2
    assert found["choice"][0]["mean_gain"] >= found["choice"][1]["mean_gain"]
