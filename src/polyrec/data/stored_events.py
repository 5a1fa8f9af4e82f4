"""What users did, encoded as it was read: their histories for requests that give a user id alone.

A run folder keeps it in one file that is never pushed; user ids are in it as salted hashes.

Letters: R events, P users, E events of the past.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polyrec.core.schema import RESIDUALS, TIME_GAP
from polyrec.data.augmentation import missing_rows
from polyrec.data.encoding import time_gap
from polyrec.data.event_log import EventLog
from polyrec.data.growing import with_part
from polyrec.data.prior_history import PriorHistory
from polyrec.data.sampling import id_hashes
from polyrec.data.saved_tables import read_saved, write_saved
from polyrec.data.stored_columns import DERIVED, event_columns, flat, lists, named, widths

_SALT_BYTES = 16
_MIX = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9], dtype=np.uint64)  # odd, bits well spread (Steele, 2014)


@dataclass(eq=False)
class _Part:
    """Events of one log, and the hashes of its users, uint64 [P]."""

    log: EventLog
    salt: bytes
    rows: np.ndarray | None = None  # bool [R], events that count; None: all

    def __len__(self) -> int:
        return len(self.log)

    @cached_property
    def users(self) -> np.ndarray:
        return id_hashes(self.log.user_ids, self.salt)

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.users)

    def without(self, gone: np.ndarray) -> _Part:
        """The same without some rows."""
        found = copy(self)
        found.rows = np.ones(len(self.log), dtype=bool) if self.rows is None else self.rows.copy()
        found.rows[gone] = False
        return found

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """The user of the log for each hash, int64, -1 = none."""
        index = np.searchsorted(self.users, wanted, sorter=self._order)
        found = self._order[np.minimum(index, len(self.users) - 1)]
        return np.where(self.users[found] == wanted, found, -1) if len(self.users) else np.full(len(wanted), -1)

    def events(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the log that are events of some of its users (-1 = none), and the place of each in `users`."""
        bounds = np.append(_bounds(self.log), len(self.log))  # of -1: no events
        begin, count = bounds[users], np.diff(bounds)[users]
        owner = np.repeat(np.arange(len(users)), count)
        rows = np.arange(len(owner)) + np.repeat(begin - (np.cumsum(count) - count), count)
        if self.rows is not None:
            owner, rows = owner[self.rows[rows]], rows[self.rows[rows]]
        return rows, owner


class StoredEvents:
    """Events of all users that were counted, without copies of the logs they came in.

    Args:
        salt: of the hashes of user ids; None: a new one.
        complete: whether all events that statistics have counted are stored. They are not in a model that was shared.

    Example:
        >>> three = np.arange(3)
        >>> log = EventLog(three // 2, three + 2, three * 1.0, three, three, pa.array(["a", "b"]), np.ones((3, 1)))
        >>> stored = StoredEvents()
        >>> stored.add(log)
        >>> stored.of(pa.array(["b", "new", "a"])).item.tolist()
        [4, 2, 3]
        >>> stored.of(pa.array(["b", "new", "a"])).user.tolist()
        [0, 2, 2]
    """

    def __init__(self, salt: bytes | None = None, complete: bool = True) -> None:
        self.salt = secrets.token_bytes(_SALT_BYTES) if salt is None else salt
        self.complete = complete
        self._parts: list[_Part] = []
        self.last_time = -np.inf  # seconds, of the latest event

    @property
    def is_empty(self) -> bool:
        """Whether nothing was stored yet."""
        return not self._parts

    @property
    def count(self) -> int:
        """How many events are stored."""
        return sum(len(part) if part.rows is None else int(part.rows.sum()) for part in self._parts)

    def add(self, log: EventLog, rows: np.ndarray | None = None) -> None:
        """Remember events of a log (bool [R]; None: all), which stays as it is from now on."""
        self.prepared(log, rows)()

    def prepared(self, log: EventLog, rows: np.ndarray | None = None) -> Callable[[], None]:
        """What [`add`] has to compute; the call of the result makes the events known."""
        time = log.time if rows is None else log.time[rows]
        last = max(self.last_time, float(time.max(initial=-np.inf)))
        parts = with_part(self._parts, _Part(log, self.salt, rows), lambda a, b: _merged([a, b], self.salt))
        for part in parts:
            part.find(np.zeros(0, dtype=np.uint64))  # sorts its users now

        def apply() -> None:
            self._parts, self.last_time = parts, last

        return apply

    def without(self, user_ids: pa.Array) -> StoredEvents:
        """The same without some users."""
        found = StoredEvents(self.salt, self.complete)
        found.last_time = self.last_time
        kept = np.setdiff1d(self._all(), self.hashes(user_ids)) if self._parts else None
        if kept is not None and len(kept):
            found._parts = [_merged(self._parts, self.salt, kept)]
        return found

    def without_item(self, user_ids: pa.Array, item: int) -> StoredEvents:
        """The same without what some users did with one item, a row of the item table."""
        found = StoredEvents(self.salt, self.complete)
        found.last_time = self.last_time
        users = self.hashes(user_ids)
        for part in self._parts:
            rows, _ = part.events(part.find(users))
            gone = rows[part.log.item[rows] == item]
            found._parts.append(part.without(gone) if len(gone) else part)
        return found

    def hashes(self, user_ids: pa.Array) -> np.ndarray:
        """By what users are known here, uint64."""
        return id_hashes(user_ids, self.salt)

    def of(self, user_ids: pa.Array) -> EventLog:
        """Events of some users, who are numbered as they are given; without labels' weights and queries."""
        return _of(self._parts, self.hashes(user_ids), user_ids)

    def has_events(self, user_ids: pa.Array) -> np.ndarray:
        """Which users have any, bool [P]."""
        users = self.hashes(user_ids)
        found = np.zeros(len(users), dtype=bool)
        for part in self._parts:
            found[part.events(part.find(users))[1]] = True
        return found

    def latest(self, user_ids: pa.Array) -> np.ndarray:
        """The time of each user's latest event, seconds [P], -inf = none."""
        users, found = self.hashes(user_ids), np.full(len(user_ids), -np.inf)
        for part in self._parts:
            rows, owner = part.events(part.find(users))
            np.maximum.at(found, owner, part.log.time[rows])
        return found

    def log(self) -> EventLog:
        """Events of all users, who are known by their hashes alone."""
        users = self._all()
        return _of(self._parts, users, pa.array(users))

    def _all(self) -> np.ndarray:
        return _users(self._parts)

    def digest(self) -> str:
        """A digest of which items were events when, whatever the salt and the order in which they came."""
        total, count = np.uint64(0), 0
        for part in self._parts:
            log, rows = part.log, slice(None) if part.rows is None else part.rows
            mixed = log.item[rows].astype(np.uint64) * _MIX[0] ^ log.time[rows].view(np.uint64) * _MIX[1]
            total += (mixed ^ mixed >> np.uint64(29)).sum(dtype=np.uint64)
            count += len(mixed)
        return f"{count}-{int(total):016x}"

    # -------------------------------------------------------------- on disk
    def save(self, path: Path) -> None:
        """Write one row per user: hash, attributes, and lists of events and of events before the log."""
        log, users = self.log(), self._all()
        offsets = _bounds(log)
        columns: dict[str, Any] = {"user": pa.array(users)}
        if log.uncounted is not None:
            columns["uncounted"] = lists(log.uncounted, offsets)
        wide = widths(log.user_features, "user:") | widths(event_columns(log))
        for name, values in log.user_features.items():
            columns[f"user:{name}"] = lists(values, np.arange(len(users) + 1))
        for name, values in event_columns(log).items():
            columns[name] = lists(values, offsets)
        if log.prior_history is not None:
            past = {"item": log.prior_history.item}
            past |= {f"mark:{name}": values for name, values in log.prior_history.marks.items()}
            past |= {
                f"event:{name}": values
                for name, values in log.prior_history.event_features.items()
                if name != RESIDUALS
            }
            columns |= {f"past:{name}": lists(values, log.prior_history.offsets) for name, values in past.items()}
            wide |= widths(past, "past:")
        length = None if log.prior_history is None else log.prior_history.length
        facts = json.dumps({"salt": self.salt.hex(), "complete": self.complete, "past_length": length, "widths": wide})
        columns["facts"] = pa.array([facts] + [None] * (len(users) - 1), pa.string())  # of the whole file
        write_saved(pa.table(columns), path)

    @classmethod
    def load(cls, path: Path) -> StoredEvents:
        """Rebuild from [`save`].

        Raises:
            ValueError: the file is damaged or none that polyrec writes.
        """
        table = read_saved(path, "stored events")
        if not {"facts", "time", "user"} <= set(table.column_names):
            raise ValueError(f"{path} holds no events of users: delete it, or save the processor again")
        facts = json.loads(table["facts"][0].as_py())
        stored = cls(bytes.fromhex(facts["salt"]), facts.get("complete", True))
        users = np.asarray(table["user"].combine_chunks())
        read = {name: flat(table[name]) for name in table.column_names if name not in ("facts", "user")}
        offsets = read["time"][1]
        values = {name: found for name, (found, _) in read.items()}
        values |= {name: values[name].reshape(-1, *width) for name, width in facts["widths"].items()}
        rows = len(values["time"])
        log = EventLog(
            user=np.repeat(np.arange(len(users)), np.diff(offsets)),
            item=values["item"],
            time=values["time"],
            order=values["order"],
            row=np.arange(rows),
            user_ids=pa.array(users),
            labels=values["labels"],
            event_features=named(values, "event:"),
            candidate_features=named(values, "candidate:"),
            user_features=named(values, "user:"),
            measures=named(values, "measure:"),
            uncounted=values.get("uncounted"),
        )
        if facts["past_length"] is not None:
            log.prior_history = PriorHistory(
                read["past:item"][1],
                values["past:item"],
                named(values, "past:mark:"),
                named(values, "past:event:"),
                facts["past_length"],
            )
        stored._parts = [_Merged(log, stored.salt, None, users)]
        stored.last_time = float(log.time.max(initial=-np.inf))
        return stored


@dataclass(eq=False)
class _Merged(_Part):
    """A part whose users are known by hash already."""

    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))

    @cached_property
    def users(self) -> np.ndarray:
        return self.hashes


def _users(parts: Sequence[_Part]) -> np.ndarray:
    return np.unique(np.concatenate([part.users for part in parts]))


def _of(parts: Sequence[_Part], users: np.ndarray, user_ids: pa.Array) -> EventLog:
    """Events of some users, by hash, who are numbered as they are given."""
    found = [part.find(users) for part in parts]
    return merge([(p.log, own, p.events(own)) for p, own in zip(parts, found, strict=True)], user_ids)


def _merged(parts: Sequence[_Part], salt: bytes, users: np.ndarray | None = None) -> _Merged:
    """One part of several, of some of their users; None: of all."""
    users = _users(parts) if users is None else users
    return _Merged(_of(parts, users, pa.array(users)), salt, None, users)


def _bounds(log: EventLog) -> np.ndarray:
    """Where the events of each user begin, int64 [P + 1], also of the last users, who may have none."""
    return np.append(log.offsets, np.full(len(log.user_ids) + 1 - len(log.offsets), len(log)))


def merge(parts: Sequence[tuple[EventLog, np.ndarray, tuple[np.ndarray, np.ndarray]]], user_ids: pa.Array) -> EventLog:
    """One log of events of several, sorted by (user, time, log, order).

    Args:
        parts: of each log: the log, which of its users are meant (int64 [P], -1 = none), and as [`_Part.events`] gives
            them the rows to take and the user, 0..P-1, of each.
        user_ids: [P], of the users of the new log.
    """
    user = np.concatenate([owner for *_, (_, owner) in parts])
    part = np.repeat(np.arange(len(parts)), [len(rows) for *_, (rows, _) in parts])

    def gathered(of: Any) -> np.ndarray:
        return np.concatenate([of(log)[rows] for log, _, (rows, _) in parts])

    time, order = gathered(lambda log: log.time), gathered(lambda log: log.order)
    sort = np.lexsort((order, part, time, user))
    first = parts[0][0]

    def columns(of: Any, skip: Sequence[str] = ()) -> dict[str, np.ndarray]:
        return {name: gathered(lambda log, name=name: of(log)[name])[sort] for name in of(first) if name not in skip}

    rank = np.empty(len(sort), dtype=np.int64)
    rank[np.lexsort((order, part, time))] = np.arange(len(sort))
    untimed = gathered(lambda log: np.zeros(len(log), dtype=bool) if log.untimed is None else log.untimed)[sort]
    late = gathered(lambda log: np.zeros(len(log), dtype=bool) if log.uncounted is None else log.uncounted)[sort]
    found = EventLog(
        user=user[sort],
        item=gathered(lambda log: log.item)[sort],
        time=time[sort],
        order=rank[sort],
        row=np.arange(len(sort)),
        user_ids=user_ids,
        labels=gathered(lambda log: log.labels)[sort],
        event_features=columns(lambda log: log.event_features, DERIVED),
        candidate_features=columns(lambda log: log.candidate_features),
        user_features=_attributes([(log, users) for log, users, _ in parts]),
        measures=columns(lambda log: log.measures),
        prior_history=_past([(log, users) for log, users, _ in parts]),
        untimed=untimed if untimed.any() else None,
        uncounted=late if late.any() else None,
    )
    found.event_features[TIME_GAP] = time_gap(found)
    return found


def _attributes(parts: Sequence[tuple[EventLog, np.ndarray]]) -> dict[str, np.ndarray]:
    """Attributes of users, [P] or [P, K]: what the latest log knows of them that is not missing."""
    found: dict[str, np.ndarray] = {}
    for log, users in parts:
        for name, values in log.user_features.items():
            now = values[np.maximum(users, 0)] if len(values) else missing_rows(values, len(users))
            unknown = np.isnan(now) if now.dtype.kind == "f" else now == 0
            known = (users >= 0) & ~unknown.reshape(len(now), -1).all(axis=1)
            before = found.get(name, missing_rows(values, len(users)))
            found[name] = np.where(known.reshape(-1, *[1] * (now.ndim - 1)), now, before)
    return found


def _past(parts: Sequence[tuple[EventLog, np.ndarray]]) -> PriorHistory | None:
    """Events before the log: those of the first log that has any of the user."""
    given = [(log.prior_history, users) for log, users in parts if log.prior_history is not None]
    if not given:
        return None
    chosen = np.full(len(given[0][1]), -1)
    for number, (past, users) in reversed(list(enumerate(given))):
        lengths = np.append(np.diff(past.offsets), 0)[users]  # of -1: none
        chosen = np.where(lengths > 0, number, chosen)
    rows, owner = [], []
    for number, (past, users) in enumerate(given):
        own = np.where(chosen == number, users, -1)
        count = np.where(own >= 0, np.append(np.diff(past.offsets), 0)[own], 0)
        begin = past.offsets[np.maximum(own, 0)]
        rows.append(np.arange(count.sum()) + np.repeat(begin - (np.cumsum(count) - count), count))
        owner.append(np.repeat(np.arange(len(own)), count))
    sort = np.argsort(np.concatenate(owner), kind="stable")

    def gathered(of: Any) -> np.ndarray:
        return np.concatenate([of(past)[at] for (past, _), at in zip(given, rows, strict=True)])[sort]

    first = given[0][0]
    return PriorHistory(
        np.searchsorted(np.concatenate(owner)[sort], np.arange(len(chosen) + 1)),
        gathered(lambda past: past.item),
        {name: gathered(lambda past, name=name: past.marks[name]) for name in first.marks},
        {
            name: gathered(lambda past, name=name: past.event_features[name])
            for name in first.event_features
            if name != RESIDUALS
        },
        first.length,
    )
