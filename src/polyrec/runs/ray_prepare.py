"""`polyrec prepare --engine ray`: running statistics counted by the processes of a Ray cluster.

Ray Data hands out the numbers of blocks (or of statistics, for a scan). The arrays of the log and what is known of its
blocks are files of a folder that all machines see; through Ray go the numbers and, once per step, the encoded
attributes of items and users. What a process did that died is done again by another one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np

from polyrec.data.storage import Engine, Step
from polyrec.runs.ray_cluster import ray_cluster


@contextmanager
def ray_engine(workers: int | None = None, address: str | None = None) -> Iterator[Engine]:
    """The engine of `PolyRecProcessor.split` that shares blocks among the processes of a Ray cluster.

    Args:
        workers, address: of `polyrec.runs.ray_cluster.ray_cluster`.

    Raises:
        ValueError: Ray is not installed; says how to install it.
    """
    with ray_cluster(address, workers) as most, _quiet():
        import ray

        def engine(step: Step, number: int) -> Iterable[object]:
            held = ray.put(step)

            def work(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
                own = ray.get(held)
                for n in batch["number"].tolist():
                    own(n)
                return batch

            numbers = [{"number": n} for n in range(number)]
            tasks = ray.data.TaskPoolStrategy(size=min(most, number))
            jobs = ray.data.from_items(numbers, override_num_blocks=number)
            return jobs.map_batches(work, batch_size=1, num_cpus=1, compute=tasks).iter_rows()

        yield engine


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data would print bars and plans for each of a dozen steps, which have bars of their own."""
    import ray

    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, log.level
    context.enable_progress_bars = False
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        log.setLevel(before[1])
