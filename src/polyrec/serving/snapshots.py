"""Snapshots of a state, so that a restart reads only the latest records again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polyrec.core.files import sync_folder, sync_tree
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.serving.catalog import restore_items
from polyrec.serving.records import EventStore, Kind
from polyrec.serving.state import Figures, ServedState

_log = logging.getLogger("polyrec.serving")
_ABOUT, _KEPT = "state.json", 2
_FILES = ("processor_config.json", "items.parquet", "stored_events.parquet", "statistics")  # what a state begins with


def run_key(run: str | Path) -> str:
    """A digest of what the state of a run begins with."""
    found = hashlib.sha256()
    for name in _FILES:
        place = Path(run) / name
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file():
                found.update(f"{path.relative_to(run)}\0".encode())
                found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]


class Snapshots:
    """The snapshots of one run in a state folder.

    Args:
        folder: of the server's state.
        run: the run's folder.
    """

    def __init__(self, folder: str | Path, run: str | Path) -> None:
        self.folder = Path(folder) / "snapshots" / run_key(run)

    def _all(self) -> list[Path]:
        return sorted((path for path in self.folder.glob("[0-9]*") if path.is_dir()), reverse=True)

    def write(self, state: ServedState, forgetting: bool = False) -> None:
        """Write the state as it is; nothing changes it meanwhile.

        Args:
            forgetting: leave no earlier one, which knows a user who was deleted.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        draft, place = self.folder / f".{state.seq:015d}.draft", self.folder / f"{state.seq:015d}"
        for left in self.folder.glob(".*.draft"):  # of a server that was killed
            shutil.rmtree(left, ignore_errors=True)
        state.processor.save_pretrained(draft)
        about = {
            "seq": state.seq,
            "waiting": [event.seq for event in state.waiting],
            "covered": state.covered,
            "base_time": state.base_time,
            "left_out": sorted(state.left_out),
            "figures": asdict(state.figures),
        }
        (draft / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
        sync_tree(draft)
        if place.exists():
            shutil.rmtree(place)
        os.rename(draft, place)
        sync_folder(self.folder)
        for old in self._all()[1 if forgetting else _KEPT :]:
            shutil.rmtree(old)

    def recover(
        self,
        model: PolyRecForRecommendation,
        processor: PolyRecProcessor,
        covered: int,
        store: EventStore,
        left_out: frozenset[int] = frozenset(),
        see_log: Callable[[], None] = lambda: None,
    ) -> ServedState:
        """The state after all records of the store: that of the newest snapshot that can be read, and what came later.

        Args:
            model, processor: as the run has them; without a snapshot these are used.
            covered, left_out: see [`ServedState`].
            see_log: called before records are read, where no snapshot has what it gives.
        """
        for place in self._all():
            try:
                about = json.loads((place / _ABOUT).read_text(encoding="utf-8"))
                known = PolyRecProcessor.from_pretrained(place)
            except (ValueError, OSError) as error:
                _log.error("snapshot %s cannot be read (%s); the one before is", place.name, type(error).__name__)
                continue
            known.users = processor.users  # attributes of users are not saved with it
            restore_items(model, known, processor, store.read(before=about["seq"] + 1, kinds=[Kind.ITEM]))
            return self._continued(model, known, about, store)
        see_log()
        base = processor.log_state.counted
        state = ServedState(model, processor, covered, base, left_out=left_out)
        state.replay(store.read())
        return state

    def _continued(
        self, model: PolyRecForRecommendation, processor: PolyRecProcessor, about: dict[str, Any], store: EventStore
    ) -> ServedState:
        state = ServedState(model, processor, about["covered"], about["base_time"], figures=Figures(**about["figures"]))
        state.left_out = frozenset(about.get("left_out", ()))
        for record in store.read(before=about["seq"] + 1, kinds=[Kind.USER, Kind.ITEM, Kind.FORGET, Kind.RETRACT]):
            state.control(record, changes=False)
        waiting = set(about["waiting"])
        if waiting:
            events = store.read(after=min(waiting) - 1, before=about["seq"] + 1, kinds=[Kind.EVENT])
            state.waiting = [state.format.read(record) for record in events if record.seq in waiting]
        state.seq = about["seq"]
        state.replay(store.read(after=about["seq"]))
        return state
