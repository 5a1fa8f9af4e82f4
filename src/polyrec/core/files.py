"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp"  # suffix of files that are being written; their names begin with a dot
_umask_lock = threading.Lock()


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a file under a temporary name beside its place and rename it when it is on disk.

    Whoever reads `path` finds the old content or the new one, never a part. The file's mode follows the umask.

    Args:
        content: text is written as UTF-8.

    Raises:
        OSError: the file cannot be written; the old one is as it was and nothing is left beside it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_atomically(folder / "metrics.json", "{}")
        >>> [path.name for path in folder.iterdir()]
        ['metrics.json']
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with replacing(path) as draft, open(draft, "wb") as file:
        file.write(data)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path for a library that writes a file by itself, and rename it to `path` at the end.

    Raises:
        OSError: as `write_atomically`; an exception inside leaves `path` as it was.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{TEMPORARY}")
    try:
        yield draft
        readable_by_umask(draft)
        sync_file(draft)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_file(path: str | Path) -> None:
    """Return when a file's content is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: str | Path) -> None:
    """Return when a folder's list of names is on disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        sync_file(path)


def sync_tree(folder: str | Path) -> None:
    """Return when all files below a folder are on disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            if not os.path.islink(os.path.join(place, name)):
                sync_file(os.path.join(place, name))
        sync_folder(place)


def readable_by_umask(path: str | Path) -> None:
    """Give a file, or all files below a folder, at least the mode that the umask allows.

    Libraries that write through temporary files leave mode 0600, and other users of the machine then find no file.
    """
    allowed = 0o666 & ~_umask()
    files = [Path(path)] if not os.path.isdir(path) else [p for p in Path(path).rglob("*") if p.is_file()]
    for file in files:
        mode = stat.S_IMODE(file.lstat().st_mode)
        if not file.is_symlink() and mode | allowed != mode:
            file.chmod(mode | allowed)


def _umask() -> int:
    with _umask_lock:  # it can only be read by setting it
        mask = os.umask(0o077)
        os.umask(mask)
    return mask
