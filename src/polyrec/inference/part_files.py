"""The output of a long job in parts: each is written once, and a job that was stopped goes on with the missing ones."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polyrec.core.files import replacing, write_atomically

JOB_FILE = "job.json"
_PATIENCE = 600.0  # seconds that other processes wait for the first one


def part_of(ids: Sequence[Any], parts: int) -> np.ndarray:
    """The part that each id belongs to, int64, 0..parts - 1; it depends on the id alone.

    Example:
        >>> part_of(["ann", "bob", "ann"], 1000).tolist()
        [957, 812, 957]
    """
    digests = (hashlib.blake2b(str(own).encode(), digest_size=8).digest() for own in ids)
    hashes = np.frombuffer(b"".join(digests), dtype="<u8")
    return (hashes % np.uint64(parts)).astype(np.int64)


@dataclass(frozen=True)
class PartFiles:
    """part-00000.parquet, part-00001.parquet ... in a folder, and job.json, which says what they are made of.

    Args:
        folder: is made if there is none.
        job: what decides what the parts hold, in JSON's types, `parts` (their number) among it.
    """

    folder: Path
    job: Mapping[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> PartFiles:
        """Those of a job that has begun."""
        return cls(Path(folder), json.loads((Path(folder) / JOB_FILE).read_text(encoding="utf-8")))

    def open(self, overwrite: bool = False, first: bool = True) -> None:
        """Begin, or go on.

        Args:
            overwrite: delete the parts of another job.
            first: this process begins the job, and others wait for it.

        Raises:
            ValueError: the folder holds parts of another job; says in what it differs.
        """
        path = self.folder / JOB_FILE
        if not first:
            self._wait(path)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
            wrong = [name for name in {**known, **self.job} if known.get(name) != self.job.get(name)]
            if not wrong:
                return
            if not overwrite:
                raise ValueError(
                    f"{self.folder} holds the parts of another job ({', '.join(sorted(wrong))} differ): choose another "
                    "folder, or overwrite it"
                )
        for stale in self.folder.glob("part-*.parquet"):
            if not overwrite:
                raise ValueError(f"{stale} is there, but no {JOB_FILE} says what of: choose another folder")
            stale.unlink()
        write_atomically(path, json.dumps(self.job, indent=2, sort_keys=True) + "\n")

    def _wait(self, path: Path) -> None:
        until = time.monotonic() + _PATIENCE
        while not path.exists() or json.loads(path.read_text(encoding="utf-8")) != self.job:
            if time.monotonic() > until:
                raise TimeoutError(f"the first process has not begun the job within {_PATIENCE:.0f} seconds: {path}")
            time.sleep(0.1)

    def path(self, part: int) -> Path:
        """Of one part's file."""
        return self.folder / f"part-{part:05d}.parquet"

    def waiting(self, rank: int = 0, world: int = 1) -> list[int]:
        """Parts that this process (`rank` of `world`) has still to write."""
        return [part for part in range(rank, self.job["parts"], world) if not self.path(part).exists()]

    def write(self, part: int, table: pa.Table) -> None:
        """Write one part; it is there as a whole or not at all."""
        with replacing(self.path(part)) as draft:
            pq.write_table(table, draft)
