"""When events are counted: marks that say up to which record and time."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Sequence

from polyrec.serving.pending import PendingEvents
from polyrec.serving.records import Kind, Record
from polyrec.serving.writer import Writer

_log = logging.getLogger("polyrec.serving")
_MOST = 50_000  # events that wait no longer
_MARKS = 4  # in the time of a watermark


class Marks:
    """The clock that stores marks.

    Each mark counts what has come, up to a time: that of the newest event less `watermark`, so that events may come out
    of order by so much, or, where nothing came for so long, all. Several marks in that time share the work: counting
    holds up acknowledgements.

    Args:
        pending: events that were not counted.
        watermark: seconds.
        last: the latest event.
    """

    def __init__(self, pending: PendingEvents, watermark: float, last: int) -> None:
        self._pending, self._watermark = pending, watermark
        self._last, self._arrived = last, float("-inf")
        self._wanted = self._running = self._closed = False
        self._wake = threading.Condition()

    def start(self, writer: Writer) -> None:
        """Begin; this writer stores the marks."""
        self._writer = writer
        self._thread = threading.Thread(target=self._run, name="polyrec-marks", daemon=True)
        self._thread.start()

    def stored(self, records: Sequence[Record]) -> None:
        """Records that are durable."""
        if events := [record.seq for record in records if record.kind is Kind.EVENT]:
            self._last, self._arrived = max(self._last, *events), time.monotonic()
        if len(self._pending) >= _MOST and not self._running:
            with self._wake:
                self._wake.notify()

    def flush(self) -> None:
        """Count all now."""
        with self._wake:
            self._wanted = True
            self._wake.notify()

    def counted(self) -> None:
        """The latest mark was counted."""
        with self._wake:
            self._running = False
            if self._wanted:
                self._wake.notify()

    def close(self) -> None:
        """Store a last mark of all, and end."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                if not (self._closed or (self._wanted and not self._running)):
                    self._wake.wait(self._watermark / _MARKS)
                closed, wanted = self._closed, self._wanted
                if self._running and not closed:
                    continue
                self._wanted = False
                self._running = True
            if not self._mark(everything=wanted or closed):
                self._running = False
            if closed:
                return

    def _mark(self, everything: bool) -> bool:
        """Store a mark, if there is something to count."""
        last, newest = self._last, self._pending.newest
        idle = time.monotonic() - self._arrived >= self._watermark
        upto = newest if everything or idle else newest - self._watermark
        if not self._pending.any_before(upto):
            return False
        body = json.dumps({"upto": last})
        try:
            self._writer.submit([Record(Kind.MARK, body, time=upto)]).result()
        except Exception as error:
            _log.error("no mark could be stored (%s)", type(error).__name__)
            return False
        return True
