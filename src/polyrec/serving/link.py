"""Calls from one process of a server to another, over a private socket."""

from __future__ import annotations

import asyncio
import logging
import pickle  # of what this program wrote a millisecond ago; nobody else has the other end
import struct
from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from typing import Any

from polyrec.serving.together import Together

_log = logging.getLogger("polyrec.serving")
_LENGTH = struct.Struct("!I")
_LATER = 0.2  # seconds that what nobody waits for may take
_MOST = 16  # messages that do not wait for more: the other process shall work meanwhile


class _Kind(IntEnum):
    ASK = 0
    TELL = 1
    RESULT = 2
    ERROR = 3
    CANCEL = 4


class Link(asyncio.Protocol):
    """One end. Messages that come together cross as one frame: its length, and their pickle.

    Args:
        offers: what the other end may call.
        ended: called when the other end has gone.
    """

    def __init__(self, offers: Mapping[str, Callable[..., Any]], ended: Callable[[], None]) -> None:
        self._offers, self._ended = offers, ended
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._serves: dict[int, asyncio.Task[None]] = {}
        self._number = 0
        self._outbox: list[tuple[Any, ...]] = []
        self._inbox = bytearray()
        self._together = Together(self._flush, _MOST)

    # ----------------------------------------------------------- this end
    async def ask(self, name: str, *arguments: Any) -> Any:
        """The result of a coroutine of the other end, which is cancelled with this one.

        Raises:
            Exception: whatever it raised; a RuntimeError if that, the arguments or the result cannot cross.
        """
        self._number += 1
        number = self._number
        response = self._asked[number] = asyncio.get_running_loop().create_future()
        self._send(_Kind.ASK, number, name, arguments)
        try:
            return await response
        finally:
            del self._asked[number]
            if response.cancelled():
                self._send(_Kind.CANCEL, number)

    def tell(self, name: str, *arguments: Any) -> None:
        """Call a function of the other end soon, without a result."""
        if not self._outbox:
            asyncio.get_running_loop().call_later(_LATER, self._flush)
        self._outbox.append((_Kind.TELL, name, arguments))

    def close(self) -> None:
        """Send what waits, and end."""
        self._ended = lambda: None
        self._flush()
        self._transport.close()

    def _send(self, *message: Any) -> None:
        self._outbox.append(message)
        self._together.add()

    def _flush(self) -> None:
        messages, self._outbox = self._outbox, []
        if not messages or self._transport.is_closing():
            return
        try:
            frame = _frame(messages)
        except Exception:  # one message must not keep the others back
            frame = _frame([sendable for message in messages for sendable in self._sendable(message)])
        self._transport.write(_LENGTH.pack(len(frame)) + frame)

    def _sendable(self, message: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """The message; if it cannot be pickled, the error for whoever waits for it."""
        try:
            _frame([message])
            return [message]
        except Exception as error:
            kind, key = message[:2]
            problem = _pickled(RuntimeError(f"{kind.name}: cannot be pickled ({type(error).__name__})"))
        if kind is _Kind.RESULT:
            return [(_Kind.ERROR, key, problem)]
        if kind is _Kind.ASK:
            self._take(_Kind.ERROR, key, problem)
        else:
            _log.error("%s of a call without a result cannot be sent", key)
        return []

    # ----------------------------------------------------------- the other end
    def connection_made(self, transport: Any) -> None:
        """Both ends are there."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """The other end has gone."""
        for task in self._serves.values():
            task.cancel()
        self._ended()

    def data_received(self, data: bytes) -> None:
        """Some bytes came."""
        self._inbox += data
        while len(self._inbox) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._inbox)[0]
            if len(self._inbox) < end:
                break
            frame = bytes(self._inbox[_LENGTH.size : end])
            del self._inbox[:end]
            for kind, *message in pickle.loads(frame):
                self._take(kind, *message)

    def _take(self, kind: _Kind, key: Any, *message: Any) -> None:
        if kind is _Kind.ASK:
            name, arguments = message
            self._serves[key] = task = asyncio.ensure_future(self._respond(key, self._offers[name], arguments))
            task.add_done_callback(lambda _: self._serves.pop(key))  # also of one that is cancelled before it begins
        elif kind is _Kind.TELL:
            try:
                self._offers[key](*message[0])
            except Exception as error:  # it would close the link; its text may hold data of users
                _log.error("%s failed: %s", key, type(error).__name__)
        elif kind is _Kind.CANCEL:
            if key in self._serves:
                self._serves[key].cancel()
        elif key in self._asked and not self._asked[key].done():  # else nobody waits any more
            if kind is _Kind.RESULT:
                self._asked[key].set_result(message[0])
            else:
                self._asked[key].set_exception(pickle.loads(message[0]))

    async def _respond(self, number: int, offer: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...]) -> None:
        try:
            self._send(_Kind.RESULT, number, await offer(*arguments))
        except Exception as error:
            self._send(_Kind.ERROR, number, _pickled(error))


def _frame(messages: list[tuple[Any, ...]]) -> bytes:
    return pickle.dumps(messages, pickle.HIGHEST_PROTOCOL)


def _pickled(error: Exception) -> bytes:
    """An error that can be read again: one that cannot would take a whole frame with it."""
    try:
        found = pickle.dumps(error)
        pickle.loads(found)
    except Exception:
        found = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return found
