"""`polyrec serve`: a run folder behind HTTP."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from dataclasses import dataclass
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from polyrec.core.hosts import is_local
from polyrec.core.lock import locked
from polyrec.inference.catalog_index import IndexKind
from polyrec.serving.app import AppOptions, build_app
from polyrec.serving.assignment import VariantOptions
from polyrec.serving.guards import MOST_HEADERS
from polyrec.serving.keys import Keys
from polyrec.serving.loading import quiet
from polyrec.serving.places import open_store, state_folder
from polyrec.serving.service import Service, ServiceOptions

HEADER_SECONDS = 10.0
_SWITCH = 5e-4  # seconds that one thread keeps others waiting; the default, 0.005, is longer than a small request takes


class TimedProtocol(H11Protocol):
    """HTTP/1.1 that gives up clients whose request lines do not come."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Somebody came."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Some bytes came."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Somebody went."""
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()

    def _watch(self) -> None:
        waits = self.conn.their_state is h11.IDLE
        if waits and self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self._give_up)
        elif not waits and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


@dataclass(frozen=True)
class ServeOptions:
    """How `polyrec serve` works.

    Args:
        host, port: where it listens; port 0 = a free one.
        state: folder of the state. None: `<run>-state` beside the run.
        database: of PostgreSQL, instead of a file in the folder.
        keys: file of keys. None: everybody who reaches it may do everything, which only this machine may.
        deadline: seconds that a request waits.
        watermark, variants, shadow, salt, index: see [`ServiceOptions`].
    """

    host: str = "127.0.0.1"
    port: int = 8000
    state: str | None = None
    database: str | None = None
    keys: str | None = None
    deadline: float = 5.0
    watermark: float = 2.0
    variants: tuple[VariantOptions, ...] = ()
    shadow: str | None = None
    salt: str | None = None
    index: IndexKind = "auto"


def serve(run: str, options: ServeOptions) -> None:
    """Serve until a signal comes.

    Raises:
        ValueError: without keys on another address than this machine's.
    """
    keys = Keys(None) if options.keys is None else Keys.read(options.keys)
    if keys.scopes is None and not is_local(options.host):
        raise ValueError(
            f"{options.host} is no loopback address, and without --keys whoever reaches it may do everything: make a "
            "key with `polyrec serve-key --keys FILE` and pass --keys FILE"
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    quiet()
    sys.setswitchinterval(_SWITCH)
    gc.collect()
    gc.freeze()  # modules stay: looking through them for garbage stops every thread for .4 s, which a swap brings about
    folder = state_folder(run, options.state)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder.resolve()):
        chosen = {name: getattr(options, name) for name in ("watermark", "variants", "shadow", "salt", "index")}
        service = Service(run, open_store(folder, options.database), folder, ServiceOptions(**chosen))
        errors: list[Exception] = []

        def failed(error: Exception) -> None:
            errors.append(error)
            server.should_exit = True

        app = build_app(service, AppOptions(options.host, keys, options.deadline, failed=failed))
        server = uvicorn.Server(uvicorn_config(app, options.host, options.port))
        print(f"serving {run} at http://{options.host}:{options.port} (docs at /docs), state in {folder}; Ctrl-C stops")
        reload_on_hangup(service)
        server.run()
        if errors:
            raise errors[0]


def uvicorn_config(app: Any, host: str, port: int) -> uvicorn.Config:
    """Limits of connections."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=TimedProtocol,
        ws="none",
        access_log=False,  # its lines hold paths, and those may hold ids of users
        log_level="warning",
        timeout_keep_alive=15,
        timeout_graceful_shutdown=10,
        limit_concurrency=1024,
        h11_max_incomplete_event_size=MOST_HEADERS,
        server_header=False,
    )


def reload_on_hangup(service: Service) -> None:
    """SIGHUP loads the run's folder anew, which an update has replaced."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda number, frame: service.swap_soon(service.run))
