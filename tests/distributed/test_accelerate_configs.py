"""`accelerate launch --config_file scripts/accelerate/... scripts/train.py recipe.yaml`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from launching import run
from model_fixtures import PAIR_TASKS, TASKS, synthetic_log
from safetensors.torch import load_file
from torch.testing import assert_close

from polyrec.cli.main import main

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "scripts" / "accelerate").glob("*.yaml"))


def recipe(folder: Path, batch_size: int) -> Path:
    """Of a small training without any chance in it, whose run folder is `run` beside it."""
    folder.mkdir()
    log = synthetic_log(users=30, keep=0.6)
    for name, table in log.items():
        pq.write_table(pa.table(dict(table)), folder / f"{name}.parquet")
    wanted = {name: str(folder / f"{name}.parquet") for name in log} | {
        "tasks": [TASKS[0], PAIR_TASKS[0]],
        "processor": {"max_history": 8},
        "model": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "candidate_attention_heads": 2}
        | {"dropout": 0.0, "item_id_dropout": 0.0},
        "training": {"num_train_epochs": 2, "per_device_train_batch_size": batch_size, "use_cpu": True, "seed": 5}
        | {"optim": "sgd", "learning_rate": 0.1, "disable_tqdm": True},
        "output": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(wanted))
    return folder / "recipe.yaml"


def test_two_processes_train_what_one_does(tmp_path):
    """Prevents ranks from writing files over each other, and a launch from training something else than one process."""
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    assert main(["train", str(recipe(tmp_path / "one", 8))]) == 0
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_cpu_threads_per_process=1"]
    launcher += ["--config_file", str(ROOT / "scripts" / "accelerate" / "cpu2.yaml"), "--main_process_port=0"]
    run([*launcher, str(ROOT / "scripts" / "train.py"), str(recipe(tmp_path / "two", 4))])
    files = [sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) for folder in (one, two)]
    # A checkpoint has the random state of each rank.
    assert [name for name in files[1] if "rng_state" not in name] == [n for n in files[0] if "rng_state" not in n]
    assert_close(load_file(one / "model.safetensors"), load_file(two / "model.safetensors"), equal_nan=True)
    expected, found = (json.loads((folder / "metrics.json").read_text()) for folder in (one, two))
    assert found["like"]["polyrec"]["auc"] == pytest.approx(expected["like"]["polyrec"]["auc"], abs=1e-3)
    logloss = expected["like"]["polyrec"]["logloss"]
    assert found["like"]["polyrec"]["logloss"] == pytest.approx(logloss, rel=1e-4)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_accelerate_reads_the_file(path):
    """Prevents a key that this version of accelerate does not know, and a file that does not say how to launch it."""
    config = load_config_from_file(str(path))
    assert config.num_processes == (1 if path.name == "cpu1.yaml" else 2)
    assert f"accelerate launch --config_file scripts/accelerate/{path.name}" in path.read_text()
