"""What every request passes before anything reads it: size, speed, origin; and what is logged of it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[..., Awaitable[Any]], Callable[..., Awaitable[Any]]], Awaitable[None]]
MOST_BYTES = 1 << 20
MOST_HEADERS = 1 << 14  # h11 counts only those that come in several pieces
_log = logging.getLogger("polyrec.serving")


class BodyGuard:
    """Reads bodies whole before the application sees them: neither longer nor slower than is allowed.

    Args:
        app: behind it.
        most: bytes.
        seconds: for the whole body.
        measured: called with the route, status and seconds of each request.
    """

    def __init__(
        self,
        app: App,
        most: int = MOST_BYTES,
        seconds: float = 10.0,
        measured: Callable[[str, int, float], None] = lambda route, status, seconds: None,
    ) -> None:
        self.app, self.most, self.seconds, self.measured = app, most, seconds, measured

    async def __call__(
        self, scope: Scope, receive: Callable[..., Awaitable[Any]], send: Callable[..., Awaitable[Any]]
    ) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 0

        async def sent(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refused = await self._read(scope, receive)
            if isinstance(refused, tuple):
                await refuse(sent, *refused)
                return
            body, closed = refused, False

            async def given() -> MutableMapping[str, Any]:
                nonlocal closed
                if not closed:
                    closed = True
                    return {"type": "http.request", "body": body, "more_body": False}
                return await receive()

            await self.app(scope, given, sent)
        finally:
            # The pattern of the route, not the path: that may hold the id of a user.
            route = getattr(scope.get("route"), "path", "")
            self.measured(route, status, time.perf_counter() - begin)
            if status >= 500 and status not in (503, 504):
                _log.error("%s %s: %d", scope["method"], route, status)

    async def _read(self, scope: Scope, receive: Callable[..., Awaitable[Any]]) -> bytes | tuple[int, str]:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADERS:
            return 431, f"headers have {MOST_HEADERS:,} bytes at most"
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.most:
            return 413, f"a body has {self.most:,} bytes at most"
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return 400, "the client has gone"
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self.most:
                        return 413, f"a body has {self.most:,} bytes at most"
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            return 408, f"the body did not come in {self.seconds:g} seconds"


async def refuse(send: Callable[..., Awaitable[Any]], status: int, message: str) -> None:
    """Send an error without the application."""
    body = json.dumps({"detail": [{"field": "", "message": message}]}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status in (408, 413):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
