"""Dynamic batches: one thread runs the model, and takes whatever has come while it was busy."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from polyrec.serving.writer import QueueFull

_log = logging.getLogger("polyrec.serving")
_SPARE, _REST = 64, 4.0  # works that wait for an idle model; how many times its length passes after one of them


class Expired(Exception):
    """The deadline of a request passed before the model came to it."""


@dataclass
class Job:
    """A request that waits.

    Args:
        call: what `respond` of the batcher reads.
        deadline: of `time.monotonic`.
        future: its result; cancelled when the client has gone.
    """

    call: Any
    deadline: float
    future: Future[Any] = field(default_factory=Future)


class Batcher:
    """The thread that runs the model.

    There is no timer: an idle model takes a request at once, and a busy one finds a batch waiting when it is done.

    Args:
        respond: results or exceptions of several requests, in their order; called in the thread.
        most: requests of one batch.
        most_waiting: more are refused.
        measured: called with the size of each batch and its seconds.
    """

    def __init__(
        self,
        respond: Callable[[Sequence[Any]], Sequence[Any]],
        most: int = 64,
        most_waiting: int = 512,
        measured: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._respond, self._most, self._most_waiting, self._measured = respond, most, most_waiting, measured
        self._waiting: deque[Job] = deque()
        self._changes: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._spare: deque[Callable[[], None]] = deque(maxlen=_SPARE)
        self._spare_from = 0.0  # of `time.monotonic`
        self._wake = threading.Condition()
        self._closed = self._serves = False
        self._thread = threading.Thread(target=self._run, name="polyrec-model", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether a request is being served, or waits."""
        return self._serves or bool(self._waiting)

    def submit(self, call: Any, seconds: float, wake: bool = True) -> Job:
        """Let a request wait for the model, no longer than so many seconds.

        Args:
            wake: False: an idle model begins with [`wake`], so that requests that come together are one batch.

        Raises:
            QueueFull: too many wait.
        """
        job = Job(call, time.monotonic() + seconds)
        with self._wake:
            if self._closed:
                raise QueueFull("the server stops")
            if len(self._waiting) >= self._most_waiting:
                self._drop()
            if len(self._waiting) >= self._most_waiting:
                raise QueueFull(f"{len(self._waiting)} requests wait for the model")
            self._waiting.append(job)
            if wake:
                self._wake.notify()
        return job

    def wake(self) -> None:
        """Begin with what waits, if the model is idle."""
        with self._wake:
            self._wake.notify()

    def between(self, change: Callable[[], None]) -> None:
        """Run a change between two batches, and return when it is made."""
        done: Future[None] = Future()
        with self._wake:
            if self._closed:
                raise QueueFull("the server stops")
            self._changes.append((change, done))
            self._wake.notify()
        done.result()

    def when_idle(self, work: Callable[[], None]) -> None:
        """Do something when nothing waits, or never: the oldest of many is given up.

        It takes a fifth of the idle time at most, so that few requests come while it runs.
        """
        with self._wake:
            self._spare.append(work)
            self._wake.notify()

    def close(self) -> None:
        """Refuse what waits, and end."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _drop(self) -> None:
        """Forget requests of clients that have gone and those that are too late."""
        now, kept = time.monotonic(), deque[Job]()
        for job in self._waiting:
            if job.deadline <= now:
                _resolve(job.future, Expired("too many requests came before"))
            elif not job.future.cancelled():
                kept.append(job)
        self._waiting = kept

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._changes or self._closed):
                    rest = self._spare_from - time.monotonic() if self._spare else None
                    if rest is not None and rest <= 0:
                        break
                    self._wake.wait(rest)
                changes, self._changes = self._changes, deque()
                if self._closed:
                    for job in self._waiting:
                        _resolve(job.future, QueueFull("the server stops"))
                    self._waiting.clear()
                self._drop()
                batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
                ends = self._closed and not changes
            for change, done in changes:
                _make(change, done)
            if batch:
                self._batch(batch)
            elif not changes and self._spare:
                self._idle(self._spare.popleft())
            if ends:
                return

    def _idle(self, work: Callable[[], None]) -> None:
        begin = time.monotonic()
        try:
            work()
        except Exception:
            _log.exception("work of an idle model failed")
        now = time.monotonic()
        self._spare_from = now + _REST * (now - begin)

    def _batch(self, batch: Sequence[Job]) -> None:
        begin, self._serves = time.perf_counter(), True
        try:
            found = self._respond([job.call for job in batch])
        except Exception as error:  # whatever it is, the thread goes on
            _log.exception("a batch failed")
            found = [error] * len(batch)
        self._serves = False
        self._measured(len(batch), time.perf_counter() - begin)
        for job, response in zip(batch, found, strict=True):
            _resolve(job.future, response)


def _resolve(future: Future[Any], response: Any) -> None:
    """Give a response, if anybody still waits: whoever does not has cancelled it, maybe just now."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(response, Exception):
        future.set_exception(response)
    else:
        future.set_result(response)


def _make(change: Callable[[], None], done: Future[None]) -> None:
    try:
        change()
    except Exception as error:
        done.set_exception(error)
    else:
        done.set_result(None)
