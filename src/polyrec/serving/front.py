"""A process that speaks HTTP for the process of the model, so that the two work at the same time.

It reads and checks calls of the model and writes their responses, which takes as long as a third of the model's own
work. Requests of another kind it hands on as they came.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI

from polyrec.serving.access import Access, unless_gone
from polyrec.serving.app import AppOptions, add_errors, add_guards
from polyrec.serving.calls import Call
from polyrec.serving.connections import uvicorn_config
from polyrec.serving.guards import App, Scope
from polyrec.serving.link import Link
from polyrec.serving.routes import add_requests

_log = logging.getLogger("polyrec.serving")
# What the model's process must know of a request.
_SCOPE = (
    *("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path"),
    *("headers", "client", "server"),
)


BEGIN = b"\0"  # the engine's first byte: it can respond from now on


@dataclass(frozen=True)
class Route:
    """Of a request that was handed on, for metrics."""

    path: str


class Front:
    """The application of such a process.

    Args:
        engine: the end of the private socket to the model's process.
        options: how the server is reached.
    """

    def __init__(self, engine: socket.socket, options: AppOptions) -> None:
        self._engine, self._link = engine, Link({}, _leave)
        self.app = FastAPI(lifespan=self._lifespan, openapi_url=None)
        calls = APIRouter()
        add_requests(calls, Access(options.keys, options.deadline, self))
        self.app.include_router(calls)
        self.app.router.default = self._hand_on
        add_errors(self.app)
        add_guards(self.app, options, partial(self._link.tell, "measured"))

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        await asyncio.get_running_loop().create_connection(lambda: self._link, sock=self._engine)
        yield
        self._link.close()

    async def respond(self, call: Call, user: Any, after: int | None, seconds: float) -> Any:
        """See [`Responder`][polyrec.serving.responder.Responder]."""
        return await self._link.ask("respond", call, user, after, seconds)

    async def _hand_on(
        self, scope: Scope, receive: Callable[..., Awaitable[Any]], send: Callable[..., Awaitable[Any]]
    ) -> None:
        body = (await receive())["body"]  # whole, as the guard gives it
        request = {name: scope[name] for name in _SCOPE}
        response = await unless_gone(receive, self._link.ask("http", request, body))
        status, headers, body, route = response
        scope["route"] = Route(route)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def run_request(app: App, request: Mapping[str, Any], body: bytes) -> tuple[int, list[Any], bytes, str]:
    """In the model's process: the response of an application to a request that was handed on.

    Returns:
        Status, headers, body and the pattern of the route.
    """
    scope, unread, messages = dict(request), [body], list[MutableMapping[str, Any]]()

    async def receive() -> MutableMapping[str, Any]:
        if not unread:  # who waits for the client to go is cancelled then
            await asyncio.get_running_loop().create_future()
        return {"type": "http.request", "body": unread.pop(), "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        messages.append(message)

    try:
        await app(scope, receive, send)
    except Exception:  # after the response that says so
        if not messages:
            raise
        _log.exception("a request failed")
    start, *parts = messages
    found = b"".join(part.get("body", b"") for part in parts)
    return start["status"], start["headers"], found, getattr(scope.get("route"), "path", "")


def _leave() -> None:
    """Without its engine such a process is of no use; it must not keep the address from the next server."""
    os._exit(1)


def run_front(engine: socket.socket, listens: list[socket.socket], options: AppOptions) -> None:
    """Speak HTTP from [`BEGIN`] on until a signal comes, or the engine has gone."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the engine's alone
    with suppress(KeyboardInterrupt):  # of whoever has pressed Ctrl-C; the engine gets it, too
        server = uvicorn.Server(uvicorn_config(Front(engine, options).app, options.host, 0))
        if engine.recv(len(BEGIN)):
            server.run(listens)
