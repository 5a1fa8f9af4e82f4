"""Try things in forked children: one that dies, hangs or fills the memory takes nothing else with it."""

import contextlib
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


class Hang(BaseException):
    """The work took too long; no `except Exception` on its way may catch it."""


def outcomes(cases: Sequence[Any], attempt: Callable[[Any], Any], seconds: float, recycle: int = 200) -> Iterator[Any]:
    """What `attempt` returned for each case, in order; None where its process died or was silent for too long.

    Args:
        attempt: called in a child; returns what JSON can hold.
        seconds: one case may take before its child is killed.
        recycle: cases of one child.
    """
    done = 0
    while done < len(cases):
        part = cases[done : done + recycle]
        came = 0
        for outcome in _of_one_child(part, attempt, seconds):
            came += 1
            yield outcome
        done += came
        if came < len(part):  # the child died in the next one
            yield None
            done += 1


def _of_one_child(cases: Sequence[Any], attempt: Callable[[Any], Any], seconds: float) -> Iterator[Any]:
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            with os.fdopen(writing, "w", encoding="utf-8") as lines:
                for case in cases:
                    lines.write(json.dumps(attempt(case)) + "\n")
                    lines.flush()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as lines:
        while select.select([lines], [], [], seconds)[0] and (line := lines.readline()):
            yield json.loads(line)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@contextlib.contextmanager
def limits(seconds: int, memory: int) -> Iterator[None]:
    """Raise Hang in this process after so many seconds, and MemoryError beyond so many bytes more than now.

    The limit of the memory is on the address space, so give it several times what the work may really take.
    """

    def stop(signum: int, frame: Any) -> None:
        raise Hang

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + memory, before[1]))
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)
