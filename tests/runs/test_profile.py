"""`polyrec profile` on a small recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import yaml
from model_fixtures import synthetic_log

from polyrec.cli.main import main


def test_what_a_profile_tells(tmp_path: Path, capsys) -> None:
    """Prevents a profile that trains a whole run or saves one, or leaves out a part of a step."""
    log = synthetic_log()["interactions"]
    pd.DataFrame(log).to_parquet(tmp_path / "log.parquet")
    recipe = {
        "interactions": str(tmp_path / "log.parquet"),
        "tasks": [{"name": "next_item", "head": "retrieval"}, {"name": "rating", "head": "regression"}],
        "processor": {"max_history": 8},
        "model": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        "training": {"num_train_epochs": 50, "use_cpu": True, "push_to_hub": True},
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    output = tmp_path / "profile.json"
    command = ["profile", str(tmp_path / "recipe.yaml"), "--steps", "3", "--operators", "4", "--output", str(output)]
    assert main(command) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.parquet", "profile.json", "recipe.yaml"]
    found, shown = json.loads(output.read_text()), capsys.readouterr().out
    phases = found["phases"]
    parts = [f"training: {part}" for part in ("data", "forward", "backward", "optimizer")]
    assert [phases[part]["calls"] for part in parts] == [3, 3, 3, 3]
    every = ["fit", "split", "model", "first batch", "training: first step", *parts, "evaluation", "baselines", "total"]
    for name in every:
        assert any(line.startswith(name) for line in shown.splitlines())
    wall = sum(usage["wall_seconds"] for usage in phases.values())
    assert wall <= found["total"]["wall_seconds"]
    assert all(usage["cpu_seconds"] >= 0 for usage in phases.values())
    assert len(found["operators"]) == 4
    assert found["operators"][0]["name"][:20] in shown  # long names are cut
    assert "steps and takes about" in shown
