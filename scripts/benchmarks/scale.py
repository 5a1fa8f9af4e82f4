"""How much memory and time big logs take: `polyrec prepare`, by the number of events.

    python scripts/benchmarks/scale.py --events 1000000 10000000 --folder runs/scale

Events are made up: items by Zipf's law, times over a year, ratings with a bias for each user and item. Each size runs
in a process of its own, which reports its CPU seconds, wall seconds until the first batch, and the peak of its memory:
of its own pages ("anonymous"), and with those of files that it has mapped ("resident"), which the system takes back
when others need memory. `--limit 2.5` refuses a process more GiB than that, files it maps and writes included
(cgroups, as root). Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

USERS, ITEMS, BLOCK = 100_000, 200_000, 1_000_000
_YEAR = 365 * 86400
TASKS = [
    {"name": "next_item", "head": "retrieval"},
    {"name": "like", "head": "binary", "label": "rating >= 4"},
    {"name": "rating", "head": "regression"},
]


def make_log(path: Path, events: int, users: int = USERS, items: int = ITEMS, seed: int = 0) -> None:
    """Write a log as parquet, block by block."""
    random = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, items + 1)
    below = np.cumsum(popularity / popularity.sum())
    item_bias, user_bias = random.normal(0, 0.5, items), random.normal(0, 0.5, users)
    with pq.ParquetWriter(path, pa.schema(list(zip(_NAMES, _TYPES, strict=True)))) as writer:
        for begin in range(0, events, BLOCK):
            size = min(BLOCK, events - begin)
            user = (users * random.random(size) ** 1.5).astype(np.int64)
            item = np.minimum(np.searchsorted(below, random.random(size)), items - 1)
            rating = np.clip(np.rint(3.6 + item_bias[item] + user_bias[user] + random.normal(0, 0.8, size)), 1, 5)
            columns = user, item, random.integers(0, _YEAR, size) + 1_600_000_000, rating.astype(np.float32)
            writer.write_table(pa.table(dict(zip(_NAMES, columns, strict=True))))


_NAMES = "user_id", "item_id", "timestamp", "rating"
_TYPES = pa.int64(), pa.int64(), pa.int64(), pa.float32()


def make_items(path: Path, items: int = ITEMS, seed: int = 0) -> None:
    """Write a catalog with a category and a price."""
    random = np.random.default_rng(seed)
    table = {
        "item_id": np.arange(items),
        "genre": np.char.add("g", random.integers(0, 20, items).astype(str)),
        "price": np.round(np.exp(random.normal(2, 1, items)), 2),
    }
    pq.write_table(pa.table(table), path)


class Peak(threading.Thread):
    """Watches the memory of this process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous, self.phases, self.phase = 0, dict[str, int](), "import"

    def run(self) -> None:
        while True:
            with open("/proc/self/status") as file:
                found = next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))
            self.anonymous = max(self.anonymous, found)
            self.phases[self.phase] = max(self.phases.get(self.phase, 0), found)
            time.sleep(0.02)


def prepare(log: Path, items: Path, cache: Path | None) -> dict[str, Any]:
    """Read, count and cut a log, make its first batch, and find all of it again; what it took, phase by phase.

    Args:
        cache: folder of the arrays; None: in memory.
    """
    peak = Peak()
    peak.start()
    from polyrec import PolyRecCollator, PolyRecProcessor

    begin, cpu = time.perf_counter(), time.process_time()
    seconds: dict[str, float] = {}

    def phase(name: str, before: float = 0.0) -> None:
        seconds[peak.phase] = time.process_time() - cpu - sum(seconds.values())
        peak.phase = name

    phase("fit")
    processor = PolyRecProcessor.fit(log, items, tasks=TASKS, verbose=False, cache_dir=cache)
    phase("split")
    parts = processor.split(log, cache_dir=cache)
    phase("batch")
    batch = PolyRecCollator()(parts.train.__getitems__(list(range(32))))
    first, used = time.perf_counter() - begin, time.process_time() - cpu
    if cache is not None:
        phase("again")
        processor.load_split(cache)
    phase("end")
    return {
        "windows": len(parts.train),
        "batch": list(batch["item_ids"].shape),
        "cpu_s": round(used, 1),
        "cpu_s_by_phase": {name: round(value, 1) for name, value in seconds.items()},
        "first_batch_s": round(first, 1),
        "anonymous_gib": round(peak.anonymous / 2**20, 2),
        "anonymous_gib_by_phase": {name: round(value / 2**20, 2) for name, value in peak.phases.items()},
        "resident_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def limited(command: list[str], gib: float | None) -> dict[str, Any]:
    """The JSON that a process prints, which may take no more memory than that."""
    into = None
    if gib is not None:
        group = Path("/sys/fs/cgroup/memory/polyrec_scale")
        with suppress(FileExistsError):
            group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(int(gib * 2**30)))

        def into() -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    done = subprocess.run(command, stdout=subprocess.PIPE, preexec_fn=into, text=True)
    if done.returncode:
        return {"failed": done.returncode}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--folder", type=Path, default=Path("runs/scale"), help="where logs are made and kept")
    parser.add_argument("--limit", type=float, help="GiB that a process may take, mapped files included")
    parser.add_argument("--in-memory", action="store_true", help="no files, as for small logs")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    items = given.folder / "items.parquet"
    if given.one is not None:
        with tempfile.TemporaryDirectory(dir=given.folder) as cache:
            print(json.dumps(prepare(given.one, items, None if given.in_memory else Path(cache))))
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    if not items.exists():
        make_items(items)
    found = {}
    for events in given.events:
        log = given.folder / f"{events}.parquet"
        if not log.exists():
            make_log(log, events)
        command = [sys.executable, __file__, "--folder", str(given.folder), "--one", str(log)]
        command += ["--in-memory"] * given.in_memory
        found[events] = limited(command, given.limit)
        print(json.dumps({events: found[events]}), file=sys.stderr, flush=True)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
