"""The arrays of a log in a folder, from which they are mapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from polyrec.data.event_log import EventLog
from polyrec.data.storage import Folder

_ARRAYS = ("user", "item", "time", "order", "row", "labels")
_BY_NAME = ("event_features", "candidate_features", "user_features", "measures", "sample_weight")


def keep_log(log: EventLog, storage: Folder) -> dict[str, list[str]]:
    """Write those arrays of a log that a folder does not have; gives the names of its columns, for [`map_log`]."""
    for name in _ARRAYS:
        storage.keep_missing(name, getattr(log, name))
    for kind in _BY_NAME:
        for name, values in getattr(log, kind).items():
            storage.keep_missing(f"{kind}.{name}", values)
    return {kind: list(getattr(log, kind)) for kind in _BY_NAME}


def map_log(storage: Folder, columns: Mapping[str, Sequence[str]], user_ids: pa.Array | None = None) -> EventLog:
    """Map a log from a folder.

    Args:
        columns: what [`keep_log`] gave.
        user_ids: of its users; None: for those who need no ids.
    """
    arrays: dict[str, Any] = {name: storage.load(name) for name in _ARRAYS}
    for kind in _BY_NAME:
        arrays[kind] = {name: storage.load(f"{kind}.{name}") for name in columns[kind]}
    return EventLog(user_ids=pa.nulls(0) if user_ids is None else user_ids, **arrays)
