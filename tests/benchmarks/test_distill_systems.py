"""The benchmark of distillation: who learns what of whom, and how shares and gaps are counted."""

from argparse import Namespace

import common
import distill
import pandas as pd
import pytest
import yaml
from model_fixtures import synthetic_log

CONFIG = {
    "columns": {"context": {"surface": "categorical"}},
    "processor": {"max_history": 8},
    "split": {},
    "tasks": [
        {"name": "next_item", "head": "retrieval"},
        {"name": "like", "head": "binary", "label": "rating >= 4"},
        {"name": "rating", "head": "regression"},
    ],
    "model": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "candidate_attention_heads": 2},
    "training": {"num_train_epochs": 1, "per_device_train_batch_size": 8},
}
PLAN = {
    "protocols": {
        "A": {
            "base": "own.yaml",
            "split": {"by": "time"},
            "teacher": {"members": 2, "top_k": 100, "model": {"hidden_size": 16}},
            "student": {"model": {"dropout": 0.0}},
            "alone": {"model": {"dropout": 0.3}},
            "small": {"model": {"item_embedding_rank": 2}},
            "plan": {"next_item": {"alpha": 0.9}, "like": {"alpha": 0.3}},
        }
    },
    "classical": {"name": "ease", "protocols": ["A"]},
    "changes": {"lists_only": {"only": ["next_item"]}, "pairs_only": {"without": ["next_item"]}},
}
SYSTEMS = ["teacher", "student_alone", "student", "stored", "small", "classical", "lists_only"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill")
    for name, table in synthetic_log(users=30).items():
        pd.DataFrame(table).to_parquet(folder / f"{name}.parquet")
    (folder / "own.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    args = Namespace(data=folder, threads=1, output=folder / "r.json", seeds=1, systems=SYSTEMS, epochs=1)
    args.protocols = ["A"]
    report = common.Report(args, PLAN)
    home, common.HERE = common.HERE, folder
    try:
        distill.run(args, PLAN, report)
        plans = distill.Protocol("A", args, PLAN)
    finally:
        common.HERE = home
    return report.content, plans


def test_each_system_is_what_the_file_says(report):
    """Prevents a student from another plan or size than its name says, and a test part that nobody is judged by."""
    content, protocol = report
    assert set(content["systems"]) == set(SYSTEMS)
    assert set(protocol.distillation("lists_only")["tasks"]) == {"next_item"}
    assert set(protocol.distillation("pairs_only")["tasks"]) == {"like"}
    assert protocol.distillation("student_alone") is None
    assert protocol.configured("student", "alone")["model"]["dropout"] == 0.3
    sizes = {name: found.get("A/parameters") for name, found in content["systems"].items()}
    assert sizes["small"] < sizes["student"] == sizes["student_alone"] < sizes["teacher"] / 2
    assert sizes["classical"] is None
    for name in set(SYSTEMS) - {"classical"}:
        assert {"A/next_item/ndcg@10", "A/like/auc", "A/rating/rmse"} <= set(content["systems"][name])


def test_stored_answers_teach_what_a_live_teacher_does(report):
    """Prevents files from other answers than those in memory."""
    stored, student = (report[0]["systems"][name] for name in ("stored", "student"))
    for key in ("A/next_item/ndcg@10", "A/like/auc", "A/rating/rmse"):
        assert stored[key] == pytest.approx(student[key], abs=0.01)
    assert report[0]["ratios"]["A/train_cpu_seconds, stored / alone, per epoch"] > 0


def test_shares_and_gaps_are_counted_from_the_constant(report):
    """Prevents a share of an AUC from counting the half that chance has, and a gap within the noise from counting."""
    keys = ["A/next_item/ndcg@10", "A/like/auc", "A/rating/rmse"]

    def system(values, std=0.0):
        return dict(zip(keys, values, strict=True)) | {"std": dict.fromkeys(keys, std), "A/parameters": 1}

    content = {
        "systems": {
            "teacher": system([0.2, 0.8, 0.9]),
            "student": system([0.19, 0.77, 0.92], 0.01),
            "student_alone": system([0.16, 0.795, 0.98], 0.01),
        },
        "ratios": {},
    }
    distill.compare(Namespace(content=content), {keys[0]: 0.0, keys[1]: 0.5, keys[2]: 1.1})
    assert content["kept"] == pytest.approx({keys[0]: 0.95, keys[1]: 0.9, keys[2]: 0.9})
    assert content["gap_closed"] == pytest.approx({keys[0]: 0.75, keys[2]: 0.75})
    assert content["ratios"]["kept_min"] == pytest.approx(0.9)
    assert content["ratios"]["gap_closed_mean"] == pytest.approx(0.75)
