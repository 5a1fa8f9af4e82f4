"""From a run folder to a model that can be served."""

from __future__ import annotations

import gc
import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import transformers

from polyrec.core.swap import recover
from polyrec.data.stored_events import StoredEvents
from polyrec.data.tables import read_table
from polyrec.inference.unknown_ids import UnknownIdWarning
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.prepare import read_run, tables_of
from polyrec.runs.whole_log import keeps_events, see_log
from polyrec.serving.records import EventStore
from polyrec.serving.snapshots import Snapshots
from polyrec.serving.state import ServedState
from polyrec.tracking.run_files import RECIPE_NAME

_log = logging.getLogger("polyrec.serving")
_COVERS = b"polyrec.serving"  # metadata of a table of exported events


@dataclass(frozen=True)
class Covered:
    """Which records of a store a log holds.

    Args:
        upto: the latest one, 0: none.
        left_out: events before that one which came too late for the log.
    """

    upto: int = 0
    left_out: frozenset[int] = frozenset()

    def metadata(self, store_id: str) -> dict[bytes, bytes]:
        """Of a table of exported events."""
        return {_COVERS: f"{store_id} {self.upto} {','.join(map(str, sorted(self.left_out)))}".encode()}

    @classmethod
    def of_table(cls, path: str | Path, store_id: str) -> Covered:
        """What a table holds; nothing, if it was not exported from this store."""
        if Path(path).suffix != ".parquet":
            return cls()
        text = (pq.read_schema(path).metadata or {}).get(_COVERS, b"").decode()
        name, upto, left_out = [*text.split(" "), "", ""][:3]
        return cls(int(upto), frozenset(map(int, filter(None, left_out.split(","))))) if name == store_id else cls()


def load_state(run: str | Path, store: EventStore, folder: str | Path, whole_log: bool = True) -> ServedState:
    """Model and processor of a run, with all that the store holds.

    Args:
        folder: of the server's state, where snapshots lie.
        whole_log: also know the events of the run's log that were held out of training, if its tables are there.
    """
    place = recover(run)
    model, processor = PolyRecForRecommendation.from_pretrained(place), PolyRecProcessor.from_pretrained(place)
    model.eval()
    covered = covered_run(place, store.store_id)
    users = tables_of_run(place, "users")
    if processor.stored_events is None and keeps_events(processor):
        # A model that was shared knows no users; what its statistics have counted is not among the events.
        counted = processor.statistics is not None and processor.statistics.last_time > float("-inf")
        processor.stored_events = StoredEvents(complete=not counted)

    for path in users if not len(processor.users.ids) else ():
        processor.extend(users=read_table(path, "users"))  # they are not saved with it

    def see() -> None:
        if not whole_log or not keeps_events(processor):
            return
        before = processor.log_state.counted
        if gone := see_log(place, processor):
            _log.warning("%s is not here: histories and statistics end with what the run was trained on", gone)
        elif processor.log_state.counted > before:
            _log.info("the log of %s was read to its end, past the rows that the run was trained on", place)

    with without_collector():
        state = Snapshots(folder, place).recover(model, processor, covered.upto, store, covered.left_out, see)
    state.processor.log_state.warm()
    return state


@contextmanager
def without_collector() -> Iterator[None]:
    """Millions of events that all stay are no garbage: looking through them takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def covered_run(run: str | Path, store_id: str) -> Covered:
    """Which records of a store a run was trained on."""
    found = [Covered.of_table(path, store_id) for path in tables_of_run(run, "interactions")]
    return Covered(max([one.upto for one in found], default=0), frozenset().union(*(one.left_out for one in found)))


def tables_of_run(run: str | Path, name: str) -> list[str]:
    """Paths of a kind of table of the run's recipe and its updates, those that are there; a server needs none."""
    if not (Path(run) / RECIPE_NAME).exists():
        return []
    return [path for path in tables_of(read_run(run, tables=False), name) if Path(path).exists()]


def model_name(run: str | Path) -> str:
    """Folder and a digest of a model's weights."""
    found = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        path = Path(run) / name
        if path.exists():
            found.update(path.read_bytes())
    return f"{Path(run).resolve().name}-{found.hexdigest()[:12]}"


def quiet() -> None:
    """Unknown ids are daily bread of a server, and its log holds no data of users."""
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore", UnknownIdWarning)
    warnings.filterwarnings("ignore", message="history: .* outside of what training has seen")
    warnings.filterwarnings("ignore", message=".*is unknown, but .* is known: .*")
