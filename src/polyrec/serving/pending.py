"""Events that were acknowledged and not counted yet: their own user sees them at once."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

from polyrec.serving.events import Event


class PendingEvents:
    """Events by user, for several threads.

    Example:
        >>> pending = PendingEvents()
        >>> pending.add([Event(1, "7", 20.0, {}), Event(2, "7", 10.0, {})])
        >>> [event.seq for event in pending.of("7")], pending.newest
        ([2, 1], 20.0)
        >>> pending.remove([Event(1, "7", 20.0, {})])
        >>> len(pending), [event.seq for event in pending.of("7")]
        (1, [2])
    """

    def __init__(self) -> None:
        self._of: dict[str, dict[int, Event]] = {}
        self._lock = threading.Lock()
        self._size = 0
        self.newest = float("-inf")  # seconds, of all events that there ever were

    def __len__(self) -> int:
        return self._size

    def add(self, events: Iterable[Event]) -> None:
        """Events that are durable now."""
        with self._lock:
            for event in events:
                self._of.setdefault(event.user, {})[event.seq] = event
                self._size += 1
                self.newest = max(self.newest, event.time)

    def remove(self, events: Iterable[Event]) -> None:
        """Events that were counted."""
        with self._lock:
            for event in events:
                own = self._of.get(event.user)
                if own is not None and own.pop(event.seq, None) is not None:
                    self._size -= 1
                    if not own:
                        del self._of[event.user]

    def forget(self, user: str) -> None:
        """A user was deleted."""
        with self._lock:
            self._size -= len(self._of.pop(user, ()))

    def retract(self, user: str, item: Any) -> None:
        """Events of a user with one item were deleted."""
        self.remove([event for event in self.of(user) if str(event.columns.get("item_id")) == str(item)])

    def of(self, user: str) -> Sequence[Event]:
        """Events of a user in order of time."""
        with self._lock:
            own = self._of.get(user)
            found = [] if own is None else list(own.values())
        return sorted(found, key=lambda event: (event.time, event.seq))

    def any_until(self, seq: int) -> bool:
        """Whether an event up to a sequence number waits."""
        with self._lock:
            return any(min(own) <= seq for own in self._of.values())

    def any_before(self, time: float) -> bool:
        """Whether an event up to a time waits."""
        with self._lock:
            return any(event.time <= time for own in self._of.values() for event in own.values())

    def keep(self, upto: int, seqs: set[int]) -> None:
        """Of the events up to a sequence number, only some wait."""
        with self._lock:
            for user, own in list(self._of.items()):
                kept = {seq: event for seq, event in own.items() if seq > upto or seq in seqs}
                self._size -= len(own) - len(kept)
                if kept:
                    self._of[user] = kept
                else:
                    del self._of[user]
