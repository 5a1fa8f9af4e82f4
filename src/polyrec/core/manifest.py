"""manifest.json: the SHA-256 of every file of a folder, and what the folder was made from.

A folder without one was written by an earlier version and is read as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from polyrec.core.files import write_atomically
from polyrec.core.version import __version__

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
# Files that `from_pretrained` reads where it finds them: one that the manifest does not name changes predictions.
READ_FILES = (
    "config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors",
    "model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors",
    "processor_config.json", "prompt_config.json", "preprocessor_config.json", "items.parquet", "users.parquet",
    "training_rows.safetensors", "stored_events.parquet", "item_vectors/*.npy", "statistics/scales.json",
    "statistics/*/statistics.json",
    "statistics/*/state-*.parquet", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "chat_template.jinja", "recipe.yaml",
)  # fmt: skip
EDITED_BY_HAND = ("README.md", "LICENSE")  # no prediction depends on them, so their content may change
_SHARED_FACTS = ("data", "polyrec")
_LARGEST = 64 << 20  # bytes of a manifest
_SHOWN = 4  # problems named in one message


@dataclass(frozen=True)
class Manifest:
    """What a manifest says.

    Args:
        files: {path with `/`: {"sha256": hexadecimal digits, "bytes": size}}.
        facts: what the folder was made from, e.g. fingerprints of recipe, data, items and processor.
        polyrec: version that wrote it.
        format_version: of the manifest itself.
    """

    files: dict[str, dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)
    polyrec: str = __version__
    format_version: int = FORMAT_VERSION


def write_manifest(
    folder: str | Path, facts: Mapping[str, Any] | None = None, files: Iterable[str] | None = None
) -> Manifest:
    """Record the files of a folder, in place of what an earlier manifest said.

    Args:
        facts: values of JSON's types; None: those of the manifest that is there, if one is.
        files: relative paths with `/`; None: every file that polyrec reads by its name.

    Raises:
        ValueError: a file is a symbolic link, no regular file, or outside the folder.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "config.json").write_text("{}")
        >>> _ = write_manifest(folder, {"data": "5e1f"})
        >>> check_manifest(folder).facts
        {'data': '5e1f'}
        >>> _ = (folder / "config.json").write_text("[]")
        >>> check_manifest(folder)
        Traceback (most recent call last):
            ...
        ValueError: ...config.json is not the file that was saved...
    """
    folder = Path(folder)
    if facts is None:
        facts = held.facts if (held := _read_if_whole(folder)) is not None else {}
    named = _read_here(folder) if files is None else sorted({*files} - {MANIFEST_NAME})
    for name in named:
        if problem := _unsafe(folder, name, links=False):
            raise ValueError(f"{folder}: {problem}")
    manifest = Manifest(dict(zip(named, _digests(folder, named), strict=True)), _plain(facts))
    write_atomically(folder / MANIFEST_NAME, _to_json(manifest))
    return manifest


def refresh_manifest(folder: str | Path, patterns: Iterable[str]) -> Manifest:
    """Record anew the files that fit some patterns, after they were written; other entries and facts stay.

    A folder that has no manifest yet gets one of all files that polyrec reads.

    Args:
        patterns: such as "statistics/*/state-*.parquet"; `*` does not cross a folder.
    """
    folder, patterns = Path(folder), tuple(patterns)
    held = _read_if_whole(folder)
    if held is None:
        return write_manifest(folder)
    kept = {name: entry for name, entry in held.files.items() if not fits(name, patterns)}
    written = [name for name in _walk(folder) if fits(name, patterns)]
    files = kept | dict(zip(written, _digests(folder, written), strict=True))
    manifest = Manifest(dict(sorted(files.items())), held.facts)
    write_atomically(folder / MANIFEST_NAME, _to_json(manifest))
    return manifest


def read_manifest(folder: str | Path) -> Manifest | None:
    """What the manifest of a folder says; None without one. The files are not looked at, see `check_manifest`.

    Raises:
        ValueError: the manifest is damaged, or newer than this version.
    """
    path = Path(folder) / MANIFEST_NAME
    if not os.path.lexists(path):
        return None
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            raise ValueError("it is no file of a manifest's size")
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError("it is no mapping")
        version = values.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ValueError(f"it has format {version}, this version reads {FORMAT_VERSION}: update polyrec")
        if values.pop("digest", None) != _digest_of(values):
            raise ValueError("its content does not fit its own digest")
        manifest = Manifest(values["files"], values["facts"], values["polyrec"], int(values["format_version"]))
        for name, entry in manifest.files.items():
            if len(entry["sha256"]) != 64 or type(entry["bytes"]) is not int:
                raise ValueError(f"the entry of {name!r} is no digest")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be trusted: {error}; {_fix(folder)}") from error
    return manifest


def check_manifest(folder: str | Path, files: Iterable[str] | None = None, links: bool = False) -> Manifest | None:
    """Compare the files of a folder with its manifest.

    Args:
        files: patterns of the files to look at, e.g. those of a model; None: all. README.md and LICENSE may change.
        links: whether files may be symbolic links, as in the cache of the Hub.

    Returns:
        what the manifest says; None if the folder has none: an earlier version wrote it.

    Raises:
        ValueError: a file is missing, has other content, is not named by the manifest though it would be read, is a
            symbolic link, or lies outside the folder; with its name and the fix.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    patterns = None if files is None else tuple(files)
    wanted = [name for name in manifest.files if patterns is None or fits(name, patterns)]
    problems = [problem for name in wanted if (problem := _unsafe(folder, name, links))]
    if not problems:
        problems = _differences(folder, manifest, wanted)
    here = _read_here(folder) if patterns is None else [n for n in _walk(folder) if fits(n, patterns)]
    problems += [f"{name} was not saved with it" for name in here if name not in manifest.files]
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(f"{folder}: {'; '.join(problems[:_SHOWN])}{more}; {_fix(folder)}")
    return manifest


def excerpt(folder: str | Path, files: Iterable[str]) -> str:
    """The text of a manifest of some files of a folder that are shared.

    Of the facts it has the digests of the data; settings, with paths of this machine among them, stay here.

    Args:
        files: relative paths with `/`; the digest of one that the folder's manifest does not name is computed.
    """
    folder, held = Path(folder), read_manifest(folder)
    known = {} if held is None else held.files
    names = sorted({*files} - {MANIFEST_NAME, *EDITED_BY_HAND})
    new = [name for name in names if name not in known]
    found = {**known, **dict(zip(new, _digests(folder, new), strict=True))}
    facts = {} if held is None else {name: held.facts[name] for name in _SHARED_FACTS if name in held.facts}
    return _to_json(Manifest({name: found[name] for name in names}, facts))


def edited(folder: Path, manifest: Manifest) -> list[str]:
    """Files that users may edit (README.md, LICENSE) and have edited."""
    there = [name for name in EDITED_BY_HAND if name in manifest.files and (folder / name).is_file()]
    return [n for n, own in zip(there, _digests(folder, there), strict=True) if own != manifest.files[n]]


def fits(path: str, patterns: Iterable[str]) -> bool:
    """Whether a relative path fits a pattern, folder by folder.

    Example:
        >>> fits("statistics/item/state-0.parquet", ["statistics/*/state-*.parquet"])
        True
        >>> fits("statistics/../x/state-0.parquet", ["statistics/*/state-*.parquet"])
        False
    """
    parts = path.split("/")
    return any(len(parts) == len(own) and all(map(fnmatchcase, parts, own)) for own in (p.split("/") for p in patterns))


def _read_if_whole(folder: Path) -> Manifest | None:
    """The manifest that is to be replaced, of which a damaged one says nothing."""
    try:
        return read_manifest(folder)
    except ValueError:
        return None


def _differences(folder: Path, manifest: Manifest, names: list[str]) -> list[str]:
    problems, same_size = [], []
    for name in names:
        path, entry = folder / name, manifest.files[name]
        if not path.exists():
            problems.append(f"{name} is missing")
        elif name in EDITED_BY_HAND:
            continue
        elif (size := path.stat().st_size) != entry["bytes"]:
            problems.append(f"{name} is not the file that was saved (it has {size:,} bytes, not {entry['bytes']:,})")
        else:
            same_size.append(name)
    found = _digests(folder, same_size)
    return problems + [
        f"{name} is not the file that was saved (its SHA-256 differs)"
        for name, own in zip(same_size, found, strict=True)
        if own != manifest.files[name]
    ]


def _fix(folder: str | Path) -> str:
    return (
        "the folder is damaged or was mixed with another: restore it from a copy or train again. If you changed it "
        f"yourself: python -c 'from polyrec.core.manifest import write_manifest; write_manifest(\"{folder}\")'"
    )


def _unsafe(folder: Path, name: str, links: bool) -> str | None:
    """Why a path must not be opened; None: it may, or nothing is there."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or ":" in parts[0]:
        return f"{name!r} is no path inside the folder"
    place = folder
    for part in parts:
        place = place / part
        if not links and place.is_symlink():
            return f"{name} is a symbolic link, which leads out of what was saved"
    if place.exists() and not stat.S_ISREG(place.stat().st_mode):
        return f"{name} is no regular file"
    return None


def _walk(folder: Path) -> list[str]:
    """Relative paths of all files, three folders deep at most."""
    found: list[str] = []
    for place, folders, names in os.walk(folder):
        inside = Path(place).relative_to(folder)
        folders[:] = [] if len(inside.parts) >= 2 else [f for f in folders if not f.startswith((".", "checkpoint-"))]
        found += [(inside / name).as_posix() for name in names]
    return sorted(found)


def _read_here(folder: Path) -> list[str]:
    return [name for name in _walk(folder) if fits(name, READ_FILES)]


def _digests(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing lets other threads run
        return list(pool.map(lambda name: digest_of_file(folder / name), names))


def digest_of_file(path: Path) -> dict[str, Any]:
    """What a manifest says of a file: {"sha256", "bytes"}."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"sha256": digest, "bytes": file.tell()}


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(facts, allow_nan=False))


def _content(manifest: Manifest) -> dict[str, Any]:
    return {
        "format_version": manifest.format_version,
        "polyrec": manifest.polyrec,
        "files": manifest.files,
        "facts": manifest.facts,
    }


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _to_json(manifest: Manifest) -> str:
    content = _content(manifest)
    return json.dumps({**content, "digest": _digest_of(content)}, indent=1) + "\n"
