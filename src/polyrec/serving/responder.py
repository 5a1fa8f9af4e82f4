"""The model's responses, as the event loop waits for them."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol

from fastapi import HTTPException

from polyrec.core.settings import SettingError
from polyrec.serving.batcher import Expired
from polyrec.serving.calls import Call
from polyrec.serving.service import Service
from polyrec.serving.together import Together


class Responder(Protocol):
    """Responds to calls, in this process or from another one."""

    async def respond(self, call: Call, user: Any, after: int | None, seconds: float) -> Any:
        """(names of model and variant, response). A call that is cancelled needs no response.

        Args:
            user, after: the response must know of the events of this user up to this sequence number.
            seconds: after which nobody waits any more.
        """
        ...


class OwnResponder:
    """Responds with the service of this process; calls that come together are one batch."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._together = Together(lambda: service.batcher.wake(), service.options.batch)

    async def respond(self, call: Call, user: Any, after: int | None, seconds: float) -> Any:
        """See [`Responder`]."""
        begin = time.monotonic()
        check_ready(self.service)
        if after is not None:
            await self._see(user, after, seconds)
        job = self.service.call(call, seconds - (time.monotonic() - begin), wake=False)
        self._together.add()
        return await asyncio.wrap_future(job.future)

    async def _see(self, user: Any, after: int, seconds: float) -> None:
        """Wait until requests of a user know of an event."""
        service = self.service
        if after > service.writer.known and service.store.shared:  # another server may have stored it just now
            await asyncio.to_thread(service.wait_for, lambda: service.writer.known >= after, 2.0)
        if after > service.writer.known:
            raise SettingError("after", f"is {after}; the latest sequence number is {service.writer.known}")
        counted = user is None or service.counts_all(str(user))
        if not counted and not await asyncio.to_thread(service.flush, after, seconds):
            raise Expired("the event was not counted in time")


def check_ready(service: Service) -> None:
    """Refuse requests until all records are read."""
    if not service.ready:
        raise HTTPException(503, "the server reads its records: wait for /ready", {"retry-after": "1"})
