"""`polyrec retrain`: what a server has collected trains its run, and the server exchanges the model."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from model_fixtures import synthetic_log
from run_fixtures import trained_run
from serving_fixtures import event_of, live

from polyrec import PolyRecProcessor
from polyrec.cli.main import main
from polyrec.core.manifest import read_manifest, refresh_manifest
from polyrec.runs.whole_log import recommender_of_run
from polyrec.serving.loading import load_state
from polyrec.serving.snapshots import Snapshots
from polyrec.serving.store import SQLiteStore

LATER = 2e6
FAST = ("--members", "1", "--learning-rate", "0.001")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A trained run and the folder of its tables."""
    return trained_run(
        tmp_path_factory.mktemp("retrain"),
        tasks=[{"name": "next_item", "head": "retrieval"}, {"name": "rating", "head": "regression"}],
        model={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "candidate_attention_heads": 2},
        training={"num_train_epochs": 1, "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 8},
    ).parent


@pytest.fixture
def run(world, tmp_path):
    return Path(shutil.copytree(world / "run", tmp_path / "run"))


def later_events():
    """Events after those of the run, each at a time of its own."""
    log = pd.DataFrame(synthetic_log(seed=1)["interactions"]).sort_values("timestamp", kind="stable", ignore_index=True)
    log["timestamp"] = LATER + 10.0 * log.index
    return log


def post(client, log, prefix="e"):
    events = [event_of(row, f"{prefix}{row.Index}") for row in log.itertuples()]
    seq = client.post("/events", json={"events": events}).json()["seq"]
    assert client.service.flush(seq, 10)


def retrain(run, state, client, *more):
    return main(["retrain", str(run), "--state", str(state), "--server", str(client.base_url), *FAST, *more])


def test_the_loop_closes(run, tmp_path, capsys, monkeypatch):
    """Prevents events that were collected from being lost on the way into the model, from counting twice after it, late
    ones from stopping the loop for good, a request from failing meanwhile, and a server that scores by torch once its
    run was trained again."""
    state, log, exported = tmp_path / "state", later_events(), []
    monkeypatch.setattr("polyrec.serving.retrain.export_run", exported.append)
    (run / "onnx").mkdir()
    (run / "onnx" / "manifest.json").write_text("{}")
    first = PolyRecProcessor.from_pretrained(run)
    with live(run, state) as client, ThreadPoolExecutor(1) as pool:
        post(client, log[:300])
        early = log[:1].assign(
            timestamp=1.5e6, item_id=1
        )  # after the run's log: late for the server, not for a training
        post(client, early, "early")
        tooearly = log[:1].assign(timestamp=1_000_500.0, item_id=2, user_id=3)
        post(client, tooearly, "tooearly")
        client.put("/items/500", json={"attributes": {"title": "new", "genre": "drama"}}).raise_for_status()
        going, found = [True], []

        def load():
            while going[0]:
                response = client.post("/recommend", json={"user_id": 1, "k": 3})
                found.append((response.status_code, response.json().get("model")))

        loading = pool.submit(load)
        before = client.get("/admin/model").json()["model"]
        assert retrain(run, state, client, "--max-regression", "10") == 0
        going[0] = False
        loading.result()
        after = client.get("/admin/model").json()["model"]
        assert "serves" in (out := capsys.readouterr().out)
        assert "1 events came too late" in out
        assert "301 new events, 1 new items" in out
        assert {code for code, _ in found} == {200}
        assert {model for _, model in found} <= {before, after}
        assert before != after
        assert exported == [str(run)]
        # The run has counted what was exported, the server counts none of it again, and keeps what was left out.
        update = json.loads((run / "update.json").read_text())
        assert update["rows"]["new"] + update["rows"]["held out: new"] == 301
        assert set(update["paired"]) == {"test", "new"}
        counted = PolyRecProcessor.from_pretrained(run)
        served = client.service.state
        assert (served.figures.known, served.figures.counted, served.figures.late) == (301, 0, 1)
        histories = served.processor.stored_events.log()
        assert len(histories) == len(counted.stored_events.log()) + 1
        assert counted.num_items == served.processor.num_items == first.num_items + 1
        assert counted.log_state.counted == log.timestamp[299]
        # The run before is there, whole; the next call finds nothing new, and the one after it the next events.
        previous = run.with_name("run-previous")
        assert PolyRecProcessor.from_pretrained(previous).log_state.counted == first.log_state.counted
        assert read_manifest(previous) is not None
        assert retrain(run, state, client) == 0
        assert "0 new events" in capsys.readouterr().out
        post(client, log[300:])
        assert retrain(run, state, client, "--max-regression", "10") == 0
        assert "100 new events" in capsys.readouterr().out
        assert client.service.state.figures.known == 401
        assert client.service.state.processor.log_state.counted == log.timestamp[399]


def test_a_worse_model_is_not_served(run, tmp_path, capsys):
    """Prevents a model that forgot from being served, and a refusal that a timer takes for success."""
    state = tmp_path / "state"
    with live(run, state) as client:
        post(client, later_events()[:200])
        before, files = client.get("/admin/model").json(), {p.name: p.read_bytes() for p in run.glob("*.*")}
        assert retrain(run, state, client, "--learning-rate", "3", "--replay", "0", "--max-regression", "0.01") == 3
        assert "is left as it was" in capsys.readouterr().err
        assert client.get("/admin/model").json() == before
        assert {p.name: p.read_bytes() for p in run.glob("*.*")} == files
        assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["run", "run-refused", "state"]


def test_a_server_that_is_not_there_is_told_before_the_training(run, tmp_path, capsys):
    """Prevents hours of training whose model nobody serves."""
    (tmp_path / "state").mkdir()
    assert main(["retrain", str(run), "--state", str(tmp_path / "state"), "--server", "http://127.0.0.1:1"]) == 2
    assert "cannot be reached" in capsys.readouterr().err


def facts(processor):
    """What a processor has counted; users have other numbers in each that reads the log."""
    states = processor.statistics.log._states
    return (
        processor.stored_events.digest(),
        processor.log_state.counted,
        {name: (own.keys.tolist(), own.sums.tolist(), own.last.tolist()) for name, own in states.items()},
    )


def test_a_server_knows_the_log_of_its_run(world, run, tmp_path, caplog):
    """Prevents a server of a new run from listing what users took in the part of the log that was held out, and from
    knowing other events after a restart than before."""
    store = SQLiteStore(tmp_path / "state")
    state = load_state(run, store, tmp_path / "state")
    recommender, _ = recommender_of_run(run)
    assert facts(state.processor) == facts(recommender.processor)
    assert PolyRecProcessor.from_pretrained(run).log_state.counted < state.processor.log_state.counted
    Snapshots(tmp_path / "state", run).write(state)
    assert facts(load_state(run, store, tmp_path / "state").processor) == facts(state.processor)
    log = pd.read_parquet(world / "interactions.parquet")
    recipe, others = run / "recipe.yaml", tmp_path / "others.parquet"
    log.nlargest(30, "timestamp").to_parquet(others)  # as an export of the latest events has it
    text = recipe.read_text()
    recipe.write_text(text.replace(str(world / "interactions.parquet"), str(others)))
    refresh_manifest(run, ["recipe.yaml"])
    beside = load_state(run, SQLiteStore(tmp_path / "beside"), tmp_path / "beside")
    assert "others.parquet with the " in caplog.text
    assert facts(beside.processor) == facts(PolyRecProcessor.from_pretrained(run))
    recipe.write_text(text)
    recipe.write_text(recipe.read_text().replace("interactions.parquet", "gone.parquet"))
    refresh_manifest(run, ["recipe.yaml"])
    elsewhere = load_state(run, SQLiteStore(tmp_path / "other"), tmp_path / "other")
    assert "gone.parquet is not here" in caplog.text
    assert facts(elsewhere.processor) == facts(PolyRecProcessor.from_pretrained(run))
