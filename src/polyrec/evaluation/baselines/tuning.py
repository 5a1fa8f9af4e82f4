"""Settings of a baseline, chosen by NDCG on validation rows; no test row is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from polyrec.core.progress import progress
from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation import ranking
from polyrec.evaluation.baselines.base import CatalogBaseline, Settings
from polyrec.evaluation.baselines.histories import events_that_count
from polyrec.evaluation.scored import rank_rows, ranked_rows

_SCORES = 12_000_000  # of one setting, about: more rows of a small catalog, fewer of a large one
_FEWEST, _MOST = 500, 4000


@dataclass(frozen=True)
class Choice:
    """The settings of a baseline.

    Args:
        settings: chosen, or its defaults where there is nothing to choose by.
        metric: by which, e.g. "ndcg@10".
        value: of it on the validation rows, NaN = nothing was compared.
        rows: validation rows that were ranked.
    """

    settings: Settings
    metric: str
    value: float = float("nan")
    rows: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As metrics.json holds it."""
        return {"settings": self.settings, "metric": self.metric, "validation": self.value, "rows": self.rows}


def by_time(dataset: SequenceDataset, rows: np.ndarray) -> np.ndarray:
    """Candidates in order of time."""
    return rows[np.argsort(dataset.log.time[dataset.candidates.event[rows]], kind="stable")]


def tuning_rows(valid: SequenceDataset, task: str, num_items: int) -> np.ndarray:
    """Validation rows of a task, by time; of many a random share, the same for every baseline."""
    rows = ranked_rows(valid, task)
    most = int(np.clip(_SCORES // max(num_items, 1), _FEWEST, _MOST))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:most])
    return by_time(valid, rows)


def choose(baseline: CatalogBaseline, valid: SequenceDataset | None, k: int = 10) -> Choice:
    """The settings of the highest NDCG@k on validation rows; of equal ones the first of the grid.

    Args:
        valid: None, or without a row of the task: the defaults.
    """
    task, metric = baseline.task, f"ndcg@{k}"
    best = dict(baseline.defaults)
    rows = np.zeros(0, dtype=np.int64) if valid is None else tuning_rows(valid, task.task, task.num_items)
    if valid is None or not len(rows) or not baseline.grids():
        return Choice(best, metric)
    longest = int(valid.candidates.position[rows].max())
    value, known = -1.0, set()
    for stage in baseline.grids():
        start = best
        for changed in progress([*_combinations(stage, longest)], f"Settings of {baseline.name}", unit="setting"):
            settings = {**start, **changed}
            if str(settings) in known:
                continue
            known.add(str(settings))
            found = rank_rows(baseline.scorer(valid, **settings), valid, rows, 0, task.what, task.num_items)
            mean = float(ranking.single_target_metrics(found.greater, found.ties, ks=[k])[metric].mean())
            if mean > value:
                best, value = settings, mean
    return Choice(best, metric, value, len(rows))


def _combinations(stage: Mapping[str, Sequence[Any]], longest: int) -> Iterator[Settings]:
    """Settings of a grid that can differ: one event has no decay, and no event is read that weighs next to nothing."""
    for values in product(*stage.values()):
        found = dict(zip(stage, values, strict=True))
        if {"last", "decay"} <= set(found):
            reach = min(events_that_count(found["decay"]), longest)
            if found["last"] is None or found["last"] >= reach:
                found["last"] = None
            if found["last"] == 1:
                found["decay"] = 1.0
        yield found
