"""The processes that speak HTTP, as the process of the model sees them."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial

from fastapi import FastAPI

from polyrec.serving.app import AppOptions
from polyrec.serving.connections import BACKLOG, bound
from polyrec.serving.front import BEGIN, run_front, run_request
from polyrec.serving.link import Link


def default_processes() -> int:
    """One, if it has a core of its own; none where a process of this size cannot be forked safely."""
    return int(sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1)


def engine_link(app: FastAPI, ended: Callable[[], None]) -> Link:
    """The engine's end: what [`Front`][polyrec.serving.front.Front] calls.

    Args:
        app: of [`build_unguarded`][polyrec.serving.app.build_unguarded].
        ended: called when the other end has gone.
    """
    offers = {"respond": app.state.responder.respond, "http": partial(run_request, app)}
    return Link(offers | {"measured": app.state.metrics.request}, ended)


class Fronts:
    """Forks the processes; no thread may run yet.

    They end with this process, however it ends. This one stops with the first of them that ends: whoever keeps the
    server running starts it again.

    Args:
        number: of processes.
        port: that they share.
        options: how the server is reached.

    Raises:
        OSError: another server listens there.
    """

    def __init__(self, number: int, port: int, options: AppOptions) -> None:
        self._listens = bound(options.host, port)
        pairs = [socket.socketpair() for _ in range(number)]
        self._ends = [own for own, _ in pairs]
        self._stops = False
        ends = [end for pair in pairs for end in pair]
        context = multiprocessing.get_context("fork")
        self._processes = [
            context.Process(target=_fork, args=(theirs, ends, self._listens, options), daemon=True)
            for _, theirs in pairs
        ]
        for process in self._processes:
            process.start()
        for _, theirs in pairs:
            theirs.close()

    def run(self, app: FastAPI) -> None:
        """Run the application of [`build_unguarded`][polyrec.serving.app.build_unguarded] until a signal comes.

        Raises:
            ChildProcessError: a process of HTTP has ended by itself.
            OSError: another server has begun to listen there meanwhile.
        """
        asyncio.run(self._run(app))

    def stop(self) -> None:
        """End, once all requests have their responses."""
        self._stops = True
        for process in self._processes:
            process.terminate()

    async def _run(self, app: FastAPI) -> None:
        loop, running, done, alone = asyncio.get_running_loop(), len(self._ends), asyncio.Event(), False

        def ended() -> None:
            nonlocal running, alone
            running, alone = running - 1, alone or not self._stops
            self.stop()
            if not running:
                done.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        for own in self._listens:
            own.listen(BACKLOG)
            own.close()  # the processes of HTTP have it
        for end in self._ends:
            transport, _ = await loop.create_connection(lambda: engine_link(app, ended), sock=end)
            transport.write(BEGIN)
        async with app.router.lifespan_context(app):
            await done.wait()
        for process in self._processes:
            process.join()
        if alone:
            raise ChildProcessError("a process of HTTP has ended: the server stops")


def _fork(own: socket.socket, ends: list[socket.socket], listens: list[socket.socket], options: AppOptions) -> None:
    # A fork has all that was open, and an end is known to be gone when nobody has it open.
    for end in ends:
        if end is not own:
            end.close()
    run_front(own, listens, options)
