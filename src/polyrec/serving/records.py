"""What a server keeps: one sequence of records, of which its whole state follows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, Protocol


class Kind(IntEnum):
    """Of a record."""

    EVENT = 0  # somebody did something with an item
    MARK = 1  # events up to a sequence number and a time were counted together
    ITEM = 2  # an item is new, or has other attributes, or is hidden, or shown again
    USER = 3  # attributes of a user
    FORGET = 4  # a user was deleted
    RETRACT = 5  # events of a user with one item were deleted


FORGOTTEN = (Kind.EVENT, Kind.USER, Kind.RETRACT)  # records of a user that go with them


class Record(NamedTuple):
    """One record.

    Args:
        kind: see [`Kind`].
        body: JSON, as it was sent.
        event_id: of an event; a second one with the same id is the same event.
        user: id of the user as text.
        time: seconds; of a mark: events of later times were not counted yet.
        seq: 1, 2, ... in the order of acknowledgement; 0: not stored yet.
        columns: the body, read; None: it must be read.
    """

    kind: Kind
    body: str
    event_id: str | None = None
    user: str | None = None
    time: float | None = None
    seq: int = 0
    columns: dict[str, Any] | None = None


Row = tuple[int, int, str, str | None, str | None, float | None]  # seq, kind, body, event_id, user, time


def numbered(records: Sequence[Record], known: dict[str, int], last: int) -> tuple[list[int], list[Row]]:
    """Sequence numbers of records, and the rows of those that are new.

    Args:
        known: {event_id: sequence number} of those that are stored; gets the new ones.
        last: the latest sequence number.
    """
    seqs: list[int] = []
    rows: list[Row] = []
    for record in records:
        seq = None if record.event_id is None else known.get(record.event_id)
        if seq is None:
            seq = last + len(rows) + 1
            rows.append((seq, int(record.kind), record.body, record.event_id, record.user, record.time))
            if record.event_id is not None:
                known[record.event_id] = seq
        seqs.append(seq)
    return seqs, rows


def retracted(record: Record, of_user: Iterable[tuple[int, str]]) -> list[int]:
    """Which events a record of deleted ones means.

    Args:
        of_user: sequence number and body of the user's earlier events.
    """
    item = str(json.loads(record.body)["item_id"])
    return [seq for seq, body in of_user if str(json.loads(body).get("item_id")) == item]


class EventStore(Protocol):
    """Keeps records durably and in order. `append` is called by one thread at a time, all else by any.

    Attributes:
        shared: whether others append, too.
    """

    shared: bool

    def append(self, records: Sequence[Record]) -> list[int]:
        """Store records and return when they are on disk. One that forgets a user, or events, deletes earlier ones.

        Returns:
            their sequence numbers; that of the first one where an `event_id` is known already.
        """

    def read(self, after: int = 0, before: int | None = None, kinds: Sequence[Kind] | None = None) -> Iterator[Record]:
        """Records with after < seq < before in order, each of them once.

        Args:
            kinds: only these. None: all.
        """

    def of_user(self, user: str, limit: int) -> list[Record]:
        """The latest events of a user, the newest first."""

    def users(self, after: str, limit: int) -> list[str]:
        """Users with events or attributes whose ids are greater than one, in order; "" is less than all."""

    @property
    def last(self) -> int:
        """The latest sequence number, 0 = none."""

    @property
    def store_id(self) -> str:
        """A random name that stays with the store."""

    def close(self) -> None:
        """Let go of files and connections."""
