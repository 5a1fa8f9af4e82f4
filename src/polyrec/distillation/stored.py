"""Outputs of a teacher in files: written once in shards, read memory-mapped.

A folder holds `manifest.json`, `training_rows.N.safetensors` (what the teacher was trained on) and
`shard-NNNNN.safetensors`.

Letters: S rows of a shard, A lists of it, K numbers of an output or items of a list.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm

from polyrec.core.files import replacing, write_atomically
from polyrec.core.lock import locked
from polyrec.data.sequences import SequenceDataset
from polyrec.data.training_rows import TrainingSetSketch
from polyrec.distillation.output_table import ListOutputs, OutputSource, OutputTable
from polyrec.distillation.table import TableTeacher, score_windows
from polyrec.distillation.teacher import Teacher
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor

FORMAT_VERSION = 1
MANIFEST, ROWS = "manifest.json", "training_rows.{}.safetensors"
_SOURCE = ("revision", "processor", "items", "data", "tasks", "top_k", "temperatures")
_NUMBERS = ("regression", "watch_time", "quantile")  # in the label's unit, which half precision may not hold
_DTYPES = {"F16": np.float16, "F32": np.float32, "I32": np.int32, "I64": np.int64, "BOOL": np.bool_}


class StoredError(ValueError):
    """Stored outputs are damaged, incomplete, or those of another teacher or other data."""


@dataclass
class Shard:
    """A file of outputs.

    Args:
        name: of the file.
        rows: candidates in it.
        size, sha256: of the file.
        unanswered: {pair task: candidates without an answer}.
    """

    name: str
    rows: int
    size: int
    sha256: str
    unanswered: dict[str, int]


def write_outputs(
    teacher: Teacher,
    dataset: SequenceDataset,
    processor: PolyRecProcessor,
    folder: str | Path,
    shard_rows: int = 100_000,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: bool = False,
    unlabelled: int = 0,
) -> Path:
    """Score a data set with a prepared teacher and write its outputs; go on where an interrupted run stopped.

    Memory holds one shard. A shard is written beside its place, flushed to disk and then put there, and only then the
    manifest names it: what is interrupted leaves whole shards. Logits and scores are of half precision, numbers in the
    label's unit of single precision; lists are kept for the positives.

    Args:
        teacher: prepared for `dataset`.
        folder: a new one, or one that an interrupted run of the same teacher about the same data has left.
        shard_rows: candidates of a shard, about.
        device: that batches are put on.
        unlabelled: items drawn beside each candidate, which pair tasks score, too, for
            `distillation.unlabelled`.

    Raises:
        StoredError: the folder holds outputs of another teacher or for other data.
        Locked: another process writes the folder.
        ValueError: the teacher's outputs are no numbers.
    """
    folder, dataset = Path(folder), dataset.fixed()
    spans = dataset.spans(np.arange(len(dataset)))
    # Windows belong to the shard in which their first candidate lies.
    groups = np.split(np.arange(len(dataset)), np.flatnonzero(np.diff(spans.first_candidate // shard_rows)) + 1)
    source = OutputSource.of(teacher, dataset, processor)
    counts = {"windows": len(dataset), "candidates": dataset.num_candidates, "unlabelled": unlabelled}
    about = _about(source) | {"shards": len(groups)} | counts
    half = [task for task in teacher.pair_tasks if source.tasks[task]["head"] not in _NUMBERS]
    bar = tqdm(total=len(dataset), desc="Scoring", unit="window", disable=None if progress else True)
    with locked(folder.resolve()), bar:
        done = _claim(folder, about, source.training_rows)
        for number, windows in enumerate(groups):
            name = f"shard-{number:05d}.safetensors"
            if name in done and _whole(folder, done[name]):
                bar.update(len(windows))
                continue
            table = score_windows(teacher, dataset, processor, windows, batch_size, device, unlabelled, bar.update)
            done[name] = _write(folder, name, table, half)
            _write_manifest(folder, about | {"written": [asdict(done[n]) for n in sorted(done)]})
    return folder


class StoredTeacher(TableTeacher):
    """Outputs of a folder that [`write_outputs`] or `polyrec score` has written, memory-mapped.

    The teacher need not be there any more, nor fit the student's inputs: only the interactions, the catalog
    and the examples must be the same. What the teacher was trained on is in the folder, and is checked as for any
    other.

    Args:
        folder: where the outputs are.
        revision: of the teacher that is expected, e.g. `teacher.revision`; None: any.
        verify: compare each file with its checksum first, which reads all of it once.
        missing, trust: see [`TableTeacher`].

    Raises:
        StoredError: a shard is missing, cut off or damaged, or of another teacher; says what to do.

    Example:
        >>> teacher = StoredTeacher("logits/")              # doctest: +SKIP
        >>> teacher.prepare(parts.train, processor)         # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | Path,
        revision: str | None = None,
        verify: bool = True,
        missing: str = "refuse",
        trust: bool = False,
    ) -> None:
        self.folder = Path(folder)
        manifest = _read_manifest(self.folder)
        written = {shard["name"]: Shard(**shard) for shard in manifest["written"]}
        if len(written) < manifest["shards"]:
            raise StoredError(
                f"{folder} holds {len(written)} of {manifest['shards']} shards: scoring was interrupted; run the same "
                "`polyrec score` again, it goes on from there"
            )
        if revision is not None and revision != manifest["revision"]:
            raise StoredError(
                f"{folder} holds outputs of the teacher {manifest['revision'][:12]}, not of {revision[:12]}: its "
                "weights have changed since; score again into another folder"
            )
        for shard in written.values():
            _check_whole(self.folder, shard, verify)
        for name, sha256 in manifest.get("rows", {}).items():  # folders of earlier versions do not say
            if (self.folder / name).exists() and _sha256(self.folder / name) != sha256:  # without it, the guard refuses
                raise StoredError(f"{self.folder / name} is damaged: delete the folder and score again")
        rows = [_read_rows(self.folder / ROWS.format(n)) for n in range(manifest["teachers"])]
        source = OutputSource(**{name: manifest[name] for name in _SOURCE}, training_rows=tuple(rows))
        self._maps = [_Mapped(self.folder / name) for name in sorted(written)]
        super().__init__([mapped.table for mapped in self._maps], source, missing, trust)

    def score(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Look a batch up, see [`Teacher`], and give back the pages that were read."""
        found = super().score(batch)
        for mapped in self._maps:
            mapped.release()
        return found


class _Mapped:
    """A shard whose arrays lie in its file: pages are read when they are needed."""

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            self._pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if sys.platform != "win32":  # which takes no advice
            self._pages.madvise(mmap.MADV_RANDOM)  # else much more is read than a batch needs
        arrays = {}
        for key, entry in header.items():
            if key != "__metadata__":
                begin, dtype = 8 + length + entry["data_offsets"][0], _DTYPES[entry["dtype"]]
                arrays[key] = np.frombuffer(self._pages, dtype, math.prod(entry["shape"]), begin).reshape(
                    entry["shape"]
                )
        tasks = [key.removeprefix("at/") for key in arrays if key.startswith("at/")]
        self.table = OutputTable(
            arrays["row"],
            arrays["delayed"],
            arrays["position"],
            {key.removeprefix("numbers/"): values for key, values in arrays.items() if key.startswith("numbers/")},
            {t: ListOutputs(arrays[f"at/{t}"], arrays[f"items/{t}"], arrays[f"scores/{t}"]) for t in tasks},
            arrays.get("drawn"),
            {key.removeprefix("drawn/"): values for key, values in arrays.items() if key.startswith("drawn/")},
        )

    def release(self) -> None:
        """Give pages back: a row of some hundred bytes may have made megabytes resident."""
        if sys.platform != "win32":
            self._pages.madvise(mmap.MADV_DONTNEED)


def _about(source: OutputSource) -> dict[str, Any]:
    """What a manifest says of the source, in values of JSON."""
    found = {
        "format_version": FORMAT_VERSION,
        **{name: getattr(source, name) for name in _SOURCE},
        "teachers": len(source.training_rows),
    }
    return json.loads(json.dumps(found))


def _claim(
    folder: Path, about: Mapping[str, Any], trained_on: tuple[TrainingSetSketch | None, ...]
) -> dict[str, Shard]:
    """Make the folder this teacher's, or find which shards of it are there."""
    if not (folder / MANIFEST).exists():
        folder.mkdir(parents=True, exist_ok=True)
        for number, rows in enumerate(trained_on):
            if rows is not None:
                with replacing(folder / ROWS.format(number)) as draft:
                    save_file(rows.arrays(), draft)
        _write_manifest(folder, {**about, "written": []})
        return {}
    held = _read_manifest(folder)
    different = [name for name in about if held.get(name) != about[name]]
    if different:
        raise StoredError(
            f"{folder} holds outputs of another teacher or for other data, they differ in {', '.join(different)}: "
            "choose another --output, or delete that folder"
        )
    return {shard["name"]: Shard(**shard) for shard in held["written"]}


def _write(folder: Path, name: str, table: OutputTable, half: list[str]) -> Shard:
    """Write a shard whole beside its place, then put it there."""
    arrays = {"row": table.row, "delayed": table.delayed, "position": table.position.astype(np.int32)}
    for task, values in table.numbers.items():
        arrays[f"numbers/{task}"] = _halved(values) if task in half else values
    if table.drawn is not None:
        arrays["drawn"] = table.drawn
        arrays |= {f"drawn/{t}": _halved(v) if t in half else v for t, v in table.drawn_numbers.items()}
    for task, lists in table.lists.items():
        arrays |= {f"at/{task}": lists.at, f"items/{task}": lists.items, f"scores/{task}": _halved(lists.scores)}
    with replacing(folder / name) as draft:
        save_file({key: np.ascontiguousarray(values) for key, values in arrays.items()}, draft)
        with open(draft, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = draft.stat().st_size
    unanswered = {
        task: int(np.isnan(values.reshape(len(table), -1)).any(1).sum()) for task, values in table.numbers.items()
    }
    return Shard(name, len(table), size, sha256, unanswered)


def _halved(values: np.ndarray) -> np.ndarray:
    """Numbers of half precision; those beyond its range become its largest, infinite ones stay so."""
    largest = np.finfo(np.float16).max
    return np.where(np.isfinite(values), np.clip(values, -largest, largest), values).astype(np.float16)


def _whole(folder: Path, shard: Shard) -> bool:
    try:
        _check_whole(folder, shard, verify=True)
    except StoredError:
        return False
    return True


def _check_whole(folder: Path, shard: Shard, verify: bool) -> None:
    """Refuse a shard that is missing, cut off or changed."""
    path, again = folder / shard.name, "run the same `polyrec score` again, it writes that shard anew"
    if not path.exists():
        raise StoredError(f"{path} is missing: {again}")
    if path.stat().st_size != shard.size:
        raise StoredError(
            f"{path} has {path.stat().st_size} bytes, not {shard.size}: it is cut off or damaged; {again}"
        )
    if verify:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != shard.sha256:
            raise StoredError(f"{path} does not have the checksum it was written with: it is damaged; {again}")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoredError(f"{folder} has no {MANIFEST}: it is not a folder written by `polyrec score`") from None
    except (ValueError, RecursionError) as error:
        raise StoredError(f"{path} is damaged ({error}): delete the folder and score again") from error
    if not isinstance(found, dict) or "written" not in found:
        raise StoredError(f"{path} is not that of a folder written by `polyrec score`")
    digest = found.pop("digest", None)  # folders of earlier versions have none
    if digest is not None and digest != _digest(found):
        raise StoredError(f"{path} is damaged (it does not fit its own digest): delete the folder and score again")
    if found.get("format_version", 0) > FORMAT_VERSION:
        raise StoredError(f"{path} has format {found['format_version']}, newer than {FORMAT_VERSION}: update polyrec")
    return found


def _read_rows(path: Path) -> TrainingSetSketch | None:
    return TrainingSetSketch.from_arrays(load_file(path)) if path.exists() else None


def _write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    """Write what is in the folder, with digests of what the teacher was trained on: by these a leak is found."""
    held = _read_manifest(folder).get("rows") if (folder / MANIFEST).exists() else None
    rows = {p.name: _sha256(p) for p in sorted(folder.glob(ROWS.format("*")))} if held is None else held
    plain = json.loads(json.dumps({**values, "rows": rows}))
    about = json.dumps({**plain, "digest": _digest(plain)}, indent=2)
    write_atomically(folder / MANIFEST, about + "\n")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
