"""What a server does, without HTTP: threads that store, count and recommend, and the exchange of models."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from polyrec.core.settings import SettingError, nearest
from polyrec.inference.catalog_index import IndexKind
from polyrec.runs.whole_log import keeps_events
from polyrec.serving.assignment import MAIN, SHADOW, Assignment, VariantOptions
from polyrec.serving.batcher import Batcher, Job
from polyrec.serving.calls import Call, Recommended, Similar
from polyrec.serving.engine import Engine
from polyrec.serving.give_way import giving_way
from polyrec.serving.marks import Marks
from polyrec.serving.pending import PendingEvents
from polyrec.serving.records import EventStore, Kind, Record
from polyrec.serving.shadow import Compared, Shadow
from polyrec.serving.state import ServedState
from polyrec.serving.swap import check_alike
from polyrec.serving.variant import Variant
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
        variants: further models, each for a share of the users.
        shadow: run of a model whose lists nobody sees; they are compared with those that are served.
        salt: of the hash that assigns users to variants. None: that of the store, which all its servers share.
        index: how the best items of a large catalog are found, see
            [`CatalogIndex`][polyrec.inference.catalog_index.CatalogIndex].
    """

    watermark: float = 2.0
    snapshot_events: int = 250_000
    most_waiting: int = 512
    batch: int = 64
    variants: tuple[VariantOptions, ...] = ()
    shadow: str | None = None
    salt: str | None = None
    index: IndexKind = "auto"


class By(NamedTuple):
    """Who responded: the model's name, and that of its variant."""

    model: str
    variant: str


class Service:
    """A model that is served, with its state, and its variants.

    Args:
        run: folder of a saved model and processor.
        store: of its events.
        folder: of its state, where snapshots lie.
    """

    def __init__(
        self, run: str | Path, store: EventStore, folder: str | Path, options: ServiceOptions | None = None
    ) -> None:
        self.store, self.folder = store, Path(folder)
        self.options = options = ServiceOptions() if options is None else options
        self.assignment = Assignment(options.variants, store.store_id if options.salt is None else options.salt)
        runs = {MAIN: str(run)} | {variant.name: variant.run for variant in options.variants}
        runs |= {SHADOW: options.shadow} if options.shadow is not None else {}
        how = options.snapshot_events, options.index
        self.variants = {name: Variant(name, own, store, folder, *how) for name, own in runs.items()}
        self.main = self.variants[MAIN]
        self.main.assigned = self.assignment.of if options.variants else None
        self.shadow: Shadow | None = None
        self.ready = False
        self.swapping, self.swap_error = False, ""
        self.measured: Callable[[int, float], None] = lambda size, seconds: None
        self.responded: Callable[[str, int, float], None] = lambda variant, size, seconds: None
        self.compared: Callable[[Compared | None], None] = lambda found: None
        self._inbox: queue.SimpleQueue[Record | Callable[[], None] | None] = queue.SimpleQueue()
        self._folded = threading.Condition()

    # ----------------------------------------------------------- life
    def start(self) -> None:
        """Recover the states, compute what first requests would wait for, and begin to serve."""
        begin = time.monotonic()
        for variant in self.variants.values():
            variant.load()
            check_alike(self.state.processor, variant.state.processor)
        upto = max(variant.state.seq for variant in self.variants.values())
        self.batcher = Batcher(self._respond, self.options.batch, self.options.most_waiting, self._measure)
        for variant in self.variants.values():
            variant.begin(upto, self.batcher.between)
        if SHADOW in self.variants:
            self.shadow = Shadow(self.variants[SHADOW], self.batcher.when_idle, lambda found: self.compared(found))
        self.marks = Marks(self.pending, self.options.watermark, upto)
        self.writer = Writer(self.store, self._stored, upto)
        self.marks.start(self.writer)
        self._thread = threading.Thread(target=self._fold, name="polyrec-state", daemon=True)
        self._thread.start()
        self.ready = True
        for variant in self.variants.values():
            _log.info("%s: %s is ready at record %d", variant.name, variant.engine.name, upto)
        _log.info("ready after %.1f s", time.monotonic() - begin)

    def stop(self) -> None:
        """Store and count what waits, write snapshots, and end."""
        self.ready = False
        self.marks.close()
        self.writer.close()
        self._inbox.put(None)
        self._thread.join()
        self.batcher.close()
        for variant in self.variants.values():
            if variant.state.figures.counted or variant.state.figures.late:
                variant.snapshot()
        self.store.close()

    # ----------------------------------------------------------- the main model
    @property
    def engine(self) -> Engine:
        """The main model's."""
        return self.main.engine

    @property
    def state(self) -> ServedState:
        """The main model's, which checks what clients send."""
        return self.main.state

    @property
    def pending(self) -> PendingEvents:
        """The main model's."""
        return self.main.pending

    @property
    def run(self) -> Path:
        """The main model's."""
        return self.main.run

    # ----------------------------------------------------------- requests and records
    def call(self, call: Call, seconds: float, wake: bool = True) -> Job:
        """Let the model that the user sees respond; `wake` as of `Batcher.submit`."""
        user = None if isinstance(call, Similar) else call.who.user_id
        return self.batcher.submit((self.variant_of(user), call), seconds, wake)

    def variant_of(self, user: Any) -> str:
        """The variant that a user sees."""
        return self.assignment.of(None if user is None else str(user))

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
        """Whether a request of a user sees all of their events now."""
        return self.variants[self.variant_of(user)].counts_all(user)

    def flush(self, upto: int, seconds: float) -> bool:
        """Count all events up to a sequence number now; whether that was done in time."""
        self.marks.flush()
        own = [variant.pending for variant in self.variants.values()]
        return self.wait_for(lambda: not any(pending.any_until(upto) for pending in own), seconds)

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until something follows of the records that were folded."""
        with self._folded:
            return self._folded.wait_for(condition, seconds)

    def forgotten(self, seq: int, seconds: float) -> bool:
        """Wait until all states and their snapshots know of a record."""
        return self.wait_for(lambda: all(variant.state.seq >= seq for variant in self.variants.values()), seconds)

    # ----------------------------------------------------------- threads
    def _respond(self, calls: Sequence[tuple[str, Any]]) -> list[Any]:
        found: list[Any] = [None] * len(calls)
        for name in dict.fromkeys(name for name, _ in calls):
            places = [place for place, (own, _) in enumerate(calls) if own == name]
            begin, engine = time.perf_counter(), self.variants[name].engine
            responses = engine.respond([calls[place][1] for place in places])
            self.responded(name, len(places), time.perf_counter() - begin)
            for place, response in zip(places, responses, strict=True):
                found[place] = response if isinstance(response, Exception) else (By(engine.name, name), response)
                if self.shadow is not None and isinstance(response, Recommended):
                    self.shadow.offer(calls[place][1], response.rows)
        return found

    def _measure(self, size: int, seconds: float) -> None:
        self.measured(size, seconds)

    def _stored(self, records: Sequence[Record]) -> None:
        """In the writer's thread: what is durable is known to its users before it is acknowledged."""
        events = self.state.format.read_all([record for record in records if record.kind is Kind.EVENT])
        for variant in self.variants.values():
            variant.stored(events, records)
        for record in records:
            self._inbox.put(record)
        self.marks.stored(records)

    def _fold(self) -> None:
        """In the state's thread: one record after the other."""
        while (record := self._inbox.get()) is not None:
            if not isinstance(record, Record):
                record()
                continue
            for variant in self.variants.values():
                variant.fold(record)
            if record.kind is Kind.MARK:
                self.marks.counted()
            with self._folded:
                self._folded.notify_all()

    # ----------------------------------------------------------- another model
    def swap_soon(self, run: str | Path, force: bool = False, variant: str = MAIN) -> None:
        """[`swap`] in a thread; `swap_error` says what went wrong.

        Raises:
            ValueError: there is no such variant, or another model is being loaded.
        """
        own = self._begin_swap(variant)

        def swap() -> None:
            try:
                self._swap(own, run, force)
            except Exception as error:
                _log.error("the new model was refused (%s): %s", type(error).__name__, self.swap_error)

        threading.Thread(target=swap, name="polyrec-swap", daemon=True).start()

    def swap(self, run: str | Path, force: bool = False, variant: str = MAIN) -> str:
        """Load another model beside the one of a variant, and exchange the two when it knows all records; its name.

        Raises:
            ValueError: it reads other columns or has other tasks, or cannot be loaded; the model before stays.
        """
        return self._swap(self._begin_swap(variant), run, force)

    def _begin_swap(self, variant: str) -> Variant:
        if variant not in self.variants:
            raise SettingError("variant", f"is {variant!r}; {nearest(variant, list(self.variants))}")
        with self._folded:
            if self.swapping:
                raise ValueError("another model is being loaded: wait until it is served")
            self.swapping, self.swap_error = True, ""
        return self.variants[variant]

    def _swap(self, own: Variant, run: str | Path, force: bool) -> str:
        try:
            with giving_way(lambda: self.batcher.busy):
                engine = own.next_engine(run, force)
            done: Future[None] = Future()
            self._inbox.put(lambda: own.exchange(engine, Path(run), done))
            done.result()
            _log.info("%s: %s is served from record %d on", own.name, engine.name, engine.state.seq)
            return engine.name
        except Exception as error:
            self.swap_error = str(error) if isinstance(error, ValueError | OSError) else type(error).__name__
            raise
        finally:
            self.swapping = False
