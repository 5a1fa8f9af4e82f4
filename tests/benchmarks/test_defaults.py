"""The benchmark of the default recipe, on 16 users that walk through ten items in order."""

import json
import sys

import defaults
import numpy as np
import pandas as pd


def test_every_task_stands_beside_its_baselines_and_development_never_reads_the_test_rows(tmp_path, monkeypatch):
    """Prevents a default that is chosen by the rows that judge it, and a table that leaves the baselines' task out."""
    start = np.random.default_rng(0).integers(0, 10, 16)
    walks = (start[:, None] + np.arange(7)) % 10
    log = {"user_id": np.repeat(np.arange(16), 7), "item_id": walks.ravel(), "timestamp": np.tile(np.arange(7), 16)}
    frame = pd.DataFrame(log).assign(timestamp=lambda d: 1_600_000_000 + d["timestamp"] * 86_400 + d["user_id"])
    events = tmp_path / "walks.parquet"
    frame.assign(rating=1.0 + (frame["item_id"] + frame["user_id"]) % 5).to_parquet(events)
    output = tmp_path / "defaults.json"
    asked = ["defaults.py", "--data", str(events), "--development", "--output", str(output), "--splits"]
    kept = {}
    without_test = defaults.without_test

    def watched(values, folder):
        found = without_test(values, folder)
        kept[values["split"]["by"]] = pd.read_parquet(found["interactions"])
        return found

    monkeypatch.setattr(defaults, "without_test", watched)
    monkeypatch.setattr(sys, "argv", [*asked, "time", "leave_one_out"])
    defaults.main()
    found = json.loads(output.read_text())
    assert list(found) == ["walks time", "walks leave_one_out"]
    rest = frame[~frame["timestamp"].isin(kept["time"]["timestamp"])]
    assert len(rest) == 12  # a tenth of 112 rows, whose times all differ
    assert rest["timestamp"].min() > kept["time"]["timestamp"].max()
    assert (kept["leave_one_out"].groupby("user_id").size() == 6).all()
    tasks = found["walks leave_one_out"]["tasks"]
    assert tasks["next_item"]["transitions"]["recall@10"] == 1.0
    assert 0 < tasks["rating"]["polyrec"]["rmse"] != tasks["rating"]["constant"]["rmse"]
