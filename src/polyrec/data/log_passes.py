"""Passes over a whole log, block by block in the order of time: memory follows the block and the keys, not the log.

The state after a block and the features of its rows both follow from the state before it, so that features of all
rows need one block at a time in memory and what is known of each key. States can be merged: sums and counts add up,
faded ones fade first, and the later one of two last times stays.

Letters: R rows of a log, F features, T targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from polyrec.data.event_table import EventTable
from polyrec.data.key_states import KeyStates
from polyrec.data.statistics import RunningStatistics
from polyrec.data.statistics_pass import StatisticsPass, stateful


def time_blocks(order: np.ndarray, time: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Rows in blocks of time: no row of a block is earlier than one of the block before, and none as early.

    Args:
        order: int64 [R], rank of each row in time, ties in any order.
        time: float64 [R], seconds.
        size: rows of a block; rows of one time are of one block, however many they are.

    Yields:
        Rows of each block, ascending.

    Example:
        >>> [rows.tolist() for rows in time_blocks(np.array([3, 0, 1, 2]), np.array([9.0, 5.0, 7.0, 7.0]), size=2)]
        [[1, 2, 3], [0]]
    """
    by_time = np.empty(len(order), dtype=np.int32 if len(order) < 2**31 else np.int64)
    by_time[order] = np.arange(len(order), dtype=by_time.dtype)
    begin = 0
    while begin < len(order):
        end = min(begin + size, len(order))
        latest = time[by_time[end - 1]]
        while end < len(order) and (tied := int((time[by_time[end : end + size]] == latest).cumprod().sum())):
            end += tied
        yield np.sort(by_time[begin:end]).astype(np.int64)
        begin = end


@dataclass
class LogPasses:
    """Passes over all blocks of a log, each from the state after those before it.

    Args:
        statistics: whose priors and keys are read; its own state is neither read nor changed.
        blocks: see [`time_blocks`].
        table: what statistics read of some rows.
        source: bool [R], rows that may be counted at all; None: all.
        kept: bool [R], rows of which `states` are wanted; None: those that count.
        visible_until, untimed: [R], as of `RunningStatistics.compute`; the log must be one block then.

    Attributes:
        states: what was counted of the rows `kept` in the blocks that have been passed, but for that of users.
        last_time: seconds, of the latest of them.
    """

    statistics: RunningStatistics
    blocks: Iterable[np.ndarray]
    table: Callable[[np.ndarray], EventTable]
    source: np.ndarray | None
    kept: np.ndarray | None = None
    visible_until: np.ndarray | None = None
    untimed: np.ndarray | None = None
    states: dict[str, KeyStates] = field(default_factory=dict, init=False)
    last_time: float = field(default=-np.inf, init=False)

    def features(self, wanted: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of each block (int64 [M], ascending) with their features, float32 [M, F].

        Args:
            wanted: bool [R], rows whose features are wanted. None: all.
        """
        for rows, over in self:
            own = np.ones(len(rows), dtype=bool) if wanted is None else wanted[rows]
            yield rows[own], over.features(own)

    def __iter__(self) -> Iterator[tuple[np.ndarray, StatisticsPass]]:
        """Rows of each block with its pass."""
        statistics = self.statistics
        shared, personal = (stateful(statistics.statistics, statistics.context, own) for own in (False, True))
        known: dict[str, KeyStates] = {}
        # Of the rows kept, once these are no longer all that count; users are among them as long as rows are left.
        apart: dict[str, KeyStates] | None = None
        left = 0 if self.kept is None else int(self.kept.sum())
        for rows, is_last in _with_last(self.blocks):
            table = self.table(rows)
            source, held, until = (
                None if own is None else own[rows] for own in (self.source, self.untimed, self.visible_until)
            )
            over = statistics.over(table, known, until, source, held=held, untimed=held)
            yield rows, over
            counted = np.ones(len(rows), dtype=bool) if source is None else source
            kept = counted if self.kept is None else self.kept[rows]
            left -= int(kept.sum())
            wanted, before = [*shared, *personal] if left else shared, apart
            if apart is None and not np.array_equal(kept, counted):
                before, apart = known, {c.name: known[c.name].copy() for c in wanted if c.name in known}
            if apart is not None and before is not None and kept.any():
                part = statistics.over(table.take(np.flatnonzero(kept)), before)
                _put(apart, part.advanced(wanted))
            if apart is None or not is_last:
                _put(known, over.advanced(shared if is_last else [*shared, *personal]))
            if held is not None:
                kept = kept & ~held
            self.last_time = float(table.time[kept].max(initial=self.last_time))
        found = known if apart is None else apart
        self.states = {c.name: found[c.name].counted() for c in shared if c.name in found}


def _with_last(blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, bool]]:
    """Blocks, and whether each is the last one."""
    before = None
    for rows in blocks:
        if before is not None:
            yield before, False
        before = rows
    if before is not None:
        yield before, True


def _put(known: dict[str, KeyStates], new: dict[str, KeyStates]) -> None:
    """Write the states of some keys into what is known."""
    for name, state in new.items():
        known[name] = known[name].put(state) if name in known else state
