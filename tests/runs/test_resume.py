"""A training goes on only as the training that it was; figures and updates belong to the data of the run."""

import errno
import json
import os
import shutil
import signal
import stat

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from polyrec import PolyRecTrainer
from polyrec.cli.main import main
from polyrec.core.lock import locked
from polyrec.core.manifest import MANIFEST_NAME, check_manifest, refresh_manifest
from polyrec.runs.facts import about_run, training_differences
from polyrec.training import checkpoints, resuming
from polyrec.training.checkpoints import complete_checkpoints, newest_checkpoint


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Tables, a recipe, and a run of it: `straight`."""
    folder = tmp_path_factory.mktemp("resume")
    rows = pd.DataFrame(
        [(u, 10 + (3 * u + 5 * n) % 12, 1e6 + 1000 * n + u, 1 + (u + n) % 5) for u in range(24) for n in range(8)],
        columns=["user_id", "item_id", "timestamp", "rating"],
    )
    rows.to_parquet(folder / "log.parquet")
    rows.assign(timestamp=rows.timestamp + 1e6).to_parquet(folder / "new.parquet")
    pd.DataFrame({"item_id": range(10, 22)}).to_parquet(folder / "items.parquet")
    recipe = {
        "interactions": str(folder / "log.parquet"),
        "items": str(folder / "items.parquet"),
        "tasks": [{"name": "next_item", "head": "retrieval"}],
        "processor": {"max_history": 4, "statistics": False},
        "model": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
        "training": {"num_train_epochs": 2, "per_device_train_batch_size": 8, "use_cpu": True, "disable_tqdm": True},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(folder / "recipe.yaml"), "--output", str(folder / "straight")]) == 0
    return folder


def train(world, output, *more, recipe="recipe.yaml"):
    return main(["train", str(world / recipe), "--output", str(output), *more])


def stop_at(monkeypatch, step, act):
    """Let something happen in a step of the training, once."""
    plain, done = PolyRecTrainer.training_step, []

    def training_step(self, *arguments, **keywords):
        done.append(1)
        if len(done) == step:
            act()
        return plain(self, *arguments, **keywords)

    monkeypatch.setattr(PolyRecTrainer, "training_step", training_step)


def interrupt():
    raise KeyboardInterrupt


def same_weights(first, second):
    one, two = (load_file(folder / "model.safetensors") for folder in (first, second))
    return all(torch.equal(torch.nan_to_num(one[n]), torch.nan_to_num(two[n])) for n in {*one, *two})


def reordered(world, target):
    """The recipe with the same items in another order."""
    table = pd.read_parquet(world / "items.parquet")[::-1]
    table.to_parquet(target / "items.parquet")
    recipe = yaml.safe_load((world / "recipe.yaml").read_text())
    (target / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"items": str(target / "items.parquet")}))
    return target


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_from_which_the_same_model_comes(world, tmp_path, monkeypatch, capfd, number):
    """Ctrl-C gave a traceback of 19 frames and no checkpoint; the old run must stay."""
    shutil.copytree(world / "straight", tmp_path / "run")
    before = (tmp_path / "run" / MANIFEST_NAME).read_bytes()
    with monkeypatch.context() as patch:
        stop_at(patch, 2, lambda: signal.raise_signal(number))
        assert train(world, tmp_path / "run") == 128 + number
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("polyrec")]
    assert error == ["polyrec train: interrupted at step 2; checkpoint-2 is complete: go on with --resume"]
    assert (tmp_path / "run" / MANIFEST_NAME).read_bytes() == before
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert train(world, tmp_path / "run", "--resume") == 0
    assert "training goes on from checkpoint-2" in capfd.readouterr().out
    assert same_weights(tmp_path / "run", world / "straight")
    check_manifest(tmp_path / "run")
    assert os.listdir(tmp_path) == ["run"]


def test_the_newest_complete_checkpoint_is_resumed(world, tmp_path, monkeypatch, caplog):
    """Half a checkpoint, of a kill inside of it, blocked every later start or began with half the states."""
    with monkeypatch.context() as patch:
        stop_at(patch, 9, interrupt)
        assert train(world, tmp_path / "run") == 130
    draft = tmp_path / ".run.draft"
    whole = newest_checkpoint(draft)
    half = draft / "checkpoint-999"
    shutil.copytree(whole, half)
    os.truncate(half / "optimizer.pt", 1000)
    assert newest_checkpoint(draft) == whole
    assert "checkpoint-999 is ignored: " in caplog.text
    assert train(world, tmp_path / "run", "--resume") == 0
    assert same_weights(tmp_path / "run", world / "straight")


def test_a_half_written_checkpoint_of_an_earlier_version_is_ignored(world, tmp_path):
    for name, damaged in (
        ("checkpoint-1", None),
        ("checkpoint-2", "optimizer.pt"),
        ("checkpoint-3", "model.safetensors"),
    ):
        shutil.copytree(complete_checkpoints(world / "straight")[-1], tmp_path / name)
        (tmp_path / name / MANIFEST_NAME).unlink()
        if damaged:
            os.truncate(tmp_path / name / damaged, 1000)
    shutil.copytree(tmp_path / "checkpoint-1", tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{")
    assert newest_checkpoint(tmp_path).name == "checkpoint-1"


def test_a_damaged_best_checkpoint_is_an_error(world, tmp_path, capsys):
    """`load_best_model_at_end` kept the last weights without a word."""
    shutil.copytree(world / "straight", tmp_path / "run")
    first, last = complete_checkpoints(tmp_path / "run")
    state = json.loads((last / "trainer_state.json").read_text())
    (last / "trainer_state.json").write_text(json.dumps(state | {"best_model_checkpoint": f"elsewhere/{first.name}"}))
    refresh_manifest(last, ["trainer_state.json"])
    os.truncate(first / "model.safetensors", 1000)
    assert train(world, tmp_path / "run", "--resume") == 2
    assert f"{first.name}, cannot be used: " in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_the_old_run_stays(world, tmp_path, monkeypatch, capsys):
    shutil.copytree(world / "straight", tmp_path / "run")
    before = (tmp_path / "run" / MANIFEST_NAME).read_bytes()

    def full(*_, **__):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert train(world, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "was not saved: no space left on the disk" in error
    assert "Traceback" not in error
    assert (tmp_path / "run" / MANIFEST_NAME).read_bytes() == before
    assert not [p.name for p in (tmp_path / ".run.draft").iterdir() if "checkpoint" in p.name]
    assert checkpoints.disk_error(OSError(errno.EACCES, "denied"), tmp_path).errno == errno.EACCES
    assert checkpoints.disk_error(ValueError("x"), tmp_path) is None


@pytest.mark.parametrize("begun", [False, True])
def test_a_training_of_other_items_is_never_resumed(world, tmp_path, monkeypatch, capsys, begun):
    """The checkpoint of an older run was taken: its vectors landed on other items, with exit code 0."""
    other = reordered(world, tmp_path)
    shutil.copytree(world / "straight", tmp_path / "run")
    if begun:  # killed before its first checkpoint
        with monkeypatch.context() as patch:
            stop_at(patch, 1, interrupt)
            assert train(other, tmp_path / "run") == 130
        assert train(other, tmp_path / "run", "--resume") == 0  # from the start, not from the older run
        train(other, tmp_path / "anew")
        assert same_weights(tmp_path / "run", tmp_path / "anew")
        return
    assert train(other, tmp_path / "run", "--resume") == 2
    assert "it was begun with another data.items; set it back, or train anew" in capsys.readouterr().err
    assert train(world, tmp_path / "run", "--resume", "--set", "training.learning_rate=0.1") == 2
    assert "another recipe.training.learning_rate;" in capsys.readouterr().err
    assert same_weights(tmp_path / "run", world / "straight")


def test_a_trainer_of_python_refuses_other_items_too(world, tmp_path):
    """Also without the command line, and for checkpoints of before there were manifests."""
    from polyrec.runs.prepare import prepare
    from polyrec.runs.recipe import load_recipe
    from polyrec.runs.train import build_trainer

    other = reordered(world, tmp_path)
    recipe = load_recipe(str(other / "recipe.yaml"), {"output": str(tmp_path / "out")})
    processor, parts = prepare(recipe)
    trainer = build_trainer(recipe, processor, parts.train, parts.valid)
    old = complete_checkpoints(world / "straight")[-1]
    for manifest in (True, False):
        shutil.copytree(old, tmp_path / "out" / old.name, dirs_exist_ok=True)
        if not manifest:
            (tmp_path / "out" / old.name / MANIFEST_NAME).unlink()
        with pytest.raises(ValueError, match="begun with another processor"):
            trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="no complete checkpoint"):
        trainer.args.output_dir = str(tmp_path / "nowhere")
        trainer.train(resume_from_checkpoint=True)


def test_more_epochs_are_allowed_and_what_changes_nothing_is_ignored():
    recipe = {"training": {"num_train_epochs": 2, "seed": 1}, "model": {"dropout": 0.1}}
    other = {"training": {"num_train_epochs": 4, "seed": 1, "logging_steps": 3, "hub_token": "x"}, "model": {}}
    refused, allowed = training_differences(about_run(recipe), about_run(other))
    assert refused == ["recipe.model.dropout"]
    assert allowed == ["recipe.training.num_train_epochs"]


def test_old_checkpoints_go_first_and_protected_ones_stay(tmp_path):
    """A limit of 1 must not delete the only checkpoint that is whole; the newest is the one that was written last."""
    for order, step in enumerate((90, 10, 20, 30)):  # 90: of an earlier training in the same folder
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / MANIFEST_NAME).write_text("{}")
        os.utime(folder / MANIFEST_NAME, (order, order))
    (tmp_path / "checkpoint-40").mkdir()  # half-written: it does not count
    resuming.keep_newest(tmp_path, 2, {"checkpoint-30", "checkpoint-10"})
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-10", "checkpoint-30", "checkpoint-40"]
    resuming.keep_newest(tmp_path, 1, {"checkpoint-30"})
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-30", "checkpoint-40"]


def test_changed_tables_are_refused_by_who_reads_a_run(world, tmp_path, capsys):
    """`evaluate` fitted splits and scales anew after a row was appended; `update` would have counted it twice."""
    shutil.copytree(world / "straight", tmp_path / "run")
    log = pd.read_parquet(world / "log.parquet")
    changed = pd.concat([log, log.tail(1).assign(timestamp=9e9)])
    changed.to_parquet(tmp_path / "log.parquet")
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    (tmp_path / "run" / "recipe.yaml").write_text(
        yaml.safe_dump(recipe | {"interactions": str(tmp_path / "log.parquet")})
    )
    refresh_manifest(tmp_path / "run", ["recipe.yaml"])
    for command in (["evaluate"], ["update", "--new", str(world / "new.parquet")], ["finetune", "--task", "next_item"]):
        assert main([command[0], str(tmp_path / "run"), *command[1:]]) == 2
        assert f"interactions ({tmp_path / 'log.parquet'}) changed since" in capsys.readouterr().err
    log.to_parquet(tmp_path / "log.parquet")  # moved, but the same
    assert main(["evaluate", str(tmp_path / "run"), "--output", str(tmp_path / "m.json")]) == 0
    found, held = (json.loads(p.read_text()) for p in (tmp_path / "m.json", world / "straight" / "metrics.json"))
    own, other = found["next_item"]["polyrec"], held["next_item"]["polyrec"]
    assert own["ndcg@10"] == pytest.approx(other["ndcg@10"])


def test_events_are_not_learnt_twice(world, tmp_path, capsys):
    """An update that was killed after its swap and run again must not count its events twice."""
    shutil.copytree(world / "straight", tmp_path / "run")
    update = ["update", str(tmp_path / "run"), "--new", str(world / "new.parquet"), "--max-regression", "9"]
    assert main(update) == 0
    before = (tmp_path / "run" / MANIFEST_NAME).read_bytes()
    shutil.copy(world / "new.parquet", tmp_path / "renamed.parquet")
    for path in (world / "new.parquet", tmp_path / "renamed.parquet"):
        assert main([*update[:3], str(path), "--max-regression", "9"]) == 2
        assert "already trained on" in capsys.readouterr().err
    assert (tmp_path / "run" / MANIFEST_NAME).read_bytes() == before
    check_manifest(tmp_path / "run")
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not {name for name in left if name.startswith("checkpoint-")} | ({"metrics.json"} & left)  # of the old model


def test_all_files_of_a_run_are_readable_as_the_umask_says(world):
    """Other users of the machine were told that there is no such file."""
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (world / "straight").rglob("*") if p.is_file()}
    assert modes == {0o666 & ~np.uint16(os.umask(os.umask(0o022)))} or modes == {0o644}


@pytest.mark.parametrize("command", [["update", "--new", "new.parquet"], ["finetune", "--task", "next_item"]])
def test_a_run_is_locked_from_the_first_look_at_it(world, tmp_path, capsys, command):
    """Of two updates that begin with the same run, the first to end would be lost."""
    shutil.copytree(world / "straight", tmp_path / "run")
    with locked(tmp_path / "run"):
        assert main([command[0], str(tmp_path / "run"), command[1], str(world / command[2])]) == 2
    assert "is being written by process" in capsys.readouterr().err
