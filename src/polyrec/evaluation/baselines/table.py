"""Tuned baselines of every task: fitted on training rows, chosen on validation, measured on the rows to be
evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from polyrec.core.registry import HEADS, nearest
from polyrec.data.candidates import left_out
from polyrec.data.release import NO_TIME
from polyrec.data.sequences import SequenceDataset
from polyrec.data.splitter import Splits
from polyrec.evaluation.baselines.base import CatalogBaseline, CatalogTask
from polyrec.evaluation.baselines.counts import Newest, Popularity, RecentPopularity
from polyrec.evaluation.baselines.histories import EASE, ItemKNN, Repeat, Transitions
from polyrec.evaluation.baselines.pairs import PairBaselines
from polyrec.evaluation.baselines.tuning import Choice, by_time, choose
from polyrec.evaluation.figures import list_figures, pair_figures
from polyrec.evaluation.scored import Ranking, rank_rows, ranked_rows
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import FIRST_ITEM

Systems = dict[str, dict[str, Any]]

CATALOG_BASELINES: dict[str, type[CatalogBaseline]] = {
    kind.name: kind for kind in (EASE, ItemKNN, Transitions, Repeat, RecentPopularity, Popularity, Newest)
}


def ranked_baselines(
    task: CatalogTask,
    valid: SequenceDataset | None,
    test: SequenceDataset,
    rows: np.ndarray,
    k: int = 10,
    systems: Sequence[str] | None = None,
) -> Iterator[tuple[str, Ranking, Choice]]:
    """Each baseline that fits a retrieval task, with its lists of some rows of a data set and its settings.

    One is fitted at a time, so that the largest alone decides the memory.

    Args:
        valid: by which settings are chosen; None: the defaults.
        rows: int64 [R], candidates of `test`, whose order its lists keep.
        k: length of the lists, and of NDCG@k that chooses.
        systems: names; default: all that fit.
    """
    order = np.argsort(np.argsort(test.log.time[test.candidates.event[rows]], kind="stable"), kind="stable")
    for kind in _wanted(systems):
        if kind.misfit(task) is None:
            baseline = kind(task)
            choice = choose(baseline, valid, k)
            score, ordered = baseline.scorer(test, **choice.settings), by_time(test, rows)
            found = rank_rows(score, test, ordered, k, task.what, task.num_items)
            yield kind.name, found.of(order), choice


def misfits(task: CatalogTask, systems: Sequence[str] | None = None) -> dict[str, str]:
    """{baseline: why it cannot be fitted to a task}."""
    return {kind.name: reason for kind in _wanted(systems) if (reason := kind.misfit(task)) is not None}


def _wanted(systems: Sequence[str] | None) -> list[type[CatalogBaseline]]:
    names = list(CATALOG_BASELINES) if systems is None else list(systems)
    for name in names:
        if name not in CATALOG_BASELINES:
            raise ValueError(f"unknown baseline {name!r}; {nearest(name, list(CATALOG_BASELINES))}")
    return [CATALOG_BASELINES[name] for name in names]


def released_at(processor: PolyRecProcessor) -> np.ndarray | None:
    """When items appeared by the catalog, float64 seconds [N], NaN = not known; None: it does not say."""
    if processor.columns.item_time is None:
        return None
    times = processor.item_times("release")[FIRST_ITEM:]
    return np.where(times == NO_TIME, np.nan, times / 1e3)


def baseline_table(
    processor: PolyRecProcessor,
    parts: Splits,
    part: str = "test",
    ks: Sequence[int] = (10,),
    tasks: Sequence[str] | None = None,
    systems: Sequence[str] | None = None,
    exclude_seen: bool | None = None,
    resamples: int = 200,
) -> dict[str, Systems]:
    """Every task's tuned baselines, measured as `polyrec evaluate` measures them, without any model.

    Args:
        parts: of `processor.split`: baselines are fitted on its training rows, validation chooses their settings.
        part: name of the split, "test" or "valid".
        ks: cut-offs of lists; settings are chosen by NDCG at the largest.
        tasks: names; default: all.
        systems: of retrieval tasks, names of `CATALOG_BASELINES`; default: all that fit.
        exclude_seen: leave the user's history out of lists; None: unless the task has `repeats`.
        resamples: of the 95% intervals over users; 0: no intervals.

    Returns:
        {task: {system: {metric: value, "interval": {metric: [low, high]}, "chosen": {"settings", "metric",
        "validation", "rows"}}}}.

    Example:
        >>> user, step = np.divmod(np.arange(20), 4)  # everybody walks through five items in the same order
        >>> log = {"user_id": user, "item_id": (user + step) % 5, "timestamp": 10 * step + user}
        >>> tasks = [{"name": "next", "head": "retrieval"}]
        >>> processor = PolyRecProcessor.fit(log, tasks=tasks, verbose=False)
        >>> parts = processor.split(log, by="leave_one_out")
        >>> table = baseline_table(processor, parts, ks=(1,), systems=["transitions", "popularity"])
        >>> {name: found["ndcg@1"] for name, found in table["next"].items()}
        {'transitions': 1.0, 'popularity': 0.5}
    """
    judged: SequenceDataset = parts.valid if part == "valid" else parts.test
    number, released = processor.num_items - FIRST_ITEM, released_at(processor)
    found: dict[str, Systems] = {}
    for config in processor.tasks:
        if tasks is not None and config.name not in tasks:
            continue
        if config.ranks_catalog:
            task = CatalogTask(parts.train, config.name, number, left_out(config, exclude_seen), released)
            rows = ranked_rows(judged, config.name)
            users = judged.user_codes()[rows]
            found[config.name] = {
                name: {**list_figures(lists, users, ks, number, resamples=resamples), "chosen": choice.to_dict()}
                for name, lists, choice in ranked_baselines(task, parts.valid, judged, rows, max(ks), systems)
            }
        else:
            metrics = HEADS.get(config.head).metrics
            pairs = PairBaselines(metrics, config.name, parts.train, parts.valid, judged)
            found[config.name] = {
                name: pair_figures(metrics, judged, config.name, values, resamples=resamples) | pairs.facts(name)
                for name, values in pairs.values.items()
            }
    return found
