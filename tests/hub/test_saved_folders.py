"""What was saved is what is loaded, or nobody answers from it."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from flip_bytes import FAULTS, campaign, draw, served
from flip_bytes import table as outcomes
from model_fixtures import TASKS, fit, synthetic_log, tiny_model

from polyrec import PolyRecForRecommendation, PolyRecProcessor
from polyrec.core.manifest import read_manifest, write_manifest
from polyrec.hub.isolated import isolated
from polyrec.inference.check import check_loads

VECTORS = {"item_features": {"genre": "categorical", "price": "numeric"}, "context": {"surface": "categorical"}}


def save(folder: Path, seed: int) -> Path:
    log = synthetic_log(users=20, events=6, seed=seed)
    np.save(folder / "look.npy", np.random.default_rng(seed).normal(size=(24, 3)).astype(np.float32))
    columns = {**VECTORS, "item_features": {**VECTORS["item_features"], "look": f"embedding:{folder / 'look.npy'}"}}
    processor, _ = fit(log, TASKS[:2], columns=columns)
    model = tiny_model(processor, seed=seed)
    model.save_pretrained(folder / "run")
    processor.save_pretrained(folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two runs of other data, of equal shape."""
    return [save(tmp_path_factory.mktemp(f"seed{seed}"), seed) for seed in (0, 1)]


@pytest.fixture
def folder(two, tmp_path):
    return Path(shutil.copytree(two[0], tmp_path / "run"))


def load(folder: Path) -> None:
    PolyRecForRecommendation.from_pretrained(folder)
    PolyRecProcessor.from_pretrained(folder)


def test_a_changed_byte_is_noticed(two):
    """129 of 1,436 corruptions changed answers without a word; scripts/flip_bytes.py tries 2,000."""
    log = pa.table(synthetic_log(users=10, events=4, seed=0)["interactions"])
    found = campaign(two[0], two[1], lambda run: served(run, log), draw(two[0], 100))
    assert len(found) == 100
    assert not [entry for entry in found if entry[1] in FAULTS], outcomes(found)
    assert sum(entry[1] == "refused" for entry in found) > 80


def test_one_manifest_covers_model_and_processor(folder):
    """Two manifests, or one of the part that was saved last, would leave the other part unwatched."""
    held = set(read_manifest(folder).files)
    here = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
    assert held == here
    processor = PolyRecProcessor.from_pretrained(folder)
    model = tiny_model(processor, seed=5)
    model.save_pretrained(folder, max_shard_size="5KB")  # other files than before
    load(folder)
    assert set(read_manifest(folder).files) > held - {"model.safetensors"}


@pytest.mark.parametrize(
    "name", ["model.safetensors", "items.parquet", "statistics/scales.json", "item_vectors/look.npy"]
)
def test_files_of_another_run_are_refused(folder, two, name):
    """They fit in every shape, and every answer is wrong."""
    shutil.copy(two[1] / name, folder / name)
    with pytest.raises(ValueError, match=f"{name} is not the file that was saved"):
        load(folder)
    (folder / "manifest.json").unlink()  # as runs of earlier versions
    if name == "items.parquet":
        with pytest.raises(ValueError, match="of different runs"):
            check_loads(folder)


def test_files_that_nobody_saved_are_not_read(folder):
    """users.parquet, or a tokenizer, that was put beside a run is read where it is found."""
    shutil.copy(folder / "items.parquet", folder / "users.parquet")
    with pytest.raises(ValueError, match="users.parquet was not saved with it"):
        PolyRecProcessor.from_pretrained(folder)


def test_a_folder_of_an_earlier_version_loads(folder, two):
    """Runs without a manifest are no damaged ones."""
    (folder / "manifest.json").unlink()
    log = pa.table(synthetic_log(users=10, events=4, seed=0)["interactions"])
    assert served(folder, log) == served(two[0], log)


def test_a_strangers_manifest_does_not_vouch_for_tables(folder, monkeypatch):
    """Whoever makes a file that ends the process writes its digest, too."""
    path = folder / "statistics" / "log" / "state-000.parquet"
    path.write_bytes(path.read_bytes()[:-9] + b"\xff" + path.read_bytes()[-8:])
    write_manifest(folder)
    monkeypatch.setattr("polyrec.hub.safety.read_saved", lambda *_: os.abort())
    with pytest.raises(ValueError, match="state-000.parquet|died of SIGABRT"):
        PolyRecProcessor.from_pretrained(folder)
    monkeypatch.setattr("polyrec.hub.safety.check_table", lambda *_, **__: os.abort())
    with pytest.raises(ValueError, match="died of SIGABRT"):
        PolyRecProcessor.from_pretrained(folder)


def test_a_reader_may_not_fill_the_memory():
    """A fork that takes all memory ends other processes of the machine."""
    with pytest.raises(ValueError, match="fill the memory"):
        isolated(lambda: len(bytearray(8 << 30)), "a table", 1 << 30)
    assert isolated(lambda: len(bytearray(1 << 20)), "a table", 1 << 30) == 1 << 20


def test_the_end_of_a_reader_is_waited_for():
    """A reader that closes what it writes to and dies later was taken for one that ended well."""

    def dies_later() -> None:
        os.closerange(3, 256)
        time.sleep(0.05)
        os.abort()

    with pytest.raises(ValueError, match="the reader died of SIGABRT"):
        isolated(dies_later, "a table", 1 << 30)


@pytest.mark.skipif(not hasattr(os, "setuid") or os.getuid() != 0, reason="only root can become somebody else")
def test_no_permission_is_called_that(folder):
    """Another user of the machine was told that the file does not exist."""

    def as_nobody() -> str:
        os.setuid(65534)
        try:
            load(folder)
        except PermissionError as error:
            return str(error)
        return "loaded"

    for parent in [folder, *folder.parents]:
        if "pytest" in parent.as_posix():  # those that pytest made, however deep
            parent.chmod(0o755)
    (folder / "model.safetensors").chmod(0o600)
    assert "no permission to read" in isolated(as_nobody, "a model", 8 << 30)
    assert "model.safetensors" in isolated(as_nobody, "a model", 8 << 30)


def test_figures_of_a_card_are_those_that_were_saved(folder):
    """A changed digit of metrics.json would be published with the card."""
    from polyrec.tracking.run_files import RunFiles

    (folder / "recipe.yaml").write_text("tasks: []\n")
    (folder / "metrics.json").write_text(json.dumps({"like": {"polyrec": {"auc": 0.7}}}))
    write_manifest(folder, files=[*read_manifest(folder).files, "recipe.yaml", "metrics.json"])
    RunFiles.read(folder)
    (folder / "metrics.json").write_text(json.dumps({"like": {"polyrec": {"auc": 0.8}}}))
    with pytest.raises(ValueError, match="metrics.json is not the file that was saved"):
        RunFiles.read(folder)
