"""What a server does, without HTTP: threads that store, count and recommend, and the exchange of models."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyrec.serving.batcher import Batcher, Job
from polyrec.serving.calls import Call
from polyrec.serving.engine import Engine
from polyrec.serving.graph_scorer import graph_scorer
from polyrec.serving.loading import keeps_events, load_state, model_name
from polyrec.serving.marks import Marks
from polyrec.serving.pending import PendingEvents
from polyrec.serving.records import EventStore, Kind, Record
from polyrec.serving.snapshots import Snapshots
from polyrec.serving.state import ServedState
from polyrec.serving.swap import check_alike
from polyrec.serving.writer import Writer

_log = logging.getLogger("polyrec.serving")


@dataclass(frozen=True)
class ServiceOptions:
    """How a server works.

    Args:
        watermark: seconds after which events count for everybody; so far events may come out of order.
        snapshot_events: events after which a snapshot is written.
        most_waiting: requests that may wait for the model.
        batch: requests of one batch.
    """

    watermark: float = 2.0
    snapshot_events: int = 250_000
    most_waiting: int = 512
    batch: int = 64


class Service:
    """A model that is served, with its state.

    Args:
        run: folder of a saved model and processor.
        store: of its events.
        folder: of its state, where snapshots lie.
    """

    def __init__(
        self, run: str | Path, store: EventStore, folder: str | Path, options: ServiceOptions | None = None
    ) -> None:
        self.run, self.store, self.folder = Path(run), store, Path(folder)
        self.options = ServiceOptions() if options is None else options
        self.pending = PendingEvents()
        self.ready = False
        self.swapping, self.swap_error = False, ""
        self.measured: Callable[[int, float], None] = lambda size, seconds: None
        self._inbox: queue.SimpleQueue[Record | Callable[[], None] | None] = queue.SimpleQueue()
        self._folded = threading.Condition()

    # ----------------------------------------------------------- life
    def start(self) -> None:
        """Recover the state, compute what first requests would wait for, and begin to serve."""
        begin = time.monotonic()
        state = load_state(self.run, self.store, self.folder)
        self.engine = self._engine(state, self.run)
        self.engine.warm()
        self.pending.add(state.waiting)
        self._since_snapshot = 0
        self.batcher = Batcher(self._respond, self.options.batch, self.options.most_waiting, self._measure)
        self._serve(self.engine, self.run)
        self.marks = Marks(self.pending, self.options.watermark, state.seq)
        self.writer = Writer(self.store, self._stored, state.seq)
        self.marks.start(self.writer)
        self._thread = threading.Thread(target=self._fold, name="polyrec-state", daemon=True)
        self._thread.start()
        self.ready = True
        _log.info("%s is ready after %.1f s, at record %d", self.engine.name, time.monotonic() - begin, state.seq)

    def stop(self) -> None:
        """Store and count what waits, write a snapshot, and end."""
        self.ready = False
        self.marks.close()
        self.writer.close()
        self._inbox.put(None)
        self._thread.join()
        self.batcher.close()
        if self.state.figures.counted or self.state.figures.late:
            self._snapshot()
        self.store.close()

    @property
    def state(self) -> ServedState:
        """The state of the model that is served now."""
        return self.engine.state

    # ----------------------------------------------------------- requests and records
    def call(self, call: Call, seconds: float) -> Job:
        """Let the model respond."""
        return self.batcher.submit(call, seconds)

    def check_keeps_events(self) -> None:
        """Refuse events of a model whose log cannot go on."""
        if not keeps_events(self.state.processor):
            raise ValueError(
                "this model keeps no events: its log has no times, or its rows bring their own lists; send the history "
                "with each request"
            )

    def submit(self, records: Sequence[Record]) -> Future[list[int]]:
        """Store records; the result is there when they are durable and known to requests of their users."""
        return self.writer.submit(records)

    def counts_all(self, user: str) -> bool:
        """Whether a request of a user sees all of their events now; one that came late is seen at the next mark."""
        events = self.pending.of(user)
        return not events or events[0].time > self.engine.latest_of(user)

    def flush(self, upto: int, seconds: float) -> bool:
        """Count all events up to a sequence number now; whether that was done in time."""
        self.marks.flush()
        return self.wait_for(lambda: not self.pending.any_until(upto), seconds)

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until something follows of the records that were folded."""
        with self._folded:
            return self._folded.wait_for(condition, seconds)

    def forgotten(self, seq: int, seconds: float) -> bool:
        """Wait until the state and its snapshot know of a record."""
        return self.wait_for(lambda: self.state.seq >= seq, seconds)

    # ----------------------------------------------------------- threads
    def _respond(self, calls: Sequence[Any]) -> list[Any]:
        engine = self.engine
        return [a if isinstance(a, Exception) else (engine.name, a) for a in engine.respond(calls)]

    def _measure(self, size: int, seconds: float) -> None:
        self.measured(size, seconds)

    def _stored(self, records: Sequence[Record]) -> None:
        """In the writer's thread: what is durable is known to its users before it is acknowledged."""
        form = self.state.format
        self.pending.add([form.read(record) for record in records if record.kind is Kind.EVENT])
        for record in records:
            if record.kind is Kind.FORGET and record.user is not None:
                self.pending.forget(record.user)
            elif record.kind is Kind.RETRACT and record.user is not None:
                self.pending.retract(record.user, json.loads(record.body)["item_id"])
            self._inbox.put(record)
        self.marks.stored(records)

    def _fold(self) -> None:
        """In the state's thread: one record after the other."""
        while (record := self._inbox.get()) is not None:
            if not isinstance(record, Record):
                record()
                continue
            try:
                before = self.state.figures.counted
                self.state.fold(record)
                self._since_snapshot += self.state.figures.counted - before
                if record.kind is Kind.MARK:
                    self.marks.counted()
                if record.kind is Kind.FORGET or self._since_snapshot >= self.options.snapshot_events:
                    self._snapshot(forgetting=record.kind is Kind.FORGET)
            except Exception:
                _log.exception("record %d failed", record.seq)
            with self._folded:
                self._folded.notify_all()

    def _snapshot(self, forgetting: bool = False) -> None:
        begin = time.monotonic()
        self.snapshots.write(self.state, forgetting)
        self._since_snapshot = 0
        _log.info("snapshot at record %d in %.1f s", self.state.seq, time.monotonic() - begin)

    def _engine(self, state: ServedState, run: str | Path) -> Engine:
        return Engine(state, self.pending, model_name(run), graph_scorer(run, state.model))

    # ----------------------------------------------------------- another model
    def _serve(self, engine: Engine, run: Path) -> None:
        """From now on this model is served."""
        state = engine.state
        state.between, state.counted = self.batcher.between, self.pending.remove
        self.engine, self.run, self.snapshots = engine, run, Snapshots(self.folder, run)

    def swap_soon(self, run: str | Path, force: bool = False) -> None:
        """[`swap`] in a thread; `swap_error` says what went wrong."""

        def swap() -> None:
            try:
                self.swap(run, force)
            except Exception as error:
                _log.error("the new model was refused (%s): %s", type(error).__name__, self.swap_error)

        threading.Thread(target=swap, name="polyrec-swap", daemon=True).start()

    def swap(self, run: str | Path, force: bool = False) -> str:
        """Load another model beside this one, and exchange the two when it knows all records; its name.

        Raises:
            ValueError: it reads other columns or has other tasks, or cannot be loaded; the model before stays.
        """
        if self.swapping:
            raise ValueError("another model is being loaded: wait until it is served")
        self.swapping, self.swap_error = True, ""
        try:
            state = load_state(run, self.store, self.folder)
            if not force:
                check_alike(self.state.processor, state.processor)
            engine = self._engine(state, run)
            engine.warm()
            done: Future[None] = Future()
            self._inbox.put(lambda: self._exchange(engine, Path(run), done))
            done.result()
            _log.info("%s is served from record %d on", engine.name, state.seq)
            return engine.name
        except Exception as error:
            self.swap_error = str(error) if isinstance(error, ValueError | OSError) else type(error).__name__
            raise
        finally:
            self.swapping = False

    def _exchange(self, engine: Engine, run: Path, done: Future[None]) -> None:
        """In the state's thread, so that both have folded the same records: what came meanwhile, then the exchange."""
        try:
            old, new = self.state, engine.state
            new.replay(self.store.read(after=new.seq, before=old.seq + 1))
            waiting = {event.seq for event in new.waiting}

            def exchange() -> None:
                self.pending.keep(old.seq, waiting)
                self._serve(engine, run)

            self.batcher.between(exchange)
            self._since_snapshot = self.options.snapshot_events  # the next mark writes one
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(None)
