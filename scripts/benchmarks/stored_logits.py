"""Does memory stay bounded when a teacher's answers to many people are written and read?

Synthetic logs of two sizes, each person with `--events` events that are all asked about: a binary task and a list of
`--top-k` items each. The teacher costs next to nothing, so what is measured are the files. Each size runs in a process
of its own; its resident set is compared with what the log itself takes. Pages of mapped files count as resident until
something else needs them, so the memory that a process holds for itself (RssAnon) stands beside it.

    python scripts/benchmarks/stored_logits.py --users 100000 --events 100 --output runs/stored_logits.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import common

ITEMS = 5000


def memory() -> dict[str, float]:
    """MiB of this process: what it holds for itself now, and the peak of its resident set."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    held = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return {"held": held / 1024, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure(users: int, events: int, top_k: int, batches: int, folder: str) -> dict[str, Any]:
    """Write and read the answers to one log."""
    import numpy as np
    import torch

    from polyrec import PolyRecProcessor
    from polyrec.data.collator import PolyRecCollator
    from polyrec.distillation.rows import RowTeacher
    from polyrec.distillation.stored import StoredTeacher, write_outputs

    torch.set_num_threads(1)

    class Cheap(RowTeacher):
        """Answers by arithmetic."""

        pair_tasks, list_tasks, training_rows, revision = ("like",), ("next_item",), (), "cheap"

        def width(self, task: str) -> tuple[int, ...]:
            return (top_k,) if task == "next_item" else ()

        def numbers(self, task: str, dataset: Any, rows: np.ndarray) -> np.ndarray:
            return (rows % 1000) / 100

        def lists(self, task: str, dataset: Any, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
            items = (torch.from_numpy(rows)[:, None] + torch.arange(top_k)) % ITEMS + 2
            return items, torch.linspace(5, -5, top_k + 1).expand(len(rows), top_k + 1)

    random = np.random.default_rng(0)
    user = np.repeat(np.arange(users), events)
    log = {
        "user_id": user,
        "item_id": random.integers(0, ITEMS, len(user)),
        "timestamp": np.tile(np.arange(events), users),
        "like": random.integers(0, 2, len(user)),
    }
    processor = PolyRecProcessor.fit(
        log,
        {"item_id": np.arange(ITEMS)},
        tasks=[{"name": "next_item", "head": "retrieval"}, {"name": "like", "head": "binary"}],
        max_history=events,
        statistics=False,
    )
    data = processor.split(log, fractions=(1, 0, 0)).train
    del log, user
    teacher = Cheap(processor, top_k=top_k)
    teacher.prepare(data, processor)
    found: dict[str, Any] = {"candidates": data.num_candidates, "log": memory()}
    begin = time.perf_counter()
    write_outputs(teacher, data, processor, folder, batch_size=64, progress=True)
    found |= {"write_seconds": time.perf_counter() - begin, "written": memory()}
    found["mebibytes_on_disk"] = sum(f.stat().st_size for f in Path(folder).iterdir()) / 2**20
    begin = time.perf_counter()
    stored = StoredTeacher(folder)
    stored.prepare(data, processor)
    found |= {"open_seconds": time.perf_counter() - begin, "opened": memory()}
    data, seconds = data.fixed(), 0.0
    for _ in range(batches):
        batch = PolyRecCollator()([data[i] for i in random.integers(0, len(data), 64)])
        begin = time.perf_counter()
        answers = stored.score(batch)
        seconds += time.perf_counter() - begin
        rows = batch["candidate_rows"]
        assert torch.allclose(answers["teacher_logits"]["like"][rows >= 0], (rows[rows >= 0] % 1000) / 100, atol=0.01)
    found |= {"read_candidates_per_second": batches * 64 * events / seconds, "read": memory()}
    return found


def main() -> None:
    """Measure both sizes and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000, help="of the larger log (default: %(default)s)")
    parser.add_argument("--events", type=int, default=100, help="of each person (default: %(default)s)")
    parser.add_argument("--top-k", type=int, default=100, help="items per list (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=200, help="of 64 people, to read (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON to write")
    parser.add_argument("--folder", help="for the answers, which are deleted (default: a temporary one)")
    args = parser.parse_args()
    report: dict[str, Any] = {
        "environment": common.environment(1),
        "settings": vars(args) | {"output": str(args.output)},
    }
    for users in (args.users // 10, args.users):
        with (
            tempfile.TemporaryDirectory(dir=args.folder) as folder,
            ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
        ):
            found = pool.submit(measure, users, args.events, args.top_k, args.batches, folder).result()
        report[str(users)] = found
        print(json.dumps({str(users): found}, indent=2))
    small, large = report[str(args.users // 10)], report[str(args.users)]
    # What the files need beyond the log, which is in memory anyway.
    report["beyond_the_log_mib"] = {
        str(users): {step: found[step]["held"] - found["log"]["held"] for step in ("written", "opened", "read")}
        for users, found in ((args.users // 10, small), (args.users, large))
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report["beyond_the_log_mib"], indent=2))


if __name__ == "__main__":
    main()
