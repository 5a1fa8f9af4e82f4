"""Files of strangers are read in a process of their own: what ends it, or fills its memory, ends nothing else."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

_SECONDS, _BYTES_PER_SECOND = 30, 20 << 20  # that reading takes on a slow disk


def isolated(work: Callable[[], Any], what: str, memory: int) -> Any:
    """The result of a function that reads files, run in a fork of this process, where there are forks.

    Args:
        work: returns values of JSON; it runs no other threads.
        what: is read, for messages.
        memory: bytes that it may take beyond what this process has.

    Raises:
        ValueError: what `work` raised as one, or it died, took too much memory or time.

    Example:
        >>> isolated(lambda: [1, 2], "a list", 1 << 30)
        [1, 2]
        >>> isolated(lambda: os.abort(), "a bad file", 1 << 30)
        Traceback (most recent call last):
            ...
        ValueError: a bad file cannot be read (the reader died of SIGABRT): damaged, or made to do harm...
    """
    if sys.platform != "linux":
        return work()
    code, said = _forked(work, memory)
    if code == -signal.SIGALRM:
        # A lock that another thread held when the process forked is never free there; a second fork meets it seldom.
        code, said = _forked(work, memory)
    if code < 0 or not said:
        died = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        raise ValueError(
            f"{what} cannot be read (the reader {died}): damaged, or made to do harm; take the files from a source "
            "that you trust"
        )
    found = json.loads(said)
    if "error" in found:
        raise ValueError(found["error"])
    return found["result"]


def _forked(work: Callable[[], Any], memory: int) -> tuple[int, bytes]:
    """The exit code of a fork, and what it wrote."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        # Threads of this process are not in the fork, which reads files and nothing else.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(read)
        _run_confined(work, write, memory, _SECONDS + memory // _BYTES_PER_SECOND)
    os.close(write)
    try:
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read()
    finally:
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said


def _run_confined(work: Callable[[], Any], write: int, memory: int, seconds: int) -> None:
    """Run in the fork, write the result and end, without the clean-up of a process that goes on elsewhere."""
    code = 1
    try:
        import resource

        faulthandler.disable()
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)  # libraries tell of their end
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        with open("/proc/self/statm", "rb") as file:
            own = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = own + memory if hard == resource.RLIM_INFINITY else min(own + memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            found = {"result": work()}
        except MemoryError:
            found = {"error": "the files would fill the memory: they are made for that, and are not loaded"}
        except Exception as error:
            found = {"error": str(error) or type(error).__name__}
        os.write(write, json.dumps(found).encode())
        code = 0
    finally:
        os._exit(code)
