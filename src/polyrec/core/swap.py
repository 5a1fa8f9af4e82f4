"""A folder that is replaced as a whole: written beside its place, then exchanged with what is there.

Beside a folder NAME lie, while it is written:

* `.NAME.draft` or `.NAME.new`: what is not complete yet. Nothing reads it, and it may be deleted.
* `.NAME.ready`: complete and on disk, with the file `READY` in it. From here on the swap is finished by whoever comes
  next, never undone. It becomes NAME, and what NAME was becomes `.NAME.old`.
* `.NAME.old`: the folder before, whose files that polyrec does not know go on to NAME.
* `.NAME.trash`: what is left of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
from pathlib import Path, PurePosixPath

from polyrec.core.files import sync_file, sync_folder, sync_tree
from polyrec.core.lock import Locked, locked
from polyrec.core.manifest import MANIFEST_NAME, READ_FILES, edited, fits, read_manifest

READY = ".ready"
DRAFT_NAME = ".draft.json"  # of a draft that may be gone on with: whose it is; it stays until the draft is in its place
# Of folders of before there were manifests.
_REPORTS = ("metrics.json", "training.json", "training_args.json", "update.json", "finetune.json", "distill.json")
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_EXCHANGE, _AT_CWD = 2, -100  # of renameat2


def beside(place: Path, kind: str) -> Path:
    """Path of a folder that belongs to another while that is written."""
    return place.with_name(f".{place.name}.{kind}")


def publish(draft: Path, place: Path) -> None:
    """Put a complete draft into its place. Call it while the lock of the place is held.

    Readers see the old folder or the new one. Files of the old one that polyrec has not written stay.

    Args:
        draft, place: resolved paths in one folder.
    """
    sync_tree(draft)
    (draft / READY).touch()
    sync_file(draft / READY)
    sync_folder(draft)
    os.rename(draft, beside(place, "ready"))
    sync_folder(place.parent)
    finish(place)


def unfinished(place: Path) -> bool:
    """Whether a swap was interrupted after the draft was complete."""
    return (place / READY).exists() or any(beside(place, kind).exists() for kind in ("ready", "old", "trash"))


def finish(place: Path) -> None:
    """Finish an interrupted swap; each step may have been done before. Call it while the lock of the place is held."""
    ready, old, trash = (beside(place, kind) for kind in ("ready", "old", "trash"))
    if (ready / READY).exists():
        if not os.path.lexists(place):
            os.rename(ready, place)
        elif not exchange(ready, place):
            os.rename(place, old)
            os.rename(ready, place)
        sync_folder(place.parent)
    if ready.exists():  # exchanged: this is the folder before
        os.rename(ready, old)
    if old.exists():
        _carry_over(old, place)
        os.rename(old, trash)
    if trash.exists():
        shutil.rmtree(trash)
    (place / DRAFT_NAME).unlink(missing_ok=True)
    (place / READY).unlink(missing_ok=True)
    sync_folder(place.parent)


def recover(folder: str | Path) -> Path:
    """Finish what an interrupted command has left of a folder; every command that reads one begins with it.

    Returns:
        the folder. Where somebody writes it now, or nothing may be written, it is as it is.
    """
    given = Path(folder)
    if not given.name or given.name in (".", ".."):
        return given
    place = given.resolve()
    if unfinished(place):
        try:
            with locked(place):
                finish(place)
        except (Locked, OSError):
            pass  # whoever writes it finishes it; a file system that takes nothing is read as it is
    return given


def exchange(first: Path, second: Path) -> bool:
    """Exchange two folders at once, so that none is ever missing; False: this system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    names = os.fsencode(first), os.fsencode(second)
    if library.renameat2(_AT_CWD, names[0], _AT_CWD, names[1], _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP):
        return False  # of the file system
    raise OSError(code, os.strerror(code), str(second))


def _carry_over(old: Path, place: Path) -> None:
    """Move what polyrec has not written (notes, logs) to the new folder, where nothing has its name."""
    written = _written_files(old)
    homes = {part for path in [*written, *READ_FILES] for part in (str(p) for p in PurePosixPath(path).parents)}

    def carry(inside: str) -> None:
        for entry in sorted(os.scandir(old / inside), key=lambda entry: entry.name):
            path = f"{inside}/{entry.name}".lstrip("/")
            if path in written or fits(path, READ_FILES) or _CHECKPOINT.fullmatch(path):
                continue
            if entry.is_dir(follow_symlinks=False) and (fits(path, homes) or (place / path).is_dir()):
                carry(path)
            elif not os.path.lexists(place / path):
                (place / inside).mkdir(parents=True, exist_ok=True)
                os.rename(entry.path, place / path)

    carry("")


def _written_files(folder: Path) -> set[str]:
    """Files that polyrec has written there and nobody has changed since."""
    try:
        manifest = read_manifest(folder)
    except ValueError:
        manifest = None
    if manifest is None:
        return {MANIFEST_NAME, READY, DRAFT_NAME, *_REPORTS}
    return {MANIFEST_NAME, READY, DRAFT_NAME, *manifest.files} - {*edited(folder, manifest)}
