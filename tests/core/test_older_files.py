"""Names of before: saved files load without a word, whoever writes one is told the new one, and both mean the same."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import yaml
from model_fixtures import TASKS, fit, synthetic_log, tiny_model

from polyrec import PolyRecConfig, PolyRecForRecommendation, PolyRecProcessor
from polyrec.core.older_files import RENAMED, saved_files, with_new_keys
from polyrec.core.schema import Columns, from_dict
from polyrec.runs.facts import training_differences
from polyrec.runs.prepare import read_run
from polyrec.runs.recipe import load_recipe

OLD = {
    "interactions": "log.parquet",
    "past": "past.parquet",
    "tasks": [{"name": "next_item", "head": "retrieval"}],
    "columns": {"past": {"seen": []}, "past_length": 9, "keys_only": ["item.genre"], "clock": 8, "title": None},
    "model": {"item_rank": 4, "hidden_size": 8},
}
NEW = {
    "interactions": "log.parquet",
    "prior_history": "past.parquet",
    "tasks": [{"name": "next_item", "head": "retrieval"}],
    "columns": {
        "prior_history": {"seen": []},
        "prior_history_length": 9,
        "statistics_only": ["item.genre"],
        "time_zone": 8,
        "title": None,
    },
    "model": {"item_embedding_rank": 4, "hidden_size": 8},
}


@pytest.fixture(autouse=True)
def strict():
    """Whoever is not told of an old name fails here, and so does a saved file that warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        yield


def test_every_key_is_renamed():
    """A key that is left out of the table is refused as unknown in every recipe of before."""
    said = []
    assert with_new_keys(OLD, say=said.append) == NEW
    assert said == [f"{old} is now {new}; the old name will be removed" for old, new in RENAMED.items()]
    assert with_new_keys(NEW, say=said.append) == NEW
    assert len(said) == len(RENAMED)


def test_recipes_and_flags(tmp_path, capsys):
    """One line says what to write; the run that follows is that of the new name."""
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(OLD))
    found = load_recipe(str(path), {"model.item_rank": 2, "columns.past.seen": ["like"]})
    assert (found.prior_history, found.columns["time_zone"]) == ("past.parquet", 8)
    assert found.model == {"item_embedding_rank": 2, "hidden_size": 8}
    assert found.columns["prior_history"] == {"seen": ["like"]}
    error = capsys.readouterr().err.splitlines()
    assert f"{path}: columns.clock is now columns.time_zone; the old name will be removed" in error
    assert "model.item_rank is now model.item_embedding_rank; the old name will be removed" in error
    path.write_text("columns: {clock: 8, time_zone: 9}")
    with pytest.raises(ValueError, match=r"columns.clock is the old name of columns.time_zone, and both are given"):
        load_recipe(str(path), {})


def test_python_keywords():
    """Scripts that call the library get a DeprecationWarning, and what they asked for."""
    with pytest.warns(DeprecationWarning, match="columns.clock is now columns.time_zone") as told:
        assert Columns(clock=8) == Columns(time_zone=8)
    assert told[0].filename == __file__  # Python shows it to who wrote the line, and to nobody else
    with pytest.warns(DeprecationWarning, match="columns.past_length"):
        assert from_dict(Columns, {"past_length": 9}) == Columns(prior_history_length=9)
    with pytest.warns(DeprecationWarning, match="model.item_rank"):
        assert PolyRecConfig(item_rank=4, hidden_size=8).item_embedding_rank == 4
    log = synthetic_log(users=12, events=6, seed=0)
    processor, parts = fit(log, TASKS[:2], columns={"prior_history": {"seen": []}})
    cutoff, before = float(np.median(parts.test.log.time)), {"user_id": [0], "seen": [[1, 2]]}
    with pytest.warns(DeprecationWarning, match="processor.frozen is now processor.without_updates"):
        old = processor.frozen(parts.test, cutoff)
    new = processor.without_updates(parts.test, cutoff)
    assert [w["item_ids"].tolist() for w in old] == [w["item_ids"].tolist() for w in new]
    with pytest.warns(DeprecationWarning, match="past= is now prior_history="):
        assert processor.split(log["interactions"], past=before).train.log.prior_history is not None


def test_saved_folders(tmp_path):
    """Files of 0.1 hold old names; a run that cannot be loaded after an upgrade is lost."""
    processor, _ = fit(synthetic_log(users=12, events=6, seed=0), TASKS[:2], columns={"time_zone": 3})
    tiny_model(processor, item_embedding_rank=3).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for name, section, version in (("config.json", "model", 1), ("processor_config.json", "columns", 1)):
        values = json.loads((tmp_path / name).read_text())
        held = values["columns"] if section == "columns" else values
        for old, new in RENAMED.items():
            if new.removeprefix(f"{section}.") in held:
                held[old.removeprefix(f"{section}.")] = held.pop(new.removeprefix(f"{section}."))
        assert ("clock" in held) or ("item_rank" in held)
        (tmp_path / name).write_text(json.dumps(values | {"format_version": version}))
    (tmp_path / "manifest.json").unlink()  # it knows the new files
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)  # of a folder without a manifest
        loaded, model = PolyRecProcessor.from_pretrained(tmp_path), PolyRecForRecommendation.from_pretrained(tmp_path)
    assert loaded.columns == processor.columns
    assert model.config.item_embedding_rank == 3
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(OLD | {"interactions": str(tmp_path / "config.json")}))
    with pytest.raises(ValueError, match="prior_history: no such file: 'past.parquet'"):
        read_run(tmp_path)


def test_checkpoints_go_on():
    """A training that was begun under the old names is the same training."""
    held = {"recipe": OLD, "data": {"interactions": "a", "past": "b"}, "polyrec": "0"}
    about = {"recipe": NEW, "data": {"interactions": "a", "prior_history": "b"}, "polyrec": "0"}
    assert training_differences(held, about) == ([], [])


def test_saved_values_are_told_to_nobody():
    """A user cannot change what a file of before holds."""
    with saved_files():
        assert from_dict(Columns, {"clock": 1}) == Columns(time_zone=1)
