"""A log that was encoded, cut and counted, in files that are mapped when it is needed again.

The arrays of the log lie in a [`~polyrec.data.storage.Folder`]; `split.json`, written last, says which they are.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from polyrec.core.files import write_atomically
from polyrec.core.schema import Columns, from_dict
from polyrec.data.mapped_log import keep_log, map_log
from polyrec.data.saved_tables import read_saved, write_saved
from polyrec.data.settings import SplitSettings
from polyrec.data.splitter import CutLog
from polyrec.data.storage import Folder
from polyrec.data.tables import read_json

LOG_FOLDER, SPLIT_NAME, _USERS_NAME = "log", "split.json", "user_ids.parquet"


@dataclass(frozen=True)
class CountedSplit:
    """What a split reads of the tables and computes of them.

    Args:
        cut: the log and its sets.
        values: running statistics of the log, [R, F], for training and validation; None: nothing is counted.
        tested: those of the test set, [R, F]; the same, where both count the same events.
        settings: how it was cut.
        num_items: rows of the item table.
    """

    cut: CutLog
    values: np.ndarray | None
    tested: np.ndarray | None
    settings: SplitSettings
    num_items: int


def not_stored(columns: Columns, prior_history: bool) -> str:
    """What a log has that no file can hold, or "".

    Args:
        prior_history: whether there is one.
    """
    if columns.time is None or columns.history is not None:
        return "no times"
    if prior_history:
        return "a prior history"
    return "queries" if columns.query is not None else ""


def save_split(found: CountedSplit, storage: Folder) -> None:
    """Say what the arrays of a folder are, so that [`load_split`] finds them; those that are not there are written."""
    log = found.cut.log
    columns = keep_log(log, storage)
    storage.keep("part", found.cut.part)
    write_saved(pa.table({"user": log.user_ids}), storage.path / _USERS_NAME)
    about = {
        "by": found.cut.by,
        "settings": asdict(found.settings),
        **columns,
        "num_items": found.num_items,
        "statistics": found.values is not None,
        "tested": found.tested is not found.values,
    }
    write_atomically(storage.path / SPLIT_NAME, json.dumps(about, default=str) + "\n")


def load_split(folder: Path) -> CountedSplit:
    """Map what [`save_split`] wrote.

    Raises:
        ValueError: the folder holds no such split.
    """
    if not (folder / SPLIT_NAME).exists():
        raise ValueError(f"{folder} holds no split that was finished (no {SPLIT_NAME}): call split with this cache_dir")
    storage, about = Folder(folder, complete=True), read_json(folder / SPLIT_NAME)
    log = map_log(storage, about, read_saved(folder / _USERS_NAME, "users")["user"].combine_chunks())
    values = storage.load("statistics") if about["statistics"] else None
    tested = storage.load("statistics.tested") if about["tested"] else values
    settings = from_dict(SplitSettings, about["settings"])
    cut = CutLog(log, storage.load("part"), about["by"])
    return CountedSplit(cut, values, tested, settings, about["num_items"])
