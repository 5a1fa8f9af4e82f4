"""`polyrec score` from the command line: whole runs, resumed runs, and what it refuses."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from run_fixtures import two_task_recipe
from teacher_fixtures import batch_of

from polyrec import PolyRecForRecommendation, PolyRecProcessor
from polyrec.cli.main import main
from polyrec.distillation.live import LiveTeacher
from polyrec.distillation.stored import StoredError, StoredTeacher
from polyrec.runs.prepare import prepare, read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run of one epoch, and its recipe file."""
    folder = tmp_path_factory.mktemp("score")
    training = {"num_train_epochs": 1, "per_device_train_batch_size": 8}
    assert main(["train", str(two_task_recipe(folder, users=24, training=training))]) == 0
    return folder / "run"


def test_answers_are_those_of_the_run(run, tmp_path, capsys):
    """Prevents a file of answers from holding others than the saved model gives."""
    output = str(tmp_path / "logits")
    arguments = ["score", str(run), "--output", output, "-k", "7", "--temperature", "2", "--shard-rows", "40"]
    assert main(arguments) == 0
    assert "candidates scored for rating, next_item" in capsys.readouterr().out
    processor, parts = prepare(read_run(run))
    stored = StoredTeacher(output)
    stored.prepare(parts.train, processor)
    live = LiveTeacher(
        PolyRecForRecommendation.from_pretrained(run), PolyRecProcessor.from_pretrained(run), top_k=7, temperature=2.0
    )
    live.prepare(parts.train, processor)
    batch = batch_of(parts.train.fixed())
    found, expected = stored.score(batch), live.score(batch)
    assert found["teacher_items"]["next_item"].shape[-1] == 7
    for name in ("teacher_logits", "teacher_scores"):
        torch.testing.assert_close(found[name], expected[name], rtol=2e-3, atol=2e-3, equal_nan=True)
    before = {p.name: p.stat().st_mtime_ns for p in Path(output).glob("shard*")}
    assert len(before) > 2
    assert main(arguments) == 0  # nothing is left to do
    assert before == {p.name: p.stat().st_mtime_ns for p in Path(output).glob("shard*")}
    assert main([*arguments[:-2], "--temperature", "1"]) == 2
    assert "differ in temperatures" in capsys.readouterr().err


def test_a_killed_run_goes_on_to_the_same_bytes(run, tmp_path):
    """Prevents half a shard, or a manifest that is ahead of its shards, from surviving a process that had no chance to
    clean up."""
    options = ["--shard-rows", "6", "--batch-size", "1", "-k", "5"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = os.fork()
    if process == 0:
        try:
            main(["score", str(run), "--output", str(killed), *options])
        finally:
            os._exit(0)

    def begun():
        path = killed / "manifest.json"
        return path.exists() and json.loads(path.read_text())["written"]

    try:
        while not begun():
            assert os.waitpid(process, os.WNOHANG)[0] == 0, "it came to its end before it was killed"
            time.sleep(0.005)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    manifest = json.loads((killed / "manifest.json").read_text())
    assert len(manifest["written"]) < manifest["shards"]
    with pytest.raises(StoredError, match="scoring was interrupted; run the same `polyrec score` again"):
        StoredTeacher(killed)
    kept = {s["name"]: (killed / s["name"]).stat().st_mtime_ns for s in manifest["written"]}
    for folder in (killed, whole):
        assert main(["score", str(run), "--output", str(folder), *options]) == 0
    assert {name: (killed / name).stat().st_mtime_ns for name in kept} == kept
    one, other = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in (killed, whole))
    assert one == other
    StoredTeacher(killed)


def test_ensembles_with_classical_teachers(run, tmp_path):
    """Prevents kinds of teachers from not mixing, and the plan of a recipe from being overlooked."""
    plan = "model.distillation={tasks: {next_item: {temperature: 3.0, top_k: 4}}}"
    recipe = str(run.parent / "recipe.yaml")
    output = str(tmp_path / "both")
    assert (
        main(["score", f"{run},item_knn,lightgbm", recipe, "--output", output, "--split", "valid", "--set", plan]) == 0
    )
    manifest = json.loads((tmp_path / "both" / "manifest.json").read_text())
    assert (manifest["top_k"]["next_item"], manifest["temperatures"]["next_item"], manifest["teachers"]) == (4, 3.0, 3)


def test_what_is_refused(run, tmp_path, capsys):
    """Prevents a teacher of judged rows, of unknown rows or of no name from costing more than a line."""
    recipe, output = str(run.parent / "recipe.yaml"), str(tmp_path / "x")
    earlier = ["--set", "split.fractions=[0.5, 0.2, 0.3]"]
    assert main(["score", str(run), recipe, "--output", output, *earlier]) == 2
    assert "rows that the student is evaluated on" in capsys.readouterr().err
    assert main(["score", "eese", recipe, "--output", output]) == 2
    assert "did you mean 'ease'" in capsys.readouterr().err
    assert main(["score", str(run)]) == 2
    assert "--output DIR" in capsys.readouterr().err
    unknown = tmp_path / "unknown"  # as it is after a pull from the Hub
    shutil.copytree(run, unknown)
    (unknown / "training_rows.safetensors").unlink()
    (unknown / "manifest.json").unlink()
    assert main(["score", str(unknown), recipe, "--output", output]) == 2
    assert "--skip-overlap-check" in capsys.readouterr().err
    assert main(["score", str(unknown), recipe, "--output", output, "--skip-overlap-check"]) == 0
