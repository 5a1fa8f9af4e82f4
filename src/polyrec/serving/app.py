"""The HTTP interface of a server: limits, errors and keys; what it offers lies in `routes` and `gorse`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from polyrec.core.hosts import HostCheck, known_names
from polyrec.core.settings import SettingError
from polyrec.core.version import __version__
from polyrec.serving import gorse, routes
from polyrec.serving.access import Access
from polyrec.serving.batcher import Expired
from polyrec.serving.catalog import Unknown
from polyrec.serving.guards import MOST_BYTES, BodyGuard
from polyrec.serving.keys import Keys
from polyrec.serving.metrics import Metrics
from polyrec.serving.responder import OwnResponder
from polyrec.serving.service import Service
from polyrec.serving.writer import QueueFull

# Where messages of what reads a request name its field.
_FIELD = re.compile(
    r"^(?:requests\[\d+\]\.?)?(?:unknown key \S+ in |unknown )?(?:the )?"
    r"((?:history|user_id|user|context|time|task|candidates|exclude|items|query_item|query|item|k)(?:\[\d+\])?(?:\.\w+)*)(?!\w)"
)


def raised(error: Exception) -> None:
    """An error that nobody handles."""
    raise error


@dataclass(frozen=True)
class AppOptions:
    """How a server is reached.

    Args:
        host: where it listens.
        keys: who may do what.
        deadline: seconds after which a request is given up.
        most_bytes, body_seconds: of a body.
        names: further names of this machine, under which browsers may call.
        failed: called with the reason why the service could not be started.
    """

    host: str = "127.0.0.1"
    keys: Keys = field(default_factory=lambda: Keys(None))
    deadline: float = 5.0
    most_bytes: int = MOST_BYTES
    body_seconds: float = 10.0
    names: tuple[str, ...] = ()
    failed: Callable[[Exception], None] = raised


def build_app(service: Service, options: AppOptions | None = None) -> FastAPI:
    """The application, for a process that has both HTTP and the model.

    Args:
        service: is started with the application, and stopped with it.
    """
    options = AppOptions() if options is None else options
    app = build_unguarded(service, options)
    add_guards(app, options, app.state.metrics.request)
    return app


def build_unguarded(service: Service, options: AppOptions) -> FastAPI:
    """The application for requests that have passed the guards of [`add_guards`]."""
    metrics = Metrics(service)
    service.measured, service.responded, service.compared = metrics.batched, metrics.responded, metrics.compared

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Requests that come before it is ready get 503, and /health works.
        starting = asyncio.ensure_future(asyncio.to_thread(_start, service, options.failed))
        yield
        await starting
        if service.ready:
            await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="polyrec",
        version=__version__,
        summary="Recommendations of one model, with what its users did until now",
        lifespan=lifespan,
        responses={code: {"model": routes.Refused} for code in (401, 403, 413, 422, 429, 503, 504)},
    )
    app.state.service, app.state.metrics = service, metrics
    app.state.responder = OwnResponder(service)
    access = Access(options.keys, options.deadline, app.state.responder)
    app.include_router(routes.router(access))
    app.include_router(gorse.router(access))
    add_errors(app)
    return app


def add_guards(app: FastAPI, options: AppOptions, measured: Callable[[str, int, float], None]) -> None:
    """What every request passes first; `measured` as of [`BodyGuard`]."""
    app.add_middleware(partial(BodyGuard, most=options.most_bytes, seconds=options.body_seconds, measured=measured))
    if options.keys.scopes is None:
        # Without keys a page of another site could call in the name of whoever reads it.
        app.add_middleware(HostCheck, names=known_names(options.host) | {*options.names})


def _start(service: Service, failed: Callable[[Exception], None]) -> None:
    try:
        service.start()
    except Exception as error:
        failed(error)


def add_errors(app: FastAPI) -> None:
    """Responses to errors."""

    def problem(status: int, message: str, where: str = "", headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"detail": [{"field": where, "message": message}]}, status, headers)

    async def malformed(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return JSONResponse({"detail": [_problem(found) for found in error.errors()[:20]]}, 422)

    async def respond(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, StarletteHTTPException)
        return problem(error.status_code, str(error.detail), "", dict(error.headers or {}))

    async def setting(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, SettingError):
            return problem(422, f"{error.name} {error.problem}", _shortened(error.name))
        found = _FIELD.match(str(error))
        return problem(422, re.sub(r"requests\[\d+\]\.?", "", str(error)), found[1] if found else "")

    async def full(request: Request, error: Exception) -> JSONResponse:
        return problem(429, f"too busy: {error}", headers={"retry-after": "1"})

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        return problem(404, str(error))

    async def late(request: Request, error: Exception) -> JSONResponse:
        return problem(504, f"no response in time: {error}")

    handlers: dict[type[Exception], Callable[[Request, Exception], Awaitable[JSONResponse]]] = {
        RequestValidationError: malformed,
        StarletteHTTPException: respond,
        HTTPException: respond,
        ValueError: setting,
        QueueFull: full,
        Expired: late,
        TimeoutError: late,
        Unknown: unknown,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _problem(found: dict[str, object]) -> dict[str, str]:
    """One error of pydantic, without what was sent."""
    parts = found["loc"]
    assert isinstance(parts, tuple)
    name = ""
    for part in parts[1:] if parts and parts[0] in ("body", "query", "path", "header") else parts:
        if isinstance(part, int):
            name += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z_]\w{0,63}", str(part)):
            name += f".{part}" if name else str(part)
    return {"field": name, "message": str(found["msg"])}


def _shortened(name: str) -> str:
    return re.sub(r"^requests\[\d+\]\.?", "", name)
