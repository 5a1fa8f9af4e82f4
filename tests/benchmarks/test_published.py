"""The benchmark of published tables, on a log of 40 users that walk through 30 items in order."""

import json
import sys

import numpy as np
import pandas as pd
import published
import pytest


def test_both_policies_at_all_lengths(tmp_path, monkeypatch):
    """Prevents a table whose lists of 5, 10 and 20, with and without the history, are all the same lists."""
    folder = tmp_path / "walks"
    folder.mkdir()
    start = np.random.default_rng(0).integers(0, 30, 40)
    walks = (start[:, None] + np.arange(8)) % 30
    log = {"user_id": np.repeat(np.arange(40), 8), "item_id": walks.ravel(), "timestamp": np.tile(np.arange(8), 40)}
    pd.DataFrame(log).to_parquet(folder / "interactions.parquet")
    output = tmp_path / "published.json"
    monkeypatch.setattr(sys, "argv", ["published.py", "--data", str(folder), "--seeds", "1", "--output", str(output)])
    published.main()
    found = json.loads(output.read_text())["walks"]
    assert found["recipe"]["split"] == {"by": "leave_one_out"}
    for policy in ("without history", "with history"):
        recalls = [found["test"][f"{policy} recall@{k}"]["mean"] for k in (5, 10, 20)]
        assert recalls == sorted(recalls)
        assert recalls[-1] > 20 / 30
    assert found["test"]["without history ndcg@10"]["mean"] > found["test"]["with history ndcg@10"]["mean"] > 0.3
    assert found["baselines"]["transitions"]["ndcg@10"] == pytest.approx(1.0, abs=0.1)  # the next one always follows
