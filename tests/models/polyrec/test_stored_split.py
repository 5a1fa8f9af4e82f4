"""Splits in files: what is mapped again must be what was made in memory."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from model_fixtures import COLUMNS, TASKS, synthetic_log

from polyrec import PolyRecCollator, PolyRecProcessor
from polyrec.data.storage import Folder


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Tables of a log on disk, which is counted in blocks of 20 rows."""
    monkeypatch.setattr(Folder, "block", 20)
    for name, values in synthetic_log().items():
        pd.DataFrame(values).to_parquet(tmp_path / f"{name}.parquet", row_group_size=31)
    return tmp_path


def fitted(files, cache=None, **columns):
    tables = [files / f"{name}.parquet" for name in ("interactions", "items", "users")]
    known = {"tasks": TASKS, "columns": COLUMNS | columns, "max_history": 8, "cache_dir": cache}
    return tables[0], PolyRecProcessor.fit(*tables, verbose=False, **known)


def batches_equal(first, second):
    assert set(first) == set(second)
    for name, value in first.items():
        if isinstance(value, dict):
            batches_equal(value, second[name])
        else:
            a, b = (np.asarray(own, dtype=np.float64) for own in (value, second[name]))
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6, err_msg=name)


def sets_equal(first, second):
    for name in ("train", "valid", "test"):
        a, b = (getattr(own, name) for own in (first, second))
        assert len(a) == len(b) > 0
        every = list(range(len(a)))
        batches_equal(PolyRecCollator()(a.__getitems__(every)), PolyRecCollator()(b.__getitems__(every)))


@pytest.mark.parametrize("by", ["time", "leave_one_out"])
def test_a_log_in_files_gives_the_batches_of_one_in_memory(files, by):
    """Prevents a column from being mapped in the order of the file, or statistics of the test set from leaking."""
    table, here = fitted(files)
    expected = here.split(table, by=by)
    table, there = fitted(files, files / "cache")
    found = there.split(table, by=by, cache_dir=files / "cache")
    sets_equal(found, expected)
    assert there.label_summary == here.label_summary
    assert there.statistics.scaler.mean.tolist() == pytest.approx(here.statistics.scaler.mean.tolist())


@pytest.mark.parametrize("by", ["time", "leave_one_out"])
def test_a_split_is_found_again(files, by):
    """Prevents a later command from training on other rows, or from serving other histories, than the first one."""
    table, processor = fitted(files, files / "cache")
    expected = processor.split(table, by=by, seed=3, cache_dir=files / "cache", keep_negatives={"like": 0.5})
    processor.save_pretrained(files / "saved", include_users=True)
    table.unlink()
    loaded = PolyRecProcessor.from_pretrained(files / "saved")
    found = loaded.load_split(files / "cache")
    sets_equal(found, expected)
    assert (found.train.keep_negatives, found.train.seed) == ({"like": 0.5}, 3)
    assert loaded.evidence.item.tolist() == processor.evidence.item.tolist()
    assert loaded.pair_trees.tasks == processor.pair_trees.tasks
    ids = pd.read_parquet(files / "users.parquet")["user_id"].tolist()[:5]
    for user in ids:
        a, b = (own.request(None, np.array([2, 3]), user_id=user) for own in (processor, loaded))
        batches_equal(a, b)


def test_another_split_in_the_same_folder_leaves_nothing_of_the_first(files):
    """Prevents arrays of an earlier split from being found in the folder of the later one."""
    table, processor = fitted(files, files / "cache")
    processor.split(table, by="leave_one_out", cache_dir=files / "cache")
    expected = processor.split(table, by="time", cache_dir=files / "cache")
    sets_equal(processor.load_split(files / "cache"), expected)


def test_a_log_that_cannot_be_found_again_is_still_split(files):
    """Prevents logs without times from failing, or from being loaded with an order that was never drawn."""
    table, processor = fitted(files, files / "cache", time=None)
    assert len(processor.split(table, cache_dir=files / "cache").train)
    with pytest.raises(ValueError, match=r"split\.json"):
        processor.load_split(files / "cache")


def test_the_split_of_another_processor_is_refused(files):
    """Prevents rows of one catalog from being read as those of another."""
    table, processor = fitted(files, files / "cache")
    processor.split(table, cache_dir=files / "cache")
    other = PolyRecProcessor.fit(table, tasks=TASKS, statistics=False, verbose=False)
    with pytest.raises(ValueError, match="is of another processor"):
        other.load_split(files / "cache")
