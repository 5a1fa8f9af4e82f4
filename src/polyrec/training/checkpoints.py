"""Checkpoints that are whole: written under another name, with a manifest, and renamed when they are on disk."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from polyrec.core.files import readable_by_umask, sync_folder, sync_tree
from polyrec.core.manifest import MANIFEST_NAME, check_manifest, read_manifest, write_manifest
from polyrec.core.swap import exchange
from polyrec.hub.weights import read_header

logger = logging.get_logger(__name__)
STATE_NAME = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_UNFINISHED, _DELETED = ".unfinished-", ".deleted-"


def checkpoints(folder: str | Path) -> list[Path]:
    """Folders with the name of a checkpoint, the newest last; the folder need not exist."""
    home = Path(folder)
    found = [path for path in (home.iterdir() if home.is_dir() else []) if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step)


def complete_checkpoints(folder: str | Path) -> list[Path]:
    """Checkpoints from which a training can go on, the newest last."""
    return [path for path in checkpoints(folder) if damage(path) is None]


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The newest complete checkpoint; newer ones that are damaged are named in a warning."""
    for path in reversed(checkpoints(folder)):
        problem = damage(path)
        if problem is None:
            return path
        logger.warning(f"{path} is ignored: {problem}")
    return None


def damage(checkpoint: Path) -> str | None:
    """Why a training cannot go on from a checkpoint; None: it can.

    One without a manifest was written by an earlier version: its state must be readable and its files as long as their
    headers say.
    """
    try:
        if check_manifest(checkpoint) is None:
            json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
            for path in checkpoint.glob("*.safetensors"):
                read_header(path)
            cut = [path.name for path in checkpoint.glob("*.pt*") if not zipfile.is_zipfile(path)]
            return f"{cut[0]} is cut off" if cut else None
    except (OSError, ValueError) as error:
        return str(error)
    return None if (checkpoint / STATE_NAME).exists() else f"it has no {STATE_NAME}"


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint's training was made from; of earlier versions the fingerprints, or nothing."""
    manifest = read_manifest(checkpoint)
    if manifest is not None:
        return manifest.facts
    try:
        arguments = json.loads((checkpoint / "training_args.json").read_text(encoding="utf-8"))
        return {"fingerprints": arguments["fingerprints"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def unfinished(folder: Path, name: str) -> Path:
    """Where a checkpoint is written until it is whole: a folder that holds it under its own name."""
    return folder / f"{_UNFINISHED}{name}"


def finish_checkpoint(folder: Path, name: str, facts: Mapping[str, Any]) -> Path:
    """Give a checkpoint that is whole its manifest and its place; one of the same step is replaced."""
    work, target = unfinished(folder, name), folder / name
    readable_by_umask(work / name)
    files = [path.relative_to(work / name).as_posix() for path in (work / name).rglob("*") if path.is_file()]
    write_manifest(work / name, facts, files)
    sync_tree(work / name)
    if not (target.exists() and exchange(work / name, target)):
        if target.exists():
            delete_checkpoint(target)
        os.rename(work / name, target)
    sync_folder(folder)
    shutil.rmtree(work)
    return target


def delete_checkpoint(path: Path) -> None:
    """Delete a checkpoint: it loses its name first, so that no half of one is mistaken for one."""
    gone = path.with_name(f"{_DELETED}{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Delete what interrupted writing or deleting of checkpoints has left."""
    for path in folder.iterdir() if folder.is_dir() else []:
        if path.name.startswith((_UNFINISHED, _DELETED)):
            shutil.rmtree(path, ignore_errors=True)


def keep_newest(folder: Path, limit: int | None, protected: set[str]) -> None:
    """Delete the checkpoints that were written first.

    Args:
        limit: how many stay; None: all.
        protected: names of those that stay whatever the limit is.
    """
    if limit is None or limit <= 0:
        return
    found = [path for path in checkpoints(folder) if (path / MANIFEST_NAME).exists()]
    found.sort(key=lambda path: (path / MANIFEST_NAME).stat().st_mtime_ns)
    surplus = len(found) - max(limit, len(protected))
    for path in [path for path in found if path.name not in protected][: max(surplus, 0)]:
        delete_checkpoint(path)


def _step(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    assert found is not None  # it was chosen by this name
    return int(found[1])


def disk_error(error: Exception, target: Path) -> OSError | None:
    """What an error means for the disk, if it does: libraries tell of a full one in ways of their own."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno is not None:
            return OSError(chain.errno, f"{target} was not saved: {chain.strerror}", str(target))
        chain = chain.__cause__ or chain.__context__
    text = str(error)
    if "No space left" in text or "PytorchStreamWriter failed" in text:
        return OSError(errno.ENOSPC, f"{target} was not saved: no space left on the disk", str(target))
    return None
