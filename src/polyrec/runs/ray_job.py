"""`polyrec recommend-all --ray`: one job on the processes and machines of a Ray cluster.

Ray Data hands out the numbers of the files that are to be written. A process that dies is replaced, and its files are
written by another one; each file is there as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyrec.core.extras import check_extra
from polyrec.inference.catalog_index import IndexKind
from polyrec.inference.part_files import PartFiles
from polyrec.runs.ray_cluster import ray_cluster
from polyrec.runs.whole_log import recommender_of_run


class PartWriter:
    """What each process does: it loads the run once, and writes files by their numbers.

    Args:
        run, events, batch_size, index: of `recommender_of_run`.
        users, folder, options: of `Recommender.recommend_all`.
    """

    def __init__(
        self,
        run: str,
        events: Any,
        batch_size: int,
        index: IndexKind,
        users: Sequence[Any],
        folder: str,
        options: dict[str, Any],
    ) -> None:
        self.recommender, _ = recommender_of_run(run, events, batch_size, index)
        self.users, self.folder, self.options = users, folder, options

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Write some files."""
        only = batch["part"].tolist()
        self.recommender.recommend_all(self.users, self.folder, only=only, progress=False, **self.options)
        return batch


def recommend_all_on_ray(
    run: str | Path,
    folder: str | Path,
    events: Any = None,
    users: Sequence[Any] | None = None,
    *,
    batch_size: int = 64,
    index: IndexKind = "exact",
    workers: int | None = None,
    address: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """[`recommend_all`][polyrec.inference.recommender.Recommender.recommend_all] of a run by a Ray cluster.

    Args:
        run, events: paths that all machines see, as `folder` is; see `recommender_of_run`.
        users: ids; None: all of the log.
        batch_size, index: of `recommender_of_run`.
        workers, address: of `ray_cluster`.
        overwrite, options: of `recommend_all`.
    """
    check_extra("ray", "ray", "jobs on a cluster")
    recommender, known = recommender_of_run(run, events, batch_size, index)
    users = known if users is None else list(users)
    place = str(Path(folder).resolve())
    recommender.recommend_all(users, place, only=(), overwrite=overwrite, progress=False, **options)  # begins the job
    waiting = PartFiles.read(place).waiting()
    with ray_cluster(address, workers) as most:
        import ray

        jobs = ray.data.from_items([{"part": part} for part in waiting], override_num_blocks=max(len(waiting), 1))
        given = (str(Path(run).resolve()), events, batch_size, index, users, place, options)
        jobs.map_batches(
            PartWriter, fn_constructor_args=given, batch_size=1, num_cpus=1, concurrency=(1, most)
        ).materialize()
    return Path(folder)
