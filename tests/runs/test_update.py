"""`polyrec update`: new events are learnt, old ones remembered, and a worse model replaces nothing."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from model_fixtures import synthetic_log

from polyrec import PolyRecForRecommendation, PolyRecProcessor
from polyrec.cli.main import main
from polyrec.runs import update as command

LATER = 2e6


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A trained run, and tables of what came after it: events of known and new people, two new items."""
    folder = tmp_path_factory.mktemp("update")
    tables = synthetic_log()
    for name, table in tables.items():
        pd.DataFrame(table).to_parquet(folder / f"{name}.parquet")
    later = synthetic_log(users=50, seed=1)
    events = pd.DataFrame(later["interactions"])
    events["timestamp"] += LATER
    events.loc[events.index % 7 == 0, "item_id"] = 100 + events.index[events.index % 7 == 0] % 2
    events.to_parquet(folder / "new.parquet")
    events.assign(timestamp=events.timestamp + LATER, item_id=events.item_id % 100).to_parquet(folder / "newer.parquet")
    items = {**{name: values[:2] for name, values in later["items"].items()}, "item_id": [100, 101]}
    pd.DataFrame(items).to_parquet(folder / "new_items.parquet")
    recipe = {name: str(folder / f"{name}.parquet") for name in tables} | {
        "tasks": [{"name": "next_item", "head": "retrieval"}, {"name": "rating", "head": "regression"}],
        "processor": {"max_history": 8},
        "model": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "candidate_attention_heads": 2},
        "training": {"num_train_epochs": 2, "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 8},
        "output": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(folder / "recipe.yaml")]) == 0
    return folder


def update(world, *more, run="run", new="new.parquet"):
    return main(["update", str(world / run), "--new", str(world / new), *map(str, more)])


@pytest.fixture(scope="module")
def fresh(world, tmp_path_factory):
    """The run after an update with new items, in another folder, what the update printed, and the run before it."""
    folder, printed, before = tmp_path_factory.mktemp("updated") / "fresh", io.StringIO(), contents(world / "run")
    with contextlib.redirect_stdout(printed):
        assert update(world, "--items", world / "new_items.parquet", "--output", folder, "--replay", 0.5) == 0
    return folder, printed.getvalue(), before


def contents(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.is_file()}


def test_an_update_reports_what_it_did(world, fresh):
    """Prevents an update whose gain, loss and price nobody sees, and new items that it forgets to add."""
    folder, out, before = fresh
    report = json.loads((folder / "update.json").read_text())
    assert set(report["before"]) == set(report["after"]) == {"test", "new"}
    assert set(report["forgetting"]) == {"next_item", "rating"}
    assert all(found["slice"] == "test" for found in report["forgetting"].values())  # never the new events
    rows = report["rows"]
    assert rows["new"] == 450
    assert rows["held out: new"] == 50
    assert rows["held out: test"] == 40
    assert 0 < rows["replayed"] < 360
    assert report["new_items"] == 2
    assert report["cost"]["cpu_seconds"] > 0
    assert "better by" in out
    assert "cpu-seconds of training" in out
    assert contents(world / "run") == before  # --output leaves the old run alone
    processor = PolyRecProcessor.from_pretrained(folder)
    model = PolyRecForRecommendation.from_pretrained(folder)
    assert processor.num_items == model.config.num_items == 28
    assert processor.item_counts[-2:].min() > 0
    assert model.item_encoder.known[-2:].all()
    assert processor.statistics.last_time == pd.read_parquet(world / "new.parquet").timestamp.max()
    assert len(model.recommend(processor, [100, 3], k=3)) == 3


def test_updates_follow_each_other(world, fresh, tmp_path, capsys):
    """Prevents a second update from forgetting where the data of the first lie, or from counting its events twice."""
    shutil.copytree(fresh[0], tmp_path / "one")
    assert main(["update", str(tmp_path / "one"), "--new", str(world / "newer.parquet"), "--max-regression", "9"]) == 0
    report = json.loads((tmp_path / "one" / "update.json").read_text())
    assert set(report["before"]) == {"test", "update 1", "new"}
    processor = PolyRecProcessor.from_pretrained(tmp_path / "one")
    log = [pd.read_parquet(world / f"{name}.parquet") for name in ("interactions", "new", "newer")]
    first, *rest = [table.sort_values("timestamp", kind="stable") for table in log]
    learnt = pd.concat([first[:320], *(table[:450] for table in rest)])
    expected = learnt.item_id.value_counts().reindex(processor.items.ids.to_pylist()).fillna(0)
    np.testing.assert_array_equal(processor.item_counts[2:], expected)
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "one"), "--output", str(tmp_path / "m.json")]) == 0
    found = json.loads((tmp_path / "m.json").read_text())["rating"]["polyrec"]["rmse"]
    assert found == pytest.approx(report["after"]["new"]["rating"]["rmse"], rel=1e-5)
    assert main(["train", str(tmp_path / "one" / "recipe.yaml"), "--output", str(tmp_path / "again")]) == 0
    assert PolyRecProcessor.from_pretrained(tmp_path / "again").num_items == 28  # retraining takes all there is


def test_a_worse_model_replaces_nothing(world, capsys):
    """Prevents a good model from being lost to an update that forgot."""
    before = contents(world / "run")
    assert update(world, "--learning-rate", 3.0, "--replay", 0, "--members", 1, "--max-regression", 0.01) == 2
    error = capsys.readouterr().err
    assert "is left as it was" in error
    assert "--max-regression" in error
    assert contents(world / "run") == before
    assert json.loads((world / "run-refused" / "update.json").read_text())["falls"]
    PolyRecForRecommendation.from_pretrained(world / "run-refused")


def test_replaces_the_run_and_interruptions_do_not(world, tmp_path, interrupt):
    """Prevents an interrupted update from leaving half a model; the same update afterwards gives the same one."""
    for name in ("one", "two"):
        shutil.copytree(world / "run", tmp_path / name)
    before = contents(tmp_path / "one")
    interrupt(3)
    new = ["--new", str(world / "new.parquet"), "--max-regression", "9"]
    assert main(["update", str(tmp_path / "one"), *new]) == 130
    assert contents(tmp_path / "one") == before
    interrupt(None)
    for name in ("one", "two"):
        assert main(["update", str(tmp_path / name), *new]) == 0
    one, two, old = (
        PolyRecForRecommendation.from_pretrained(folder).state_dict()
        for folder in (tmp_path / "one", tmp_path / "two", world / "run")
    )
    assert all(torch.equal(torch.nan_to_num(one[n]), torch.nan_to_num(two[n])) for n in one)
    assert not torch.equal(one["heads.next_item.project.weight"], old["heads.next_item.project.weight"])
    assert not (tmp_path / "one.part").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--new", "nowhere.parquet"], "no such file"),
        (["--new", "{world}/interactions.parquet"], "already trained on the events of"),
        (["--new", "{world}/new.parquet", "--holdout", "1"], r"holdout is 1(.0)?; it must be a number"),
        (["--new", "{world}/new.parquet", "--replay", "2"], "replay is 2"),
        (["--new", "{world}/new.parquet", "--items", "{world}/items.parquet"], "is known already"),
        (["--new", "{world}/new.parquet", "--users", "{world}/users.parquet"], "is known already"),
    ],
)
def test_mistakes_are_one_line(world, arguments, message, capsys):
    """Prevents events from being learnt twice, or from a time the model has left behind."""
    assert main(["update", str(world / "run"), *(a.format(world=world) for a in arguments)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_folder_that_is_no_run(tmp_path, capsys):
    """Prevents a traceback for a wrong folder."""
    assert main(["update", str(tmp_path), "--new", "x.parquet"]) == 2
    assert "not a folder written by" in capsys.readouterr().err


def test_unknown_items_are_said(world, tmp_path, capsys):
    """Prevents events of items without attributes from silently being those of the unknown item."""
    assert update(world, "--output", tmp_path / "run") == 0
    assert "of 2 items that are not in the catalog" in capsys.readouterr().err
    assert command.REPORT_NAME in {p.name for p in (tmp_path / "run").iterdir()}


def test_an_updated_run_does_not_teach_what_would_be_judged(world, fresh, tmp_path, capsys):
    """Prevents a student of the old split from hearing of what came after it, and one of all events from being judged
    by rows that its teacher has learnt."""
    for recipe in ([], [str(world / "recipe.yaml")]):
        capsys.readouterr()
        assert main(["score", str(fresh[0]), *recipe, "--output", str(tmp_path / "answers")]) == 2
        assert "A run that was updated was also trained on its updates" in capsys.readouterr().err
    assert not (tmp_path / "answers").exists()
