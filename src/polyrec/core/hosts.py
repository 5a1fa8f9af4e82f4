"""Which requests a server of this machine serves: none from pages of other sites, whatever name they give to it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

Scope = dict[str, Any]


def is_local(host: str) -> bool:
    """Whether only this machine reaches a server that listens there.

    Example:
        >>> is_local("127.0.0.1"), is_local("localhost"), is_local("0.0.0.0")
        (True, True, False)
    """
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host.strip("[]")).is_loopback)


def known_names(host: str) -> frozenset[str]:
    """Names under which a browser may ask for a page that listens at `host`; addresses are known by themselves."""
    found = {"localhost", host.lower()}
    if not is_local(host):
        found |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return frozenset(found)


class HostCheck:
    """Middleware that refuses requests to other names (DNS rebinding) and from pages of other sites.

    A site that has its own name point at this machine is asked for under that name; a browser sends it along.

    Args:
        app: the application behind it.
        names: of this machine, in lower case.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], names: frozenset[str]) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Pass a request on, or return 403."""
        if scope["type"] not in ("http", "websocket") or self.allows(dict(scope["headers"])):
            await self.app(scope, receive, send)
            return
        from starlette.responses import PlainTextResponse

        refusal = PlainTextResponse("this page does not serve that host name, or pages of other sites", 403)
        await refusal(scope, receive, send)

    def allows(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a request with these headers is served.

        Example:
            >>> check = HostCheck(None, known_names("127.0.0.1"))
            >>> check.allows({b"host": b"127.0.0.1:7860"}), check.allows({b"host": b"evil.example:7860"})
            (True, False)
            >>> check.allows({b"host": b"localhost:7860", b"origin": b"https://evil.example"})
            False
        """
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = _name(f"//{host}")
        if name not in self.names and not _is_address(name):
            return False
        origin = headers.get(b"origin")
        return origin is None or urlsplit(origin.decode("latin-1").lower()).netloc == host


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
