"""`polyrec serve`: a run folder behind HTTP."""

from __future__ import annotations

import gc
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType

import uvicorn

from polyrec.core.hosts import is_local
from polyrec.core.lock import locked
from polyrec.core.settings import SettingError
from polyrec.inference.catalog_index import IndexKind
from polyrec.serving.app import AppOptions, build_app, build_unguarded
from polyrec.serving.assignment import VariantOptions
from polyrec.serving.connections import uvicorn_config
from polyrec.serving.fronts import Fronts, default_processes
from polyrec.serving.keys import Keys
from polyrec.serving.loading import quiet
from polyrec.serving.places import open_store, state_folder
from polyrec.serving.service import Service, ServiceOptions

_log = logging.getLogger("polyrec.serving")
_SWITCH = 5e-4  # seconds that one thread keeps others waiting; the default, 0.005, is longer than a small request takes


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
        http_processes: that read requests and write responses beside the process of the model; 0: it does that, too.
            None: as the number of cores allows.
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
    http_processes: int | None = None

    def __post_init__(self) -> None:
        if self.http_processes is not None and self.http_processes < 0:
            raise SettingError("http-processes", f"is {self.http_processes}; it must be 0 or more")


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
        where = f"http://{options.host}:{options.port}"
        print(f"serving {run} at {where} (docs at /docs), state in {folder}; Ctrl-C stops", flush=True)
        serve_app(
            lambda: Service(run, open_store(folder, options.database), folder, ServiceOptions(**chosen)),
            AppOptions(options.host, keys, options.deadline),
            options.port,
            default_processes() if options.http_processes is None else options.http_processes,
        )


def serve_app(make: Callable[[], Service], options: AppOptions, port: int, processes: int) -> None:
    """Serve until a signal comes.

    Args:
        make: makes the service, after processes were forked.
        options: how the server is reached.
        processes: see [`ServeOptions`].

    Raises:
        Exception: the service could not be started.
    """
    fronts = Fronts(processes, port, options) if processes else None
    errors: list[Exception] = []

    def failed(error: Exception) -> None:
        errors.append(error)
        stop()

    service, options = make(), replace(options, failed=failed)
    reload_on_hangup(service)
    if fronts is not None:
        stop = fronts.stop
        fronts.run(build_unguarded(service, options))
    else:
        server = uvicorn.Server(uvicorn_config(build_app(service, options), options.host, port))
        stop = partial(setattr, server, "should_exit", True)
        server.run()
    if errors:
        raise errors[0]


def reload_on_hangup(service: Service) -> None:
    """SIGHUP loads the run's folder anew, which an update has replaced."""

    def reload(number: int, frame: FrameType | None) -> None:
        try:
            service.swap_soon(service.run)
        except ValueError as error:  # it would end the server
            _log.error("SIGHUP: %s", error)

    signal.signal(signal.SIGHUP, reload)
