"""Splits that leave a set empty: said and measured on what there is, or refused before any training."""

import json

import pandas as pd
import pytest
import yaml
from model_fixtures import synthetic_log

from polyrec.cli.main import main

TASKS = [{"name": "next_item", "head": "retrieval"}, {"name": "rating", "head": "regression"}]


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe with a split and says where it is."""

    def write(split, users=12, events=8, **sections):
        table = synthetic_log(users=users, events=events)["interactions"]
        pd.DataFrame(table).to_parquet(tmp_path / "log.parquet")
        found = {
            "interactions": str(tmp_path / "log.parquet"),
            "tasks": TASKS,
            "processor": {"max_history": 8, "statistics": False},
            "model": {"hidden_size": 8, "num_hidden_layers": 0, "candidate_attention_heads": 0},
            "training": {"num_train_epochs": 1, "use_cpu": True, "disable_tqdm": True},
            "split": split,
            "output": str(tmp_path / "run"),
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(found | sections))
        return str(tmp_path / "recipe.yaml")

    return write


@pytest.mark.parametrize(
    ("split", "users", "events", "part", "said"),
    [
        ({"fractions": [0.9, 0.1, 0]}, 12, 8, "valid", "no test rows: figures are those of the validation rows"),
        ({"fractions": [0.9, 0, 0.1]}, 12, 8, "test", "no validation rows: nothing is evaluated in training"),
        ({"by": "leave_one_out"}, 20, 2, None, "no valid rows: there are no figures"),
    ],
    ids=["no test", "no validation", "users of two events"],
)
def test_a_training_ends_with_its_files(recipe, tmp_path, capsys, split, users, events, part, said):
    """Prevents a training of hours from ending without metrics.json because a set was empty."""
    assert main(["train", recipe(split, users, events)]) == 0
    assert said in capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    if part is not None:
        assert report["_evaluation"]["part"] == part
        assert report["next_item"]["polyrec"]["ndcg@10"] >= 0
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("command", "split", "said"),
    [
        (["compare", "--no-html", "--seeds", "1"], [0.9, 0.1, 0], "no test rows"),
        (["tune", "--trials", "1"], [0.9, 0, 0.1], "no validation rows"),
    ],
    ids=["compare", "tune"],
)
def test_refused_before_any_training(recipe, capsys, command, split, said):
    """Prevents trainings whose result nothing could judge."""
    space = {"tune": {"space": {"training.learning_rate": [0.001, 0.01]}}} if command[0] == "tune" else {}
    path = recipe({"fractions": split}, **space)
    assert main([command[0], path, *command[1:]]) != 0
    assert said in capsys.readouterr().err


def test_patience_needs_validation(recipe, capsys):
    """Prevents early stopping that never hears of an evaluation."""
    assert main(["train", recipe({"fractions": [0.9, 0, 0.1]}, early_stopping_patience=2)]) != 0
    assert "early_stopping_patience needs validation rows" in capsys.readouterr().err
