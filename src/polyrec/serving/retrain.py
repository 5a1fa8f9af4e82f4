"""One step of the loop: what a server has collected trains its run further, and the server exchanges the model."""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyrec.core.swap import recover
from polyrec.hub.files import GRAPHS
from polyrec.runs.transaction import link_files
from polyrec.runs.update import update_run
from polyrec.serving.export import Collected, collected, store_of, write
from polyrec.serving.export_run import export_run
from polyrec.serving.loading import model_name
from polyrec.serving.places import state_folder
from polyrec.training.settings import UpdateSettings

_POLL = 0.2  # seconds between looks at a server that loads a model


@dataclass(frozen=True)
class RetrainOptions:
    """Where the events are, and who serves the model.

    Args:
        state, database: of the server, as `polyrec serve` has them.
        server: its address, e.g. http://127.0.0.1:8000. None: the run alone changes.
        key: with the scope admin.
        min_events: fewer new events train nothing.
        seconds: until the server must have loaded the model.
    """

    state: str | None = None
    database: str | None = None
    server: str | None = None
    key: str | None = None
    min_events: int = 100
    seconds: float = 600.0


def retrain(run: str, settings: UpdateSettings, options: RetrainOptions | None = None) -> dict[str, Any] | None:
    """Train a run on the events that its server has collected, replace it if it is not worse, and let it be served.

    Old and new model are compared on the latest of the new events, which neither was trained on, and on what earlier
    trainings held out. The run before stays in `<run>-previous`, the new events in the folder of the state.

    Returns:
        the report of the update; None: there were too few new events.

    Raises:
        UpdateRefused: a metric fell by more than `settings` allow; the run stays as it was.
        ValueError: the server is not there, or refuses the model.
    """
    options = RetrainOptions() if options is None else options
    server = None if options.server is None else _Server(options.server, options.key)
    served = None if server is None else server.status()["model"]  # before the training: the key may be wrong
    report = _update(run, settings, options)
    if server is not None and served != model_name(run):  # also if it missed an earlier one
        print(f"{options.server} serves {server.load(run, options.seconds)} now, it served {served}")
    return report


def _update(run: str, settings: UpdateSettings, options: RetrainOptions) -> dict[str, Any] | None:
    with store_of(run, options.state, options.database) as store:
        found = collected(run, store)
    if found.early:
        print(f"{found.early:,} events came too late: they are not later than the log of {run}, and are left out")
    count = 0 if found.events is None else len(found.events)
    print(f"{count:,} new events, {0 if found.items is None else len(found.items):,} new items")
    if count < options.min_events:
        print(f"fewer than {options.min_events:,} events are new, so nothing is trained")
        return None
    events, items = _written(found, state_folder(run, options.state) / "exports")
    draft = _copied(Path(run))
    try:
        report = update_run(run, str(events), None if items is None else str(items), settings=settings)
    except BaseException:
        shutil.rmtree(draft)
        raise
    previous = draft.with_name(f"{draft.name[1:]}")
    shutil.rmtree(previous, ignore_errors=True)
    draft.rename(previous)
    if (previous / GRAPHS).exists():
        _exported(run)
    return report


def _exported(run: str) -> None:
    """Make the graphs anew that a server scores by; without them it scores by torch."""
    try:
        export_run(run)
    except ValueError as error:
        print(f"{run} has no graphs now: {error}")
        shutil.rmtree(Path(run) / GRAPHS, ignore_errors=True)


def _written(found: Collected, folder: Path) -> tuple[Path, Path | None]:
    """The tables in files; those of an update that was refused, which began at the same record, are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    assert found.events is not None
    for old in folder.glob(f"*-{found.first:012d}-*.parquet"):
        old.unlink()
    name = f"{found.first:012d}-{found.last:012d}.parquet"
    events, items = folder.resolve() / f"events-{name}", folder.resolve() / f"items-{name}"
    write(found.events, events)
    if found.items is None:
        return events, None
    write(found.items, items)
    return events, items


def _copied(run: Path) -> Path:
    """The run as it is, in a folder beside it that shares its files."""
    place = recover(run).resolve()
    draft = place.with_name(f".{place.name}-previous")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    link_files(place, draft)
    return draft


class _Server:
    """The part of a server's interface that exchanges its model."""

    def __init__(self, address: str, key: str | None) -> None:
        self._url = f"{address.rstrip('/')}/admin/model"
        self._headers = {"content-type": "application/json"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"

    def status(self) -> dict[str, Any]:
        """Which model it serves."""
        return self._call("GET")

    def load(self, run: str, seconds: float) -> str:
        """Let it load a run, and wait until it is served; the model's name."""
        self._call("POST", {"folder": str(Path(run).resolve())})
        end = time.monotonic() + seconds
        while (status := self.status())["loading"]:
            if time.monotonic() > end:
                raise ValueError(f"{self._url}: the server has not loaded {run} after {seconds:g} seconds")
            time.sleep(_POLL)
        if status["error"] or status["model"] != model_name(run):
            raise ValueError(f"{self._url}: the server goes on with {status['model']}: {status['error']}")
        return str(status["model"])

    def _call(self, method: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url, data, self._headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60.0) as response:
                found: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            raise ValueError(f"{self._url}: {error.code} {error.read(500).decode(errors='replace')}") from error
        except OSError as error:
            raise ValueError(f"{self._url}: the server cannot be reached ({error})") from error
        return found
