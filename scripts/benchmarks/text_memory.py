"""Does memory stay bounded when a text encoder is tuned on a large catalog?

Catalogs of synthetic titles of two sizes, the same people and batches; all layers of the encoder are tuned for some
steps, with the items of the batch as negatives. The peak of the process (resident set) is compared; each size runs in a
process of its own.

    python scripts/benchmarks/text_memory.py --model .models/all-MiniLM-L6-v2 --output runs/text_memory.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import common

WORDS = (
    "night day city river love war dark light star house king queen last first lost blue red green winter summer man "
    "woman child dream road home world time life death story letter garden stone water fire wind moon sun"
)
USERS, EVENTS = 256, 40


def peak(model: str, items: int, steps: int, threads: int) -> float:
    """Peak resident set in MiB of a process that tunes on a catalog of `items`."""
    import numpy as np
    import torch

    from polyrec import PolyRecForRecommendation, PolyRecProcessor, PolyRecTrainer, PolyRecTrainingArguments

    torch.set_num_threads(threads)
    random = np.random.default_rng(0)
    words = WORDS.split()
    titles = [" ".join(random.choice(words, random.integers(3, 9))) for _ in range(items)]
    user = np.repeat(np.arange(USERS), EVENTS)
    log = {"user_id": user, "item_id": random.integers(0, items, len(user)), "timestamp": np.arange(len(user))}
    processor = PolyRecProcessor.fit(
        log,
        {"item_id": np.arange(items), "title": titles},
        tasks=[{"name": "next_item", "head": "retrieval"}],
        columns={"item_features": {"title": "text"}},
        statistics=False,
        text={"model": model, "template": "{title}", "max_length": 32},
    )
    data = processor.split(log, by="leave_one_out")
    network = PolyRecForRecommendation(
        processor.model_config(
            hidden_size=64, text={"tuning": "full", "catalog_negatives": False, "chunk_tokens": 4096}
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = PolyRecTrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
        )
        PolyRecTrainer(network, arguments, data.train, processing_class=processor).train()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure both sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a text encoder: its folder, or its name on the Hub")
    parser.add_argument("--items", type=int, nargs=2, default=(10_000, 100_000), help="(default: 10000 100000)")
    parser.add_argument("--steps", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    for name in common.THREAD_VARIABLES:
        os.environ[name] = str(args.threads)
    found = {}
    for size in args.items:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found[size] = pool.submit(peak, args.model, size, args.steps, args.threads).result()
        print(f"{size:,} items: {found[size]:,.0f} MiB", flush=True)
    small, large = args.items
    ratio = found[large] / found[small]
    print(f"ratio {ratio:.2f} (bound: 1.5)")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    content = {"peak_mib": found, "ratio": ratio, "environment": common.environment(args.threads)}
    args.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
