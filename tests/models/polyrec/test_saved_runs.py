"""Runs that earlier versions have saved."""

import json
from pathlib import Path

import pytest
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from polyrec import PolyRecForRecommendation, PolyRecProcessor

SAVED = Path(__file__).parents[2] / "saved_run"


def test_a_run_of_version_0_1_answers_as_it_did():
    """Prevents a name, a file or a tensor of a saved run from being lost, or read as something else.

    `saved_run` was written by version 0.1.0 before its packages were put in order: a student, taught by its teacher's
    states, too, with statistics, neighbours and a linear term. answers.json is what it recommended then.
    """
    model, loaded = PolyRecForRecommendation.from_pretrained(SAVED, output_loading_info=True)
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]  # but for what only its training needed
    processor = PolyRecProcessor.from_pretrained(SAVED)
    for case in json.loads((SAVED / "answers.json").read_text(encoding="utf-8")):
        found = model.recommend(processor, case["history"], k=5)
        assert [row["item"] for row in found] == [row["item"] for row in case["found"]]
        for name in ("score", "like", "rating"):
            assert [row[name] for row in found] == pytest.approx([row[name] for row in case["found"]], rel=1e-4)


def test_loading_draws_no_bar_and_saving_asks_whether_it_may(tmp_path, capfd, monkeypatch):
    """Prevents a bar of a moment in every notebook and log, and one for whoever has turned bars off."""
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    model = PolyRecForRecommendation.from_pretrained(SAVED)
    assert "Loading weights" not in capfd.readouterr().err
    disable_progress_bars()
    try:
        model.save_pretrained(tmp_path)
    finally:
        enable_progress_bars()
    assert "Writing model shards" not in capfd.readouterr().err
