"""Calls between two processes of a server."""

import asyncio
import pickle
import socket

import pytest
from fastapi import HTTPException

from polyrec.core.settings import SettingError
from polyrec.serving.batcher import Expired
from polyrec.serving.catalog import Unknown
from polyrec.serving.link import Link, _Kind
from polyrec.serving.writer import QueueFull


class Unreadable(Exception):
    """An error that pickle writes, and cannot read."""

    def __init__(self, one, other):
        super().__init__(f"{one} {other}")


def linked(test, **offers):
    """Run a coroutine with one end; the other offers something."""

    async def run():
        loop, ends, ended = asyncio.get_running_loop(), socket.socketpair(), asyncio.Event()
        asking, offering = Link({}, lambda: None), Link(offers, ended.set)
        for link, end in zip((asking, offering), ends, strict=True):
            await loop.create_connection(lambda link=link: link, sock=end)
        await test(asking)
        asking.close()
        await asyncio.wait_for(ended.wait(), 5)

    asyncio.run(run())


@pytest.mark.parametrize(
    "error",
    [
        SettingError("requests[0].k", "is 0"),
        ValueError("unknown task"),
        QueueFull("512 requests wait"),
        Expired("too late"),
        Unknown("no such item"),
        TimeoutError(),
        HTTPException(503, "wait", {"retry-after": "1"}),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross_as_they_are(error):
    """Prevents a refusal from becoming a 500, or from losing its field or headers, where HTTP has its own process."""

    async def fails():
        raise error

    async def test(link):
        with pytest.raises(type(error)) as caught:
            await asyncio.wait_for(link.ask("fails"), 5)
        assert vars(caught.value) == vars(error)
        assert str(caught.value) == str(error)

    linked(test, fails=fails)


def test_an_error_that_cannot_cross_takes_nothing_with_it():
    """Prevents one response that cannot be read from losing those that cross with it, whose clients would wait."""

    async def fails():
        raise Unreadable("no", "way")

    async def works(value):
        return value

    async def test(link):
        asked = [link.ask("fails"), link.ask("works", 3)]
        found = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
        assert isinstance(found[0], RuntimeError)
        assert "Unreadable: no way" in str(found[0])
        assert found[1] == 3

    linked(test, fails=fails, works=works)


def test_what_cannot_be_pickled_stops_nothing_else(caplog):
    """Prevents one call or result that pickle cannot write from stopping all calls after it, for good."""

    async def spoilt(value):
        return lambda: value

    async def works(value):
        return value

    async def test(link):
        link.tell("works", lambda: None)
        asked = [link.ask("spoilt", 1), link.ask("works", lambda: 2), link.ask("works", 3)]
        found = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
        assert [type(one) for one in found] == [RuntimeError, RuntimeError, int]
        assert "RESULT: cannot be pickled" in str(found[0])
        assert "ASK: cannot be pickled" in str(found[1])
        assert await asyncio.wait_for(link.ask("works", 4), 5) == 4

    linked(test, spoilt=spoilt, works=works)
    assert "works of a call without a result cannot be sent" in caplog.text


def test_a_function_that_fails_does_not_close_the_link(caplog):
    """Prevents a figure that cannot be counted from ending the server, and the log from holding data of users."""

    def told(user):
        raise KeyError(user)

    async def works():
        return 1

    async def test(link):
        link.tell("told", "Ada")
        assert await asyncio.wait_for(link.ask("works"), 5) == 1
        assert await asyncio.wait_for(link.ask("works"), 5) == 1

    linked(test, told=told, works=works)
    assert "told failed: KeyError" in caplog.text
    assert "Ada" not in caplog.text


def test_a_call_is_cancelled_with_its_client():
    """Prevents the model from working for clients that have gone."""
    seen = []

    async def waits():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def test(link):
        task = asyncio.ensure_future(link.ask("waits"))
        await asyncio.sleep(0.1)
        task.cancel()
        while not seen:
            await asyncio.sleep(0.01)

    linked(test, waits=waits)


def test_a_call_that_is_cancelled_at_once_leaves_nothing():
    """Prevents calls that come with their own end from filling the memory."""

    async def run():
        link = Link({"never": asyncio.sleep}, lambda: None)
        frame = pickle.dumps([(_Kind.ASK, 1, "never", (60,)), (_Kind.CANCEL, 1)])
        link.data_received(len(frame).to_bytes(4) + frame)
        await asyncio.sleep(0.05)
        assert link._serves == {}

    asyncio.run(run())


def test_calls_that_come_together_are_one_frame():
    """Prevents requests that came together from reaching the model one by one, as batches of one."""
    written = []

    class Transport:
        def is_closing(self):
            return False

        def write(self, data):
            written.append(pickle.loads(data[4:]))

    async def run():
        link = Link({}, lambda: None)
        link.connection_made(Transport())
        link.tell("measured", 1)
        tasks = [asyncio.ensure_future(link.ask("respond", n)) for n in range(10)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    assert [len(frame) for frame in written] == [
        11,
        10,
    ]  # calls and what was told before; then, that they are cancelled


def test_frames_arrive_in_pieces():
    """Prevents a frame from being read before all of it has come, or two that came in one piece as one."""
    found, written = [], []

    class Transport:
        def is_closing(self):
            return False

        def write(self, data):
            written.append(data)

    async def run():
        sender, receiver = Link({}, lambda: None), Link({"told": found.append}, lambda: None)
        sender.connection_made(Transport())
        for number in range(3):
            sender.tell("told", number)
            await asyncio.sleep(0.25)
        data = b"".join(written)
        for cut in (1, 5, len(written[0]) + 2, len(data)):
            receiver.data_received(data[:cut])
            data = data[cut:]

    asyncio.run(run())
    assert len(written) == 3
    assert found == [0, 1, 2]
