"""Where a server keeps its state."""

from __future__ import annotations

from pathlib import Path

from polyrec.serving.records import EventStore
from polyrec.serving.store import SQLiteStore


def state_folder(run: str | Path, given: str | None) -> Path:
    """Where the state of a run lies: the folder that is given, or one beside the run."""
    place = Path(run).resolve()
    return Path(given) if given is not None else place.with_name(f"{place.name}-state")


def open_store(folder: Path, database: str | None) -> EventStore:
    """The store of a server: a file in the folder, or a database."""
    if database is None:
        return SQLiteStore(folder)
    from polyrec.serving.postgres import PostgresStore

    return PostgresStore(database)
