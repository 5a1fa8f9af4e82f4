"""What all tests share."""

import os

import pytest

# Two test processes on two cores: one thread each. Must be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def tables():
    """Fresh tables of 40 people and 24 items: attributes of every kind, ratings with gaps, ties in time."""
    from model_fixtures import synthetic_log

    return synthetic_log()


@pytest.fixture
def people_by_name(tables):
    """The same tables with people known by strings that occur nowhere else."""
    for name in ("interactions", "users"):
        tables[name]["user_id"] = [f"secret{u}" for u in tables[name]["user_id"]]
    return tables


@pytest.fixture
def recipe_file(tmp_path):
    """A recipe of two tasks over a small log, written beside its tables; returns its path."""
    import pandas as pd
    import yaml
    from model_fixtures import synthetic_log

    tables = synthetic_log(people=24)
    for name, table in tables.items():
        pd.DataFrame(table).to_parquet(tmp_path / f"{name}.parquet")
    recipe = {name: str(tmp_path / f"{name}.parquet") for name in tables} | {
        "tasks": [{"name": "next_item", "head": "retrieval"}, {"name": "rating", "head": "regression", "weight": 0.5}],
        "processor": {"max_history": 8},
        "model": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "candidate_attention_heads": 2},
        "training": {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 5,
        },
        "tune": {
            "startup_trials": 2,
            "space": {
                "model.hidden_size": [8, 16],
                "tasks.rating.weight": {"low": 0.1, "high": 10, "log": True},
            },
        },
        "output": str(tmp_path / "run"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def interrupt(monkeypatch):
    """A function that lets training be interrupted after so many steps, as Ctrl-C would."""
    from polyrec import PolyRecTrainer

    plain = PolyRecTrainer.training_step

    def arm(steps: int | None) -> list[int]:
        done: list[int] = []

        def step(self, *arguments, **keywords):
            if len(done) == steps:
                raise KeyboardInterrupt
            done.append(1)
            return plain(self, *arguments, **keywords)

        monkeypatch.setattr(PolyRecTrainer, "training_step", step)
        return done

    return arm
