"""The file of stored events: one row per user, whose events lie in lists."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from polyrec.core.schema import RESIDUALS, TIME_GAP
from polyrec.data.event_log import EventLog

DERIVED = (RESIDUALS, TIME_GAP)  # of an event and those before it, so that they are computed with the history


def event_columns(log: EventLog) -> dict[str, np.ndarray]:
    """What is kept of each event, but for what follows of the others."""
    found = {"item": log.item, "time": log.time, "order": log.order, "labels": log.labels}
    found |= {f"event:{name}": values for name, values in log.event_features.items() if name not in DERIVED}
    found |= {f"candidate:{name}": values for name, values in log.candidate_features.items()}
    return found | {f"measure:{name}": values for name, values in log.measures.items()}


def lists(values: np.ndarray, offsets: np.ndarray) -> pa.Array:
    """Rows of each user as one list; rows of several values lie in it one after the other."""
    width = int(np.prod(values.shape[1:])) if values.ndim > 1 else 1
    return pa.LargeListArray.from_arrays(pa.array(offsets * width), pa.array(values.reshape(-1)))


def widths(columns: Mapping[str, np.ndarray], prefix: str = "") -> dict[str, list[int]]:
    """Shapes of what is held for one row, where it is not one value."""
    return {f"{prefix}{name}": list(values.shape[1:]) for name, values in columns.items() if values.ndim > 1}


def flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The values of lists, and where each list begins."""
    lists = column.combine_chunks()
    return lists.flatten().to_numpy(zero_copy_only=False), np.asarray(lists.offsets) - lists.offsets[0].as_py()


def named(values: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The columns whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): found for name, found in values.items() if name.startswith(prefix)}
