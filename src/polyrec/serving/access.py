"""What routes share: who may call, when the server is ready, and how long somebody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from polyrec.serving.batcher import Expired
from polyrec.serving.calls import Call
from polyrec.serving.keys import Keys
from polyrec.serving.records import Record
from polyrec.serving.responder import Responder, check_ready
from polyrec.serving.service import Service

_bearer = HTTPBearer(auto_error=False, description="a key of the server's --keys file")
_gorse_key = APIKeyHeader(name="X-API-Key", auto_error=False, description="the same, as clients of Gorse send it")


async def service_of(request: Request) -> Service:
    """The service, once it is ready."""
    service: Service = request.app.state.service
    check_ready(service)
    return service


Served = Annotated[Service, Depends(service_of)]


async def unless_gone(
    receive: Callable[[], Awaitable[Any]], response: Coroutine[Any, Any, Any], seconds: float | None = None
) -> Any:
    """The result of a coroutine, which is cancelled when nobody waits for it any more.

    Args:
        receive: of a request whose body has been read.
        seconds: that somebody waits.

    Raises:
        HTTPException: the client has gone.
        Expired: the time is over.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(response), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        if tasks[1].done():
            raise HTTPException(499, "the client has gone")
        raise Expired(f"{seconds:g} seconds are over")
    finally:
        for task in tasks:
            task.cancel()


class Access:
    """Keys and deadlines.

    Args:
        keys: who may do what.
        deadline: seconds that a request waits.
        responder: of the model.
    """

    def __init__(self, keys: Keys, deadline: float, responder: Responder) -> None:
        self.keys, self.deadline, self._responder = keys, deadline, responder

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

    async def call(self, request: Request, call: Call, user: Any = None, after: int | None = None) -> Any:
        """The model's response, (names of model and variant, response).

        Args:
            user, after: the response must know of the events of this user up to this sequence number.
        """
        response = self._responder.respond(call, user, after, self.deadline)
        return await unless_gone(request.receive, response, self.deadline)

    async def in_thread(self, wait: Callable[[], bool], otherwise: str) -> None:
        """Wait in a thread, for something that says whether it came in time."""
        if not await asyncio.to_thread(wait):
            raise Expired(otherwise)

    async def submit(self, service: Service, records: list[Record]) -> list[int]:
        """Store records; their sequence numbers once they are durable."""
        future: Future[list[int]] = service.submit(records)
        return await asyncio.wait_for(asyncio.wrap_future(future), self.deadline)
