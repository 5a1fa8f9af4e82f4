"""Small event logs whose every value says which event it belongs to, and data sets of their windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from polyrec.data.event_log import Candidates, EventLog
from polyrec.data.sequences import SequenceDataset

users = st.lists(st.integers(1, 12), min_size=1, max_size=5)
gaps = st.lists(st.integers(0, 2), min_size=1, max_size=7)


def make_log(users: list[int], gaps: list[int], **options: Any) -> EventLog:
    """A log of people with the given numbers of events; gaps of 0 are ties; the item of row r is r + 2."""
    user = np.repeat(np.arange(len(users)), users)
    rows = len(user)
    time = np.cumsum(np.resize(gaps, rows)).astype(float)
    return EventLog(
        **{
            "user": user,
            "item": np.arange(rows) + 2,
            "time": time,
            "order": np.arange(rows),
            "row": np.arange(rows),
            "user_ids": pa.array(np.arange(len(users))),
            "labels": np.arange(rows, dtype=np.float32)[:, None],
            "event_features": {"stars": np.arange(rows)},
            "candidate_features": {"hour": np.arange(rows) * 10},
            "user_features": {"age": np.arange(len(users)) * 100},
            **options,
        }
    )


def dataset(log: EventLog, ties: str = "strict", statistics=None, max_history: int = 5, **options) -> SequenceDataset:
    """Every event of a log as a candidate of its own."""
    asked = Candidates(np.arange(len(log)), log.visible(ties))
    return SequenceDataset(log, asked, ["y"], statistics, max_history, **options)


def two_views(log: EventLog, delay: float, max_history: int = 5, **options: Any) -> SequenceDataset:
    """Every event in its own view and as it looks when the last `delay` seconds are hidden."""
    rows = np.arange(len(log))
    late = np.minimum(log.visible(), log.visible_before(log.time - delay))
    views = [Candidates(rows, log.visible()), Candidates(rows, late, rows + len(log))]
    statistics = np.arange(2 * len(log), dtype=np.float32)[:, None]
    return SequenceDataset(log, Candidates.concatenate(views), ["y"], statistics, max_history, **options)


def windows(data, epoch: int = 0) -> list[dict[str, Any]]:
    """All windows of an epoch."""
    data.set_epoch(epoch)
    return [data[i] for i in range(len(data))]


def joined(found: list[dict[str, Any]], key: str) -> np.ndarray:
    """One column of all windows."""
    return np.concatenate([window[key] for window in found])


def seen_by_each(data, epoch: int = 0) -> dict[int, list[int]]:
    """{candidate of the data set: rows of the events it sees}."""
    return {
        row: (window["item_ids"][:position] - 2).tolist()
        for window in windows(data, epoch)
        for row, position in zip(window["candidate_rows"].tolist(), window["candidate_positions"], strict=True)
    }


def same_windows(one: dict[str, Any], two: dict[str, Any], atol: float = 0.0) -> bool:
    """Whether two windows (or dicts in them) hold the same, numbers up to `atol`."""
    return one.keys() == two.keys() and all(
        same_windows(one[k], two[k], atol)
        if isinstance(one[k], dict)
        else np.shape(one[k]) == np.shape(two[k])
        and np.allclose(one[k], two[k], rtol=0, atol=atol if _floats(one[k]) else 0, equal_nan=_floats(one[k]))
        for k in one
    )


def _floats(values) -> bool:
    return np.asarray(values).dtype.kind == "f"
