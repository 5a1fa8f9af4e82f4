"""Records in PostgreSQL: the store of servers that may run on several machines, one of which writes at a time."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg

from polyrec.serving.records import FORGOTTEN, Kind, Record, numbered, retracted

_PAGE = 20_000  # records read at a time
_LOCK = 0x706F6C79  # of the application: whoever holds it appends
_SCHEMA = """
CREATE TABLE IF NOT EXISTS polyrec_log (
  seq BIGINT PRIMARY KEY, kind SMALLINT NOT NULL, body TEXT NOT NULL, event_id TEXT, user_id TEXT,
  time DOUBLE PRECISION);
CREATE UNIQUE INDEX IF NOT EXISTS polyrec_log_event ON polyrec_log (event_id) WHERE event_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS polyrec_log_user ON polyrec_log (user_id) WHERE user_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS polyrec_log_control ON polyrec_log (seq) WHERE kind <> 0;
CREATE TABLE IF NOT EXISTS polyrec_about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class PostgresStore:
    """[`EventStore`] in a database. Commits wait for the disk (`synchronous_commit`), whatever the server's default.

    Sequence numbers are given while a lock of the database is held, so that a reader that has seen a number has seen
    all before it; a database sequence would give them in another order than that of commits.

    Args:
        url: e.g. "postgresql://user@host/name", see libpq.
    """

    shared = True

    def __init__(self, url: str) -> None:
        self._url = url
        self._guard = threading.Lock()
        self._writer = self._connect()
        with self._writer.transaction():
            self._writer.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])  # two servers may start at once
            self._writer.execute(_SCHEMA)
            self._writer.execute(
                "INSERT INTO polyrec_about VALUES ('store_id', %s) ON CONFLICT DO NOTHING", [secrets.token_hex(8)]
            )
        self._id = self._one(self._writer, "SELECT value FROM polyrec_about WHERE name = 'store_id'")

    def _connect(self) -> psycopg.Connection[Any]:
        connection = psycopg.connect(self._url, autocommit=True, connect_timeout=10)
        connection.execute("SET synchronous_commit = on")
        return connection

    @staticmethod
    def _one(connection: psycopg.Connection[Any], query: str) -> Any:
        row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]

    @property
    def store_id(self) -> str:
        """A random name that stays with the store."""
        return str(self._id)

    @property
    def last(self) -> int:
        """The latest sequence number of all servers, 0 = none."""
        with self._connect() as connection:
            return int(self._one(connection, "SELECT coalesce(max(seq), 0) FROM polyrec_log"))

    def append(self, records: Sequence[Record]) -> list[int]:
        """Store records in one transaction, see [`EventStore`]."""
        with self._guard:
            if self._writer.closed or self._writer.broken:
                self._writer = self._connect()
            with self._writer.transaction(), self._writer.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
                last = int(self._one(self._writer, "SELECT coalesce(max(seq), 0) FROM polyrec_log"))
                ids = [record.event_id for record in records if record.event_id is not None]
                cursor.execute("SELECT event_id, seq FROM polyrec_log WHERE event_id = ANY(%s)", [ids])
                known: dict[str, int] = dict(cursor.fetchall()) if ids else {}
                seqs, rows = numbered(records, known, last)
                with cursor.copy("COPY polyrec_log (seq, kind, body, event_id, user_id, time) FROM STDIN") as copy:
                    for row in rows:
                        copy.write_row(row)
                for record, seq in zip(records, seqs, strict=True):
                    if record.kind is Kind.FORGET:
                        cursor.execute(
                            "DELETE FROM polyrec_log WHERE user_id = %s AND seq < %s AND kind = ANY(%s)",
                            [record.user, seq, [int(kind) for kind in FORGOTTEN]],
                        )
                    elif record.kind is Kind.RETRACT:
                        query = "SELECT seq, body FROM polyrec_log WHERE user_id = %s AND seq < %s AND kind = 0"
                        gone = retracted(record, cursor.execute(query, [record.user, seq]).fetchall())
                        cursor.execute("DELETE FROM polyrec_log WHERE seq = ANY(%s)", [gone])
            return seqs

    def read(self, after: int = 0, before: int | None = None, kinds: Sequence[Kind] | None = None) -> Iterator[Record]:
        """Records in order, see [`EventStore`]."""
        wanted = [int(kind) for kind in (tuple(Kind) if kinds is None else kinds)]
        control = "" if Kind.EVENT in wanted else " AND kind <> 0"
        query = (
            "SELECT seq, kind, body, event_id, user_id, time FROM polyrec_log "
            f"WHERE seq > %s AND seq < %s AND kind = ANY(%s){control} ORDER BY seq LIMIT {_PAGE}"
        )
        with self._connect() as connection:
            while rows := connection.execute(query, [after, before or 2**62, wanted]).fetchall():
                for seq, kind, body, event_id, user, time in rows:
                    yield Record(Kind(kind), body, event_id, user, time, seq)
                after = rows[-1][0]

    def of_user(self, user: str, limit: int) -> list[Record]:
        """The latest events of a user, the newest first."""
        with self._connect() as connection:
            rows = connection.execute(
                "SELECT seq, body, event_id, time FROM polyrec_log WHERE user_id = %s AND kind = 0 "
                "ORDER BY time DESC, seq DESC LIMIT %s",
                [user, limit],
            ).fetchall()
        return [Record(Kind.EVENT, body, event_id, user, time, seq) for seq, body, event_id, time in rows]

    def users(self, after: str, limit: int) -> list[str]:
        """Users in order of their ids, see [`EventStore`]."""
        with self._connect() as connection:
            rows = connection.execute(
                'SELECT DISTINCT user_id COLLATE "C" AS id FROM polyrec_log WHERE user_id COLLATE "C" > %s '
                "AND kind = ANY(%s) ORDER BY id LIMIT %s",
                [after, [int(Kind.EVENT), int(Kind.USER)], limit],
            ).fetchall()
        return [user for (user,) in rows]

    def close(self) -> None:
        """Let go of the connection."""
        with self._guard:
            self._writer.close()
