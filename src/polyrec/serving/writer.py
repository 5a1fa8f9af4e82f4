"""Group commit: whatever waits while the disk is busy is stored together by the next commit."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from polyrec.serving.records import EventStore, Record

_log = logging.getLogger("polyrec.serving")
_MOST = 20_000  # records of one commit
_POLL = 0.1  # seconds between looks at what other servers have stored


_Submission = tuple[Sequence[Record], Future[list[int]]]


class QueueFull(Exception):
    """More waits than is allowed: come again later."""


class Writer:
    """The thread that appends to a store.

    Args:
        store: nobody else appends to it.
        stored: called in this thread with records and their numbers once they are durable, each once and in order,
            before any response; also with those of other servers of the store.
        known: the latest record before them.
        most_waiting: records that may wait.
    """

    def __init__(
        self, store: EventStore, stored: Callable[[Sequence[Record]], None], known: int = 0, most_waiting: int = 100_000
    ) -> None:
        self.store, self._stored, self.known, self._most_waiting = store, stored, known, most_waiting
        self._waiting: deque[_Submission] = deque()
        self._size, self._closed = 0, False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="polyrec-writer", daemon=True)
        self._thread.start()

    def submit(self, records: Sequence[Record]) -> Future[list[int]]:
        """Store records. The result, their sequence numbers, is there when they are durable.

        Raises:
            QueueFull: too many wait.
        """
        future: Future[list[int]] = Future()
        with self._wake:
            if self._closed:
                raise QueueFull("the server stops")
            if self._size + len(records) > self._most_waiting:
                raise QueueFull(f"{self._size:,} records wait to be stored")
            self._waiting.append((records, future))
            self._size += len(records)
            self._wake.notify()
        return future

    @property
    def waiting(self) -> int:
        """Records that wait."""
        return self._size

    def close(self) -> None:
        """Store what waits, and end."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closed:
                    if not self._wake.wait(_POLL if self.store.shared else None):
                        break
                if not self._waiting and self._closed:
                    return
                group: list[_Submission] = []
                count = 0
                while self._waiting and (not group or count + len(self._waiting[0][0]) <= _MOST):
                    group.append(self._waiting.popleft())
                    count += len(group[-1][0])
                self._size -= count
            if group:
                self._commit(group)
            elif self.store.shared:
                self._tail()

    def _tail(self) -> None:
        """Tell of what others have stored."""
        try:
            records = list(self.store.read(after=self.known))
        except Exception as error:  # the database is away for a while
            _log.error("records of other servers cannot be read (%s)", type(error).__name__)
            return
        if records:
            self.known = records[-1].seq
            self._stored(records)

    def _commit(self, group: list[_Submission]) -> None:
        records = [record for some, _ in group for record in some]
        try:
            seqs = self.store.append(records)
        except Exception as error:
            if len(group) > 1:  # what cannot be stored must not take others with it
                for one in group:
                    self._commit([one])
            else:
                _resolve(group[0][1], error)
            return
        if self.store.shared:
            self._tail()
        else:
            new: dict[int, Record] = {}
            for seq, record in zip(seqs, records, strict=True):
                if seq > self.known:
                    new.setdefault(seq, record._replace(seq=seq))
            self.known = max([self.known, *seqs])
            self._stored([new[seq] for seq in sorted(new)])
        at = 0
        for some, future in group:
            _resolve(future, seqs[at : at + len(some)])
            at += len(some)


def _resolve(future: Future[list[int]], response: list[int] | Exception) -> None:
    """Say what has become of records, if anybody still waits; they are stored in any case."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(response, Exception):
        future.set_exception(response)
    else:
        future.set_result(response)
