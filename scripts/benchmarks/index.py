"""Exact search against an inverted file: latency of a query and recall, by size and share of allowed items.

    python scripts/benchmarks/index.py                       # 10k, 100k, 500k and 1M items of 64 numbers
    python scripts/benchmarks/index.py --sizes 200000 --output index.json

Items are drawn around centres, with lengths and biases that differ as those of popular and rare items do; queries lie
near items. Filters allow items at random, or (`side`) those of one side of a plane, which lie together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from polyrec.inference.index import ExactIndex, InvertedIndex

K, WIDTH = 100, 64
SHARES = (1.0, 0.5, 0.25, 0.1, 0.01, 0.001)


def catalog(items: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and biases."""
    centres = random.normal(size=(1000, WIDTH)).astype(np.float32)
    vectors = centres[random.integers(0, len(centres), items)]
    vectors += random.normal(size=vectors.shape).astype(np.float32)
    popularity = random.pareto(1.2, items).astype(np.float32)
    return vectors * (0.7 + 0.1 * np.log1p(popularity))[:, None] / 8, 0.3 * np.log1p(popularity)


def queries_near(vectors: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Vectors of items, moved."""
    near = vectors[random.integers(0, len(vectors), count)]
    return 8 * (near + 0.5 * near.std() * random.normal(size=near.shape)).astype(np.float32)


def median_ms(search: Callable[[np.ndarray], Any], queries: np.ndarray) -> float:
    """Of one query at a time."""
    found = []
    for query in queries:
        begin = time.perf_counter()
        search(query[None])
        found.append(time.perf_counter() - begin)
    return 1000 * statistics.median(found)


def measured(items: int, count: int) -> Iterator[dict[str, Any]]:
    """Rows of the report for one size."""
    random = np.random.default_rng(0)
    vectors, bias = catalog(items, random)
    exact = ExactIndex(vectors, bias)
    begin = time.perf_counter()
    inverted = InvertedIndex(vectors, bias, queries_near(vectors, 128, random), threads=1)
    built = time.perf_counter() - begin
    queries, plane = queries_near(vectors, count, random), vectors @ random.normal(size=WIDTH).astype(np.float32)
    for share in SHARES:
        for kind in ("random", "side") if share < 1 else ("all",):
            allowed = None
            if kind != "all":
                chance = random.random(items) if kind == "random" else plane
                allowed = chance <= np.quantile(chance, share)
            best, found = (index.search(queries, K, allowed).rows for index in (exact, inverted))
            hits = [np.isin(a[a >= 0], b).mean() for a, b in zip(best, found, strict=True)]
            times = [median_ms(lambda q, i=index, a=allowed: i.search(q, K, a), queries) for index in (exact, inverted)]
            yield {"items": items, "allowed": share, "filter": kind, "exact_ms": times[0], "inverted_ms": times[1],
                   "recall": float(np.mean(hits)), "built_s": built}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 500_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--output", metavar="FILE")
    options = parser.parse_args()
    rows = []
    names = ("items", "allowed", "filter", "exact, ms", "inverted, ms", "recall@100", "built, s")
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for items in options.sizes:
        for row in measured(items, options.queries):
            rows.append(row)
            print(
                f"| {items:,} | {row['allowed']:.1%} | {row['filter']} | {row['exact_ms']:.2f} | "
                f"{row['inverted_ms']:.2f} | {row['recall']:.4f} | {row['built_s']:.1f} |",
                flush=True,
            )
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
