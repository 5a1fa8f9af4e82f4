"""One writer at a time for a folder, across processes; a process that dies lets go."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

_held: set[str] = set()  # locks of a process do not exclude the process itself
_guard = threading.Lock()


class Locked(ValueError):
    """Another process, or another call in this one, writes the folder."""


def lock_path(folder: Path) -> Path:
    """Where the lock of a folder lies: beside it, because the folder itself is replaced."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which need not exist.

    Args:
        folder: a resolved path.

    Raises:
        Locked: somebody else holds it; names the process and since when.

    Example:
        >>> import tempfile
        >>> run = Path(tempfile.mkdtemp()) / "run"
        >>> with locked(run), locked(run):
        ...     pass
        Traceback (most recent call last):
            ...
        polyrec.core.lock.Locked: ...run is being written by process ...
    """
    path = lock_path(folder)
    with _guard:
        if str(path) in _held:
            raise Locked(_refusal(folder, path))
        descriptor = _acquire(folder, path)
        _held.add(str(path))
    try:
        yield
    finally:
        with _guard:
            _held.discard(str(path))
            path.unlink(missing_ok=True)  # before it is released: who waits for this file looks whether it is there
            os.close(descriptor)


def _acquire(folder: Path, path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # such as a file system without locks
                raise
            raise Locked(_refusal(folder, path)) from error
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            break
        os.close(descriptor)  # the file was removed by its last holder in between
    holder = {"pid": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}", "command": " ".join(sys.argv)[:200]}
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(holder).encode())
    return descriptor


def _refusal(folder: Path, path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        who = f"process {holder['pid']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return f"{folder} is being written by {who}: wait until it ends, or choose another --output"
