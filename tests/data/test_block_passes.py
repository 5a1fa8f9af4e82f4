"""Blocks counted side by side: files and states must be those of one process that counts them in order."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from model_fixtures import COLUMNS, synthetic_log

from polyrec import PolyRecProcessor
from polyrec.data.block_passes import BlockPasses
from polyrec.data.statistics_pass import stateful
from polyrec.data.storage import Folder

TASKS = [
    {"name": "next_item", "head": "retrieval"},
    {"name": "rating", "head": "regression"},
    {"name": "like", "head": "binary", "label": "rating >= 4"},
]
CONTEXT = {"context": [["context.surface"], ["context.surface", "item.genre"]]}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Tables of a log on disk, which is counted in many blocks."""
    monkeypatch.setattr(Folder, "block", 37)
    for name, values in synthetic_log().items():
        pd.DataFrame(values).to_parquet(tmp_path / f"{name}.parquet")
    return tmp_path


def split(files: Path, name: str, engine=None, statistics=True, **options):
    """A processor, and the folder of the log that it has split."""
    tables = [files / f"{own}.parquet" for own in ("interactions", "items", "users")]
    known = {"tasks": TASKS, "columns": COLUMNS, "max_history": 8, "cache_dir": files / name, "statistics": statistics}
    processor = PolyRecProcessor.fit(*tables, verbose=False, **known)
    processor.split(tables[0], cache_dir=files / name, engine=engine, **options)
    return processor, files / name / "log"


def in_this_process(step, number):
    """The plainest engine."""
    return map(step, range(number))


def shuffled_and_twice(step, number):
    """An engine as careless as allowed: any order, and one thing in three is done again."""
    work = [n for n in range(number) for _ in range(1 + (n % 3 == 0))]
    random.Random(number).shuffle(work)
    for n in work:
        step(n)
    return range(number)


def same(one: tuple, other: tuple) -> None:
    """Every file and every state, bit for bit."""
    (here, first), (there, second) = one, other
    names = {path.name for path in first.iterdir()}
    assert names == {path.name for path in second.iterdir()}
    for name in names - {"user_ids.parquet"}:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    a, b = here.statistics, there.statistics
    assert (a.log.last_time, a.spread) == (b.log.last_time, b.spread)
    np.testing.assert_array_equal(a.scaler.mean, b.scaler.mean)
    assert {c.name for c in stateful(a.log.statistics, a.log.context)} == a.log._states.keys() == b.log._states.keys()
    for name, state in a.log._states.items():
        for field in ("keys", "sums", "counts", "rows", "last"):
            np.testing.assert_array_equal(getattr(state, field), getattr(b.log._states[name], field), err_msg=name)


@pytest.mark.parametrize("statistics", [True, CONTEXT])
@pytest.mark.parametrize("by", ["time", "leave_one_out"])
def test_files_are_those_of_one_process(files, statistics, by):
    """Prevents a level from being measured against states of another time, test events from staying in the state, and
    work that is done twice from being counted twice."""
    expected = split(files, "here", statistics=statistics, by=by)
    same(split(files, "there", shuffled_and_twice, statistics, by=by), expected)


def test_blocks_before_and_after_the_cut_may_be_missing(files):
    """Prevents a cut at the edge of a block from leaving a block out of the state, or from counting one too many."""
    time = np.sort(pd.read_parquet(files / "interactions.parquet")["timestamp"].to_numpy())
    for row in (74, 75):
        cuts = [float(time[row]), float(time[-20])]
        expected = split(files, f"here{row}", cuts=cuts)
        same(split(files, f"there{row}", in_this_process, cuts=cuts), expected)


def test_rows_that_are_kept_must_not_come_after_others(files):
    """Prevents states that nobody could tell from the right ones."""
    processor, folder = split(files, "here")
    storage, log = Folder(folder), processor.load_split(files / "here").train.log
    kept = np.arange(len(log)) % 2 == 0
    own = processor.statistics
    passes = BlockPasses(own.log, own.tables, log, storage, in_this_process, None, kept)
    with pytest.raises(ValueError, match="one process must count this log"):
        list(passes.features())
    assert not list(folder.parent.glob("log-blocks"))


def test_an_engine_needs_files(files):
    """Prevents a cluster from being ignored by a log that lies in memory, or has no times."""
    tables = [files / f"{own}.parquet" for own in ("interactions", "items", "users")]
    processor = PolyRecProcessor.fit(*tables, tasks=TASKS, columns=COLUMNS, verbose=False)
    with pytest.raises(ValueError, match="give cache_dir"):
        processor.split(tables[0], engine=in_this_process)
    untimed = PolyRecProcessor.fit(*tables, tasks=TASKS, columns=COLUMNS | {"time": None}, verbose=False)
    with pytest.raises(ValueError, match="it has no times"):
        untimed.split(tables[0], engine=in_this_process, cache_dir=files / "cache")
