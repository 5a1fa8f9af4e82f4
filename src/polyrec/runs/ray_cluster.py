"""The Ray cluster that a job runs on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from polyrec.core.extras import check_extra


@contextmanager
def ray_cluster(address: str | None = None, workers: int | None = None) -> Iterator[int]:
    """Join a cluster, or begin one on this machine for as long as this lasts; yields the number of workers.

    Args:
        address: of the cluster; None: the one that this process uses or Ray finds, or else one on this machine.
        workers: processes, each of one CPU; None: as many as the cluster has CPUs.

    Raises:
        ValueError: Ray is not installed; says how to install it.
    """
    check_extra("ray", "ray", "jobs on a cluster")
    import ray

    started, held = not ray.is_initialized(), signal.getsignal(signal.SIGTERM)
    if started:
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    try:
        yield max(int(ray.cluster_resources().get("CPU", 1)), 1) if workers is None else workers
    finally:
        if started:
            ray.shutdown()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, held)  # Ray leaves its own
