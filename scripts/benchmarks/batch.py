"""How fast `recommend_all` is: beside a loop of `recommend`, beside the bare forward, by number of users, and killed.

    python scripts/benchmarks/batch.py --users 100000 --items 20000     # made-up events, a model of default size
    python scripts/benchmarks/batch.py --run runs/demo                  # a trained run and its log

The forward is timed on collated batches of the same users with 200 candidates each and a warm item table, in turns
with parts of the job. Weights of made-up models are random: no figure here depends on them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from polyrec import PolyRecForRecommendation, PolyRecProcessor, Recommender
from polyrec.models.batches import as_batch
from polyrec.runs.whole_log import distinct, recommender_of_run

CANDIDATES, K, LOOP = 200, 20, 200


def made_up(users: int, items: int, per_user: int, seed: int = 0) -> tuple[Recommender, list[Any]]:
    """A model of default size with random weights, over events of a long-tailed catalog."""
    random = np.random.default_rng(seed)
    events = users * per_user
    item = np.minimum((items * random.random(events) ** 2).astype(np.int64), items - 1)
    table = pa.table(
        {
            "user_id": random.permutation(np.repeat(np.arange(users), per_user)),
            "item_id": item,
            "timestamp": np.sort(random.integers(1.6e9, 1.7e9, events)),
            "rating": random.integers(1, 6, events).astype(float),
        }
    )
    tasks = [
        {"name": "next_item", "head": "retrieval"},
        {"name": "like", "head": "binary", "label": "rating >= 4"},
        {"name": "rating", "head": "regression"},
    ]
    catalog = pa.table({"item_id": np.arange(items), "genre": random.integers(0, 20, items).astype(str)})
    processor = PolyRecProcessor.fit(table, catalog, tasks=tasks, max_history=64, verbose=False)
    processor.split(table)
    torch.manual_seed(seed)
    model = PolyRecForRecommendation(processor.model_config()).eval()
    processor.resume(table)
    return Recommender(model, processor), distinct(table, "user_id")


def forward_seconds(recommender: Recommender, users: list[Any]) -> float:
    """Seconds of the model alone for some users: states and `CANDIDATES` pairs each, items encoded before."""
    random, rows = np.random.default_rng(1), recommender.processor.num_items
    found = 0.0
    for first in range(0, len(users), recommender.batch_size):
        own = users[first : first + recommender.batch_size]
        items = [random.integers(2, rows, CANDIDATES) for _ in own]
        batch = as_batch(recommender.processor.request_many([{"user_id": i} for i in own], items), recommender.model)
        begin = time.perf_counter()
        with torch.no_grad(), recommender.model.eval_mode() as model:
            model(batch, items=recommender.items)
        found += time.perf_counter() - begin
    return found


def speed(recommender: Recommender, users: list[Any], folder: Path, rounds: int = 5) -> dict[str, float]:
    """Users per second of the job, of the forward and of a loop, in turns; medians of the rounds."""
    random, found = np.random.default_rng(2), []
    for n in range(rounds):
        some = [users[i] for i in random.choice(len(users), min(2048, len(users)), replace=False)]
        begin = time.perf_counter()
        recommender.recommend_all(some, folder / f"round{n}", K, progress=False)
        job = len(some) / (time.perf_counter() - begin)
        few = some[: 8 * recommender.batch_size]
        forward = len(few) / forward_seconds(recommender, few)
        begin = time.perf_counter()
        for user in some[: LOOP // rounds]:
            recommender.model.recommend(recommender.processor, user_id=user, k=K)
        found.append((job, forward, (LOOP // rounds) / (time.perf_counter() - begin)))
    job, forward, loop = np.median(np.array(found), axis=0)
    return {
        "users_per_s": job,
        "forward_users_per_s": forward,
        "loop_users_per_s": loop,
        "to_forward": float(np.median([j / f for j, f, _ in found])),
        "to_loop": float(np.median([j / own for j, _, own in found])),
    }


def memory(recommender: Recommender, users: list[Any], folder: Path) -> dict[str, float]:
    """Peak memory after a tenth of the users and after all, MiB; it never falls, so that the ratio is >= 1."""
    recommender.recommend_all(users[: len(users) // 10], folder / "tenth", K, progress=False)
    tenth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begin = time.perf_counter()
    recommender.recommend_all(users, folder / "all", K, progress=False)
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"tenth_MiB": tenth, "all_MiB": whole, "ratio": whole / tenth, "all_s": time.perf_counter() - begin}


def killed(run: Path, events: Path, folder: Path, kills: int = 5) -> dict[str, Any]:
    """Kill -9 at random times until the job is done; are the files those of a job that was left alone?"""
    random, times = np.random.default_rng(3), 0
    command = [sys.executable, "-m", "polyrec", "recommend-all", str(run), "--events", str(events)]
    command += ["-k", str(K), "--users-per-file", "40", "-o"]
    begin = time.perf_counter()
    subprocess.run([*command, str(folder / "alone")], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    while times < kills:
        process = subprocess.Popen(
            [*command, str(folder / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(seconds * random.uniform(0.5, 1.0))
            break
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            times += 1
    subprocess.run([*command, str(folder / "killed")], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    one, two = ({p.name: p.read_bytes() for p in (folder / n).glob("part-*")} for n in ("alone", "killed"))
    return {"kills": times, "files": len(one), "identical": one == two}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a trained run, whose log lies where its recipe says (or --events)")
    parser.add_argument("--events", type=Path, help="the log of --run")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--per-user", type=int, default=20, help="events of a user")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.run is None:
            recommender, users = made_up(options.users, options.items, options.per_user)
        else:
            recommender, users = recommender_of_run(options.run, options.events)
        found: dict[str, Any] = {"users": len(users), "items": recommender.processor.num_items - 2}
        found |= speed(recommender, users, folder) | {"memory": memory(recommender, users, folder)}
        if options.run is not None and options.events is not None:
            found["killed"] = killed(options.run, options.events, folder)
    print(json.dumps(found, indent=2))
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
