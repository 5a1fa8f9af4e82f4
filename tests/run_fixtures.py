"""A run folder, trained in seconds, for the tests of what is written about runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from model_fixtures import synthetic_log

from polyrec.cli.main import main


def two_task_recipe(folder: Path, users: int = 40, output: str = "run", **changes: Any) -> Path:
    """A recipe of an item and a rating to predict, beside its tables; `changes` add to its model and training."""
    recipe = _written(folder, users) | {
        "tasks": [{"name": "next_item", "head": "retrieval"}, {"name": "rating", "head": "regression"}],
        "processor": {"max_history": 8},
        "model": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "candidate_attention_heads": 2},
        "training": {"num_train_epochs": 2, "use_cpu": True, "disable_tqdm": True},
        "output": str(folder / output),
    }
    for section, values in changes.items():
        recipe[section] |= values
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def _written(folder: Path, users: int = 40) -> dict[str, Any]:
    """Paths of the tables of a small log, which are written."""
    tables = synthetic_log(users=users)
    for table, values in tables.items():
        pd.DataFrame(values).to_parquet(folder / f"{table}.parquet")
    return {table: str(folder / f"{table}.parquet") for table in tables}


def trained_run(folder: Path, name: str = "run", **changes: Any) -> Path:
    """A folder written by `polyrec train`; `changes` replace keys of its recipe."""
    recipe = _written(folder) | {
        "tasks": [
            {"name": "next_item", "head": "retrieval"},
            {"name": "like", "head": "binary", "label": "rating >= 4", "weight": 0.5},
            {"name": "rating", "head": "regression"},
        ],
        "processor": {"max_history": 8},
        "slices": ["genre", "age"],
        "card": {"license": "mit", "datasets": ["walks"]},
        "model": {
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "candidate_attention_heads": 2,
            "experts": "mmoe",
        },
        "training": {"num_train_epochs": 2, "use_cpu": True, "disable_tqdm": True, "logging_steps": 1},
        "output": str(folder / name),
        **changes,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(folder / f"{name}.yaml")]) == 0
    return folder / name
