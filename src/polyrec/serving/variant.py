"""One of the models that a server serves, with its own state of the one sequence of records."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import groupby, islice
from pathlib import Path

from polyrec.inference.catalog_index import IndexKind
from polyrec.serving.engine import Engine
from polyrec.serving.events import Event
from polyrec.serving.graph_scorer import graph_scorer
from polyrec.serving.loading import load_state, model_name
from polyrec.serving.pending import PendingEvents
from polyrec.serving.records import EventStore, Kind, Record
from polyrec.serving.snapshots import Snapshots
from polyrec.serving.state import Change, ServedState
from polyrec.serving.swap import check_alike

_log = logging.getLogger("polyrec.serving")


class Variant:
    """A model and its state: all variants fold the same records, and each can be exchanged alone.

    Args:
        name: in responses and metrics.
        run: folder of a saved model and processor.
        store: of the records.
        folder: of the server's state, where snapshots lie.
        snapshot_events: events after which a snapshot is written.
        index: how the best items of a large catalog are found.
    """

    def __init__(
        self,
        name: str,
        run: str | Path,
        store: EventStore,
        folder: str | Path,
        snapshot_events: int,
        index: IndexKind = "exact",
    ) -> None:
        self.name, self.run = name, Path(run)
        self.pending = PendingEvents()
        self.assigned: Callable[[str], str] | None = None  # the variant of a user, which events keep
        self._store, self._folder, self._snapshot_events = store, Path(folder), snapshot_events
        self._since_snapshot, self._index = 0, index

    @property
    def state(self) -> ServedState:
        """Of the model that is served now."""
        return self.engine.state

    def load(self) -> None:
        """Recover the state, and compute what first requests would wait for."""
        self.engine = self.engine_of(self.run)

    def engine_of(self, run: str | Path) -> Engine:
        """A run's model with all records, ready to serve."""
        state = load_state(run, self._store, self._folder)
        engine = Engine(state, self.pending, model_name(run), graph_scorer(run, state.model), self._index)
        engine.warm()
        return engine

    def begin(self, upto: int, between: Callable[[Change], None]) -> None:
        """Serve, from a record on.

        Args:
            between: see [`ServedState`].
        """
        self.state.replay(self._store.read(after=self.state.seq, before=upto + 1))  # what came while others loaded
        self.pending.add(self.state.waiting)
        self._serve(self.engine, self.run, between)

    def _serve(self, engine: Engine, run: Path, between: Callable[[Change], None]) -> None:
        engine.state.between, engine.state.counted = between, self.pending.remove
        engine.state.format.assigned = self.assigned
        self.engine, self.run, self._snapshots = engine, run, Snapshots(self._folder, run)

    # ----------------------------------------------------------- records
    def stored(self, events: Sequence[Event], records: Sequence[Record]) -> None:
        """Know of records that are durable.

        Args:
            events: of the records, those that are, in the same order.
        """
        left = iter(events)
        # In their order: what comes after a deletion stays.
        for are_events, some in groupby(records, lambda record: record.kind is Kind.EVENT):
            if are_events:
                self.pending.add(islice(left, sum(1 for _ in some)))
                continue
            for record in some:
                if record.kind is Kind.FORGET and record.user is not None:
                    self.pending.forget(record.user)
                elif record.kind is Kind.RETRACT and record.user is not None:
                    self.pending.retract(record.user, json.loads(record.body)["item_id"])

    def fold(self, record: Record) -> None:
        """Take one record into the state; only the state's thread calls it."""
        try:
            before = self.state.figures.counted
            self.state.fold(record)
            self._since_snapshot += self.state.figures.counted - before
            if record.kind is Kind.FORGET or self._since_snapshot >= self._snapshot_events:
                self.snapshot(forgetting=record.kind is Kind.FORGET)
        except Exception:
            _log.exception("record %d failed", record.seq)

    def snapshot(self, forgetting: bool = False) -> None:
        """Write one."""
        begin = time.monotonic()
        self._snapshots.write(self.state, forgetting)
        self._since_snapshot = 0
        _log.info("snapshot of %s at record %d in %.1f s", self.name, self.state.seq, time.monotonic() - begin)

    def counts_all(self, user: str) -> bool:
        """Whether a request of a user sees all of their events now; one that came late is seen at the next mark."""
        events = self.pending.of(user)
        return not events or events[0].time > self.engine.latest_of(user)

    # ----------------------------------------------------------- another model
    def next_engine(self, run: str | Path, force: bool) -> Engine:
        """Another run's model, beside the one that is served.

        Raises:
            ValueError: it reads other columns or has other tasks, or cannot be loaded.
        """
        engine = self.engine_of(run)
        if not force:
            check_alike(self.state.processor, engine.state.processor)
        return engine

    def exchange(self, engine: Engine, run: Path, done: Future[None]) -> None:
        """In the state's thread, so that both have folded the same records: what came meanwhile, then the exchange."""
        try:
            old, new = self.state, engine.state
            between = old.between
            new.replay(self._store.read(after=new.seq, before=old.seq + 1))
            waiting = {event.seq for event in new.waiting}

            def exchange() -> None:
                self.pending.keep(old.seq, waiting)
                self._serve(engine, run, between)

            between(exchange)
            self._since_snapshot = self._snapshot_events  # the next mark writes one
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(None)
