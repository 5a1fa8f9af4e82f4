"""`polyrec prepare`: later commands must find what was prepared for them, and nothing else."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from model_fixtures import synthetic_log

from polyrec.cli.main import main
from polyrec.runs import prepare as prepare_module
from polyrec.runs import prepared as prepared_module
from polyrec.runs.prepare import prepare, read_run, split_of_run
from polyrec.runs.prepared import PreparedData
from polyrec.runs.recipe import load_recipe


@pytest.fixture
def recipe(tmp_path):
    """A recipe whose data are prepared in files."""
    for name, values in synthetic_log().items():
        pd.DataFrame(values).to_parquet(tmp_path / f"{name}.parquet")
    values = {
        "interactions": str(tmp_path / "interactions.parquet"),
        "items": str(tmp_path / "items.parquet"),
        "tasks": [{"name": "next_item", "head": "retrieval"}, {"name": "rating", "head": "regression"}],
        "model": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
        "training": {"max_steps": 2, "use_cpu": True, "disable_tqdm": True},
        "cache_dir": str(tmp_path / "cache"),
        "output": str(tmp_path / "run"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def refuse(*unused, **also_unused):
    raise AssertionError("the log was read again")


def test_training_and_evaluation_read_what_was_prepared(recipe, tmp_path, monkeypatch, capsys):
    """Prevents every command from encoding and counting the same log anew."""
    assert main(["prepare", str(recipe)]) == 0
    assert "prepared in" in capsys.readouterr().out
    monkeypatch.setattr(prepare_module, "_read", refuse)
    assert main(["prepare", str(recipe)]) == 0
    assert "found in" in capsys.readouterr().out
    assert main(["train", str(recipe)]) == 0
    monkeypatch.setattr(prepare_module, "joined_table", refuse)
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert not list((tmp_path / "cache").rglob("*.arrow"))


@pytest.mark.parametrize("change", ["rows", "tasks", "split", "columns"])
def test_what_was_prepared_of_other_data_is_not_found(recipe, tmp_path, change):
    """Prevents a model from being trained on rows, labels or sets that its recipe no longer says."""
    before = load_recipe(recipe)
    prepare(before)
    values = yaml.safe_load(recipe.read_text())
    if change == "rows":
        table = pd.read_parquet(values["interactions"])
        table[:-1].to_parquet(values["interactions"])
    else:
        changed = {
            "tasks": {"tasks": values["tasks"][:1]},
            "split": {"split": {"by": "leave_one_out"}},
            "columns": {"columns": {"feedback": []}},
        }
        values |= changed[change]
    recipe.write_text(yaml.safe_dump(values))
    after = PreparedData.of(load_recipe(recipe), 0)
    assert after is not None
    assert not after.is_complete


def test_settings_of_the_training_change_nothing(recipe):
    """Prevents a search over sizes and learning rates from preparing its data for each trial."""
    prepare(load_recipe(recipe))
    other = load_recipe(recipe, {"model.hidden_size": 16, "training.learning_rate": 0.1, "output": "elsewhere"})
    found = PreparedData.of(other, 0)
    assert found is not None
    assert found.is_complete


def test_what_was_left_unfinished_is_made_again(recipe):
    """Prevents half-written arrays of a killed process from being trained on."""
    loaded = load_recipe(recipe)
    expected = prepare(loaded)[1].train.log.item.tolist()
    found = PreparedData.of(loaded, 0)
    assert found is not None
    (found.folder / "log" / "item.npy").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"item\.npy is missing or cut off: delete the folder"):
        prepare(loaded)
    shutil.rmtree(found.folder / "log")
    _, again = prepare(loaded)
    assert again.train.log.item.tolist() == expected


def _prepared(path: Path, queue: multiprocessing.Queue) -> None:
    _, parts = prepare(load_recipe(path))
    queue.put((parts.train.num_candidates, float(parts.train.log.time.sum())))


def test_processes_that_begin_together_prepare_once(recipe, tmp_path):
    """Prevents the ranks of one training from writing the same files, or from reading unfinished ones."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    ranks = [context.Process(target=_prepared, args=(recipe, queue)) for _ in range(2)]
    for rank in ranks:
        rank.start()
    first, second = queue.get(timeout=120), queue.get(timeout=120)
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    assert first == second
    (folder,) = (tmp_path / "cache" / "prepared").glob("[!.]*")
    assert "data" in json.loads((folder / "prepared.json").read_text())


@pytest.mark.parametrize("what", ["part", "text", "code"])
def test_what_is_read_beside_the_tables_decides_too(recipe, tmp_path, monkeypatch, what):
    """Prevents data from being found that other code, own parts or another text model would prepare otherwise."""
    (tmp_path / "mine.py").write_text("ONE = 1\n")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "vocab.txt").write_text("one")
    values = yaml.safe_load(recipe.read_text()) | {"import": [str(tmp_path / "mine.py")]}
    recipe.write_text(yaml.safe_dump(values | {"processor": {"text": {"model": str(tmp_path / "text")}}}))
    before = PreparedData.of(load_recipe(recipe, imports=False), 0)
    if what == "part":
        (tmp_path / "mine.py").write_text("ONE = 2\n")
    elif what == "text":
        (tmp_path / "text" / "vocab.txt").write_text("two")
    else:
        monkeypatch.setattr(prepared_module, "_code", lambda: "other")
    after = PreparedData.of(load_recipe(recipe, imports=False), 0)
    assert before is not None
    assert after is not None
    assert before.folder != after.folder


def test_a_run_whose_cache_is_gone_is_evaluated_from_files(recipe, tmp_path):
    """Prevents a log that memory does not hold from being read into it because a cache was cleared."""
    assert main(["train", str(recipe)]) == 0
    run = read_run(tmp_path / "run")
    _, expected = split_of_run(tmp_path / "run", run)
    items = expected.test.log.item.tolist()
    shutil.rmtree(tmp_path / "cache")
    _, parts = split_of_run(tmp_path / "run", run)
    assert isinstance(parts.test.log.item.base, np.memmap)
    assert parts.test.log.item.tolist() == items
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_the_data_of_a_run_that_learned_more_items_are_not_those_of_its_recipe(recipe, tmp_path):
    """Prevents rows of items from meaning others after an update."""
    prepare(load_recipe(recipe))
    found = PreparedData.of(load_recipe(recipe), 0)
    assert found is not None
    assert found.is_complete
    assert not found.is_of("another fingerprint")


def test_finished_data_are_read_where_nothing_may_be_written(recipe, tmp_path, monkeypatch):
    """Prevents a shared cache from being of use only to those who may write it."""
    prepare(load_recipe(recipe))
    monkeypatch.setattr(PreparedData, "alone", refuse)
    _, parts = prepare(load_recipe(recipe))
    assert len(parts.train)


def test_a_log_that_no_file_holds_is_refused_before_any_work(recipe, monkeypatch, capsys):
    """Prevents minutes of work, and files that nobody finds, for a log without times."""
    values = yaml.safe_load(recipe.read_text()) | {"columns": {"time": None}}
    recipe.write_text(yaml.safe_dump(values))
    monkeypatch.setattr(prepare_module, "_read", refuse)
    assert main(["prepare", str(recipe)]) == 2
    assert "its log has no times" in capsys.readouterr().err


def test_the_card_does_not_name_the_folder_of_the_cache(recipe, tmp_path):
    """Prevents paths of a machine from being shared."""
    assert main(["train", str(recipe)]) == 0
    assert main(["card", str(tmp_path / "run")]) == 0
    assert str(tmp_path) not in (tmp_path / "run" / "README.md").read_text()
