"""Statistics counted on a Ray cluster: the files must be those of one process, whatever happens to its workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pandas as pd
import pytest
import yaml
from model_fixtures import TASKS, synthetic_log

from polyrec.cli.main import main
from polyrec.core import extras
from polyrec.data.block_passes import Features
from polyrec.data.storage import Folder
from polyrec.runs.prepare import prepare_recipe
from polyrec.runs.ray_prepare import ray_engine
from polyrec.runs.recipe import load_recipe


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe whose log is counted in several blocks."""
    monkeypatch.setattr(Folder, "block", 60)
    for name, values in synthetic_log().items():
        pd.DataFrame(values).to_parquet(tmp_path / f"{name}.parquet")
    values = {name: str(tmp_path / f"{name}.parquet") for name in ("interactions", "items", "users")}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values | {"tasks": TASKS, "output": str(tmp_path / "run")}))
    return path


@pytest.fixture(scope="module")
def cluster():
    """Two workers on this machine."""
    ray, held = pytest.importorskip("ray"), signal.getsignal(signal.SIGTERM)
    ray.init(num_cpus=2, object_store_memory=200_000_000, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    signal.signal(signal.SIGTERM, held)  # Ray leaves its own


def files(folder: Path) -> dict[str, bytes]:
    """What was prepared, but for names and times of it."""
    (prepared,) = (folder / "prepared").glob("[!.]*")
    found = {str(p.relative_to(prepared)): p.read_bytes() for p in prepared.rglob("*") if p.is_file()}
    assert len([name for name in found if name.startswith("log/")]) > 10
    return {name: content for name, content in found.items() if name.startswith(("log/", "processor/statistics"))}


def prepared_here(recipe: Path, folder: Path) -> dict[str, bytes]:
    assert main(["prepare", str(recipe), "--cache-dir", str(folder)]) == 0
    return files(folder)


@pytest.mark.slow
def test_a_ray_cluster_prepares_the_same_files(recipe, tmp_path, cluster, monkeypatch):
    """Prevents workers from losing or doubling blocks, from counting something else, or from looking for the files in
    their own folder."""
    monkeypatch.chdir(tmp_path)
    how = ["--engine", "ray", "--workers", "2", "--cache-dir", "ray"]
    assert main(["prepare", str(recipe), *how]) == 0
    assert files(tmp_path / "ray") == prepared_here(recipe, tmp_path / "here")


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_block_alone(recipe, tmp_path, cluster):
    """Prevents a machine that fails from failing the job, and half a block from being counted."""
    killed, done = tmp_path / "killed", tmp_path / "done"
    done.mkdir()

    def dying(step):
        def work(n):
            if isinstance(step, Features):
                (done / f"{n}-{os.getpid()}").touch()
                if n == 1 and not killed.exists():
                    killed.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            step(n)

        return work

    with ray_engine(workers=2) as engine:
        loaded = load_recipe(recipe, {"cache_dir": str(tmp_path / "ray")})
        prepare_recipe(loaded, lambda step, number: engine(dying(step), number))
    assert killed.exists()
    tries = [path.name.split("-")[0] for path in done.iterdir()]
    assert tries.count("1") == 2
    assert len(tries) <= len(set(tries)) + 2  # at most the other block that the worker held is done again
    assert files(tmp_path / "ray") == prepared_here(recipe, tmp_path / "here")


def test_without_ray_the_message_says_how_to_install_it(recipe, tmp_path, monkeypatch, capsys):
    """Prevents a traceback, or a job that quietly runs on one process."""
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    assert main(["prepare", str(recipe), "--engine", "ray"]) == 2
    assert "pip install 'polyrec[ray]'" in capsys.readouterr().err
    assert main(["prepare", str(recipe), "--workers", "2"]) == 2
    assert "add --engine ray" in capsys.readouterr().err
