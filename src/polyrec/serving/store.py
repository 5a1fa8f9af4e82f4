"""Records in one SQLite file: the store of a server on one machine."""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from polyrec.serving.records import FORGOTTEN, Kind, Record, numbered, retracted

FILE_NAME = "events.sqlite"
_PAGE = 20_000  # records read at a time
_SOME_IDS = 500  # looked up at a time
_FORMAT = 1
_KINDS = tuple(Kind)  # by number
_SCHEMA = """
CREATE TABLE IF NOT EXISTS log (
  seq INTEGER PRIMARY KEY, kind INTEGER NOT NULL, body TEXT NOT NULL, event_id TEXT, user TEXT, time REAL);
CREATE UNIQUE INDEX IF NOT EXISTS log_event ON log (event_id) WHERE event_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS log_user ON log (user) WHERE user IS NOT NULL;
CREATE INDEX IF NOT EXISTS log_control ON log (seq) WHERE kind <> 0;
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class SQLiteStore:
    """[`EventStore`] in a folder of this machine.

    The journal is a write-ahead log that is synchronised at each commit, so that what was acknowledged survives a loss
    of power; what is deleted is overwritten.

    Example:
        >>> import tempfile
        >>> store = SQLiteStore(tempfile.mkdtemp())
        >>> event = Record(Kind.EVENT, "{}", event_id="a", user="7", time=5.0)
        >>> store.append([event, event._replace(event_id="b")]), store.append([event])
        ([1, 2], [1])
        >>> [record.event_id for record in store.read(after=1)]
        ['b']
    """

    shared = False

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / FILE_NAME
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._guard = threading.Lock()
        self._writer = self._connect()
        self._writer.execute("PRAGMA journal_mode = WAL")
        self._writer.execute("PRAGMA synchronous = FULL")
        self._writer.execute("PRAGMA secure_delete = ON")
        self._writer.execute("PRAGMA cache_size = -65536")
        self._writer.executescript(_SCHEMA)
        with self._writer:
            self._writer.execute("INSERT OR IGNORE INTO about VALUES ('store_id', ?)", [secrets.token_hex(8)])
            self._writer.execute("INSERT OR IGNORE INTO about VALUES ('format', ?)", [str(_FORMAT)])
        about = dict(self._writer.execute("SELECT name, value FROM about"))
        if int(about["format"]) > _FORMAT:
            raise ValueError(f"{self.path} has format {about['format']}, newer than {_FORMAT}: update polyrec")
        self._id = about["store_id"]
        # Deleted records keep their numbers: a record of a later number exists always, the note of the deletion.
        self._last: int = self._writer.execute("SELECT coalesce(max(seq), 0) FROM log").fetchone()[0]

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=30.0, check_same_thread=False)

    @property
    def store_id(self) -> str:
        """A random name that stays with the store."""
        return self._id

    @property
    def last(self) -> int:
        """The latest sequence number, 0 = none."""
        return self._last

    def append(self, records: Sequence[Record]) -> list[int]:
        """Store records in one transaction, see [`EventStore`]."""
        with self._guard, self._writer:  # commits, or rolls back
            known = self._known([r.event_id for r in records if r.event_id is not None])
            seqs, rows = numbered(records, known, self._last)
            self._writer.executemany("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?)", rows)
            forgotten = [(r.user, seq) for r, seq in zip(records, seqs, strict=True) if r.kind is Kind.FORGET]
            self._writer.executemany(
                f"DELETE FROM log WHERE user = ? AND seq < ? AND kind IN ({','.join(map(str, map(int, FORGOTTEN)))})",
                forgotten,
            )
            for record, seq in zip(records, seqs, strict=True):
                if record.kind is Kind.RETRACT:
                    query = "SELECT seq, body FROM log WHERE user = ? AND seq < ? AND kind = 0"
                    gone = retracted(record, self._writer.execute(query, [record.user, seq]).fetchall())
                    self._writer.executemany("DELETE FROM log WHERE seq = ?", [(one,) for one in gone])
        self._last += len(rows)
        if forgotten:
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # what was deleted stands in the journal, too
        return seqs

    def _known(self, event_ids: list[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        ids = iter(event_ids)
        while some := list(islice(ids, _SOME_IDS)):
            marks = ",".join("?" * len(some))
            found.update(self._writer.execute(f"SELECT event_id, seq FROM log WHERE event_id IN ({marks})", some))
        return found

    def read(self, after: int = 0, before: int | None = None, kinds: Sequence[Kind] | None = None) -> Iterator[Record]:
        """Records in order, see [`EventStore`]."""
        where = "seq > ? AND seq < ?"
        if kinds is not None:
            # The same condition as that of the index, so that events are not looked at where none is wanted.
            where += f" AND kind IN ({','.join(str(int(kind)) for kind in kinds)})"
            where += "" if Kind.EVENT in kinds else " AND kind <> 0"
        query = f"SELECT seq, kind, body, event_id, user, time FROM log WHERE {where} ORDER BY seq LIMIT {_PAGE}"
        connection = self._connect()
        try:
            while rows := connection.execute(query, [after, before or 2**62]).fetchall():
                for seq, kind, body, event_id, user, time in rows:
                    yield Record(_KINDS[kind], body, event_id, user, time, seq)
                after = rows[-1][0]
        finally:
            connection.close()

    def of_user(self, user: str, limit: int) -> list[Record]:
        """The latest events of a user, the newest first."""
        connection = self._connect()
        try:
            rows = connection.execute(
                "SELECT seq, body, event_id, time FROM log WHERE user = ? AND kind = 0 "
                "ORDER BY time DESC, seq DESC LIMIT ?",
                [user, limit],
            ).fetchall()
        finally:
            connection.close()
        return [Record(Kind.EVENT, body, event_id, user, time, seq) for seq, body, event_id, time in rows]

    def users(self, after: str, limit: int) -> list[str]:
        """Users in order of their ids, see [`EventStore`]."""
        connection = self._connect()
        try:
            rows = connection.execute(
                f"SELECT DISTINCT user FROM log WHERE user > ? AND kind IN ({Kind.EVENT:d}, {Kind.USER:d}) "
                "ORDER BY user LIMIT ?",
                [after, limit],
            ).fetchall()
        finally:
            connection.close()
        return [user for (user,) in rows]

    def close(self) -> None:
        """Let go of the file."""
        with self._guard:
            self._writer.close()
