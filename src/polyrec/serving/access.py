"""What routes share: who may call, when the server is ready, and how long somebody waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from polyrec.core.settings import SettingError
from polyrec.serving.batcher import Expired
from polyrec.serving.calls import Call
from polyrec.serving.keys import Keys
from polyrec.serving.records import Record
from polyrec.serving.service import Service

_bearer = HTTPBearer(auto_error=False, description="a key of the server's --keys file")
_gorse_key = APIKeyHeader(name="X-API-Key", auto_error=False, description="the same, as clients of Gorse send it")


async def service_of(request: Request) -> Service:
    """The service, once it is ready."""
    service: Service = request.app.state.service
    if not service.ready:
        raise HTTPException(503, "the server reads its records: wait for /ready", {"retry-after": "1"})
    return service


Served = Annotated[Service, Depends(service_of)]


_QUIET = 3  # turns of the event loop without a new call
_TURNS = 30  # with calls or without


async def _gone(request: Request) -> None:
    """Wait until the client goes; its body has been read, or nobody wants it."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Access:
    """Keys and deadlines.

    Args:
        keys: who may do what.
        deadline: seconds that a request waits.
    """

    def __init__(self, keys: Keys, deadline: float) -> None:
        self.keys, self.deadline = keys, deadline
        self._calls = 0
        self._gathers = False

    def scope(self, scope: str) -> Any:
        """A dependency: the request's key has this scope."""

        async def check(
            bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None,
            key: Annotated[str | None, Security(_gorse_key)] = None,
        ) -> None:
            given = bearer.credentials if bearer is not None else key
            allowed = self.keys.allows(given, scope)
            if allowed is None:
                raise HTTPException(401, "send a key: Authorization: Bearer KEY", {"www-authenticate": "Bearer"})
            if not allowed:
                raise HTTPException(403, f"this key has no scope {scope!r}")

        return Depends(check)

    async def call(
        self, request: Request, service: Service, call: Call, user: Any = None, after: int | None = None
    ) -> Any:
        """The model's response, (names of model and variant, response).

        Args:
            user, after: the response must know of the events of this user up to this sequence number.
        """
        begin = time.monotonic()
        if after is not None:
            await self.see(service, user, after)
        job = service.call(call, self.deadline - (time.monotonic() - begin), wake=False)
        self._calls += 1
        if not self._gathers:
            self._gathers = True
            self._gather(service, self._calls)
        gone = asyncio.ensure_future(_gone(request))  # a client that has gone needs no response
        response = asyncio.wrap_future(job.future)
        try:
            await asyncio.wait({gone, response}, timeout=self.deadline, return_when=asyncio.FIRST_COMPLETED)
            if not response.done():
                job.closed = True
                if gone.done():
                    raise HTTPException(499, "the client has gone")
                raise Expired(f"{self.deadline:g} seconds are over")
            return response.result()
        finally:
            gone.cancel()
            if not response.done():
                response.cancel()

    def _gather(self, service: Service, calls: int, quiet: int = 0, turns: int = 0) -> None:
        """Wake the model once the event loop has nothing more to read. Requests that came together, as they do when a
        batch is done, would otherwise be a batch of one, and one of all others behind it."""
        if quiet == _QUIET or turns == _TURNS or len(service.batcher) >= service.options.batch:
            self._gathers = False
            service.batcher.wake()
        else:
            quiet = quiet + 1 if calls == self._calls else 0
            asyncio.get_running_loop().call_soon(self._gather, service, self._calls, quiet, turns + 1)

    async def see(self, service: Service, user: Any, after: int) -> None:
        """Wait until requests of a user know of an event."""
        if after > service.writer.known and service.store.shared:  # another server may have stored it just now
            await asyncio.to_thread(service.wait_for, lambda: service.writer.known >= after, 2.0)
        if after > service.writer.known:
            raise SettingError("after", f"is {after}; the latest sequence number is {service.writer.known}")
        if user is not None and not service.counts_all(str(user)):
            await self.in_thread(lambda: service.flush(after, self.deadline), "the event was not counted in time")

    async def in_thread(self, wait: Callable[[], bool], otherwise: str) -> None:
        """Wait in a thread, for something that says whether it came in time."""
        if not await asyncio.to_thread(wait):
            raise Expired(otherwise)

    async def submit(self, service: Service, records: list[Record]) -> list[int]:
        """Store records; their sequence numbers once they are durable."""
        future: Future[list[int]] = service.submit(records)
        return await asyncio.wait_for(asyncio.wrap_future(future), self.deadline)
