"""Writing a run: drafted beside its place, verified, and swapped as a whole, by one process at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polyrec.core.files import readable_by_umask, write_atomically
from polyrec.core.lock import locked
from polyrec.core.manifest import (
    MANIFEST_NAME,
    fits,
    read_manifest,
    refresh_manifest,
    write_manifest,
)
from polyrec.core.swap import DRAFT_NAME, beside, finish, publish
from polyrec.data.processor_files import CONFIG_NAME
from polyrec.hub.files import MODEL_CONFIG
from polyrec.hub.safety import check_model, check_processor
from polyrec.runs.facts import ABOUT_NAME, claim_folder, training_differences
from polyrec.training.checkpoints import complete_checkpoints

_DISTILLED = ("runs", "models", "start.json", "width.json")  # what a distillation may go on with
_OTHERS = (".", "events.out.")  # what is worked on, and logs that others may still write to


def place_of(output: str | Path) -> Path:
    """Where a folder of results lies, or will lie; refused before any work if it cannot be replaced there.

    Raises:
        ValueError: it is a file, the current folder, a mount point, or in a folder that cannot be written to.
    """
    place = Path(output).resolve()
    if place.exists() and not place.is_dir():
        raise ValueError(f"{output} is a file: choose a folder for the results")
    if place == Path.cwd() or place in Path.cwd().parents:
        raise ValueError(
            f"{output} is the current folder or one above it, and a run is replaced as a whole: choose a folder below, "
            "e.g. runs/latest"
        )
    if place.is_mount():
        raise ValueError(f"{output} is a mount point, which cannot be replaced: choose a folder in it, {output}/run")
    parent = next(p for p in place.parents if p.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"no permission to write in {parent}, where {output} would be: choose another --output")
    return place


@contextmanager
def new_run(output: str | Path, facts: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Yield an empty folder; what is in it at the end replaces the run at once. An exception leaves what was.

    Args:
        facts: of the run, see `polyrec.runs.facts.about_run`.

    Raises:
        ValueError: another process writes the run, or what was drafted cannot be loaded.
    """
    place = place_of(output)
    with locked(place):
        finish(place)
        with drafted(place, facts) as draft:
            yield draft


@contextmanager
def drafted(place: Path, facts: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """As `new_run`, for who holds the lock of the place already."""
    draft = _empty(beside(place, "new"))
    try:
        yield draft
        complete(draft, facts)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    publish(draft, place)


@contextmanager
def changed_run(output: str | Path, replaced: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a copy of a folder that shares its files; at the end it takes the folder's place at once.

    Put whole new files into the copy (`write_atomically`): writing into one that is there would change the original.

    Args:
        replaced: patterns of files that are not copied.
    """
    place = place_of(output)
    with locked(place):
        finish(place)
        with changes(place, replaced) as draft:
            yield draft


@contextmanager
def changes(place: Path, replaced: Sequence[str] = ()) -> Iterator[Path]:
    """As `changed_run`, for who holds the lock of the place already."""
    draft = _empty(beside(place, "new"))
    try:
        link_files(place, draft, replaced)
        yield draft
        if read_manifest(place) is not None:
            _record_changes(place, draft, replaced)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    publish(draft, place)


def put_file(path: str | Path, content: str | bytes) -> None:
    """Write a file whole; in a folder with a manifest together with its entry there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if (path.parent / MANIFEST_NAME).exists() and (path.parent / MODEL_CONFIG).exists():
        with changed_run(path.parent, [path.name]) as draft:
            write_atomically(draft / path.name, content)
    else:
        write_atomically(path, content)


def complete(draft: Path, facts: Mapping[str, Any] | None) -> None:
    """Make a draft a run: modes, a manifest of all its files, and a look at whether it can be loaded.

    Raises:
        ValueError: a file of the model or the processor is not what is read.
    """
    readable_by_umask(draft)
    names = [path.relative_to(draft).as_posix() for path in sorted(draft.rglob("*")) if path.is_file()]
    own = [n for n in names if not n.startswith("checkpoint-") and not any(p.startswith(_OTHERS) for p in n.split("/"))]
    write_manifest(draft, facts, own)
    if (draft / MODEL_CONFIG).exists():
        check_model(draft)
    if (draft / CONFIG_NAME).exists():
        check_processor(draft)


def training_draft(place: Path, command: str, about: Mapping[str, Any], resume: bool) -> Path:
    """The folder in which a long command works until its run is complete; kept when it is interrupted.

    Call it while the lock of the place is held.

    Args:
        command: of the command line.
        about: what the training is made from; see `polyrec.runs.facts`.
        resume: go on with what an interrupted command has left, or with the checkpoints of the run that is there.

    Raises:
        ValueError: what is there was made from another recipe or other data; the differences are named.
    """
    finish(place)
    draft = beside(place, "draft")
    told = _told(draft)
    if resume and told is not None and told["command"] != command:
        raise ValueError(f"{place} has an unfinished `polyrec {told['command']}`: run that again, or without --resume")
    if resume and told is not None:
        check_resumable(told["about"], about, place)
        return draft
    left = complete_checkpoints(draft)
    if left and told is not None:
        print(f"the unfinished `polyrec {told['command']}` of {place} (at {left[-1].name}) is given up")
    _empty(draft)
    if resume:
        _take_checkpoints(place, draft, about)
    write_atomically(draft / DRAFT_NAME, json.dumps({"command": command, "about": about}) + "\n")
    return draft


def distillation_draft(place: Path, about: dict[str, Any]) -> Path:
    """The folder in which a distillation works until its run is complete; its finished trainings are kept.

    Call it while the lock of the place is held.

    Raises:
        ValueError: the folder, or what an interrupted command has left, is of another recipe, data or teachers.
    """
    finish(place)
    draft = beside(place, "draft")
    if not (draft / ABOUT_NAME).exists():  # nothing, or an unfinished `polyrec train`
        if (place / ABOUT_NAME).exists():
            claim_folder(place, about)
        _empty(draft)
        for name in _DISTILLED:
            if (place / ABOUT_NAME).exists() and (place / name).is_dir():
                link_files(place / name, draft / name)
            elif (place / ABOUT_NAME).exists() and (place / name).exists():
                _link(place / name, draft / name)
    claim_folder(draft, about)
    return draft


def check_resumable(held: Mapping[str, Any], about: Mapping[str, Any], place: Path) -> None:
    """Refuse to resume a training with another recipe or other data; say what may differ and does."""
    refused, allowed = training_differences(held, about)
    if refused:
        raise ValueError(
            f"the training in {place} cannot be resumed: it was begun with another {', '.join(refused)}; set "
            "it back, or train anew without --resume"
        )
    length = [name.removeprefix("recipe.training.") for name in allowed if name != "polyrec"]
    if length:
        print(f"resumed with another {' and '.join(length)}: learning rates go on as if it had been so from the start")


def link_files(source: Path, target: Path, left_out: Sequence[str] = ()) -> None:
    """Fill a folder with the files of another, without copying where the file system can share them."""
    for home, folders, names in os.walk(source):
        inside = Path(home).relative_to(source)
        links = [name for name in folders if (Path(home) / name).is_symlink()]
        (target / inside).mkdir(exist_ok=True)
        for name in [*names, *links]:
            if not fits((inside / name).as_posix(), left_out):
                _link(Path(home) / name, target / inside / name)


def _take_checkpoints(place: Path, draft: Path, about: Mapping[str, Any]) -> None:
    found = complete_checkpoints(place)
    if not found:
        return
    manifest = read_manifest(place) or read_manifest(found[-1])
    if manifest is not None and manifest.facts.get("recipe") is not None:
        check_resumable({name: manifest.facts[name] for name in about if name in manifest.facts}, about, place)
    for checkpoint in found:
        link_files(checkpoint, draft / checkpoint.name)


def _record_changes(place: Path, draft: Path, replaced: Sequence[str]) -> None:
    """Digests of the new files; those of the others stay, so that damage is not mistaken for a change."""
    new = [p for p in draft.rglob("*") if p.is_file() and not p.is_symlink() and p.name != MANIFEST_NAME]
    names = {path.relative_to(draft).as_posix(): path for path in new}
    changed = [name for name, path in names.items() if not (place / name).exists() or not _same(path, place / name)]
    refresh_manifest(draft, [*changed, *replaced])
    readable_by_umask(draft)


def _same(copy: Path, original: Path) -> bool:
    """Whether a file of a copy is that of the original: shared, or copied where files cannot be shared."""
    one, two = copy.stat(), original.stat()
    return os.path.samestat(one, two) or (one.st_size, one.st_mtime_ns) == (two.st_size, two.st_mtime_ns)


def _link(source: Path, target: Path) -> None:
    if source.is_symlink():
        target.symlink_to(os.readlink(source))
        return
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _empty(folder: Path) -> Path:
    (folder / DRAFT_NAME).unlink(missing_ok=True)  # first: what is left of a deletion is nobody's draft
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def _told(draft: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((draft / DRAFT_NAME).read_text(encoding="utf-8"))
        return {"command": found["command"], "about": found["about"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
