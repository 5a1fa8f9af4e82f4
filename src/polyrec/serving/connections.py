"""Connections of HTTP: where the server listens, and their limits."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from polyrec.serving.guards import MOST_HEADERS

HEADER_SECONDS = 10.0
BACKLOG = 2048
_GIVES_UP = 3.0  # seconds that a process without its engine may take to end


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


def bound(host: str, port: int) -> list[socket.socket]:
    """Sockets at all addresses of a host, which processes can share; connections are refused until they listen.

    Raises:
        OSError: another one listens there, or this machine has no such address.
    """
    found = []
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        # With its protocol: asyncio sends small packets at once only where it is named.
        own = socket.socket(family, kind, protocol)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            _bind(own, address)
        except OSError as error:
            own.close()
            if error.errno != errno.EADDRNOTAVAIL:  # "localhost" has an address of IPv6 also where there is no IPv6
                raise
            continue
        found.append(own)
    if not found:
        raise OSError(errno.EADDRNOTAVAIL, f"{host} is no address of this machine")
    return found


def _bind(own: socket.socket, address: Any) -> None:
    """Wait a little for processes whose engine was killed just now."""
    end = time.monotonic() + _GIVES_UP
    while True:
        try:
            return own.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > end:
                raise
        time.sleep(0.05)
