"""One pass over a table: features of its rows from a state, or the state after them.

Letters: R rows, F features, T targets, M occurrences of a key in a row, S sources (occurrences that may be counted), G
distinct keys.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyrec.data.event_table import EventTable, MultiValued, cross
from polyrec.data.key_states import KeyStates
from polyrec.data.level_history import LevelHistory, LevelRows
from polyrec.data.prefix_sums import Occurrences, changes
from polyrec.data.statistic_config import StatisticConfig, levels, levels_of

_MOST_KEPT = 100_000  # rows of a table of which intermediate results are kept: those of requests


def stateful(
    statistics: Sequence[StatisticConfig], context: Sequence[tuple[str, ...]], personal: bool = False
) -> list[StatisticConfig]:
    """Every statistic with a state of its own, the levels included; one that equals a level shares that level's.

    Nothing is kept per user: a user's own events say it, and come with each table.

    Args:
        personal: those per user instead.
    """
    found = {config.name: config for config in [*statistics, *levels(context).values()]}
    return [config for config in found.values() if config.personal == personal]


@dataclass
class StatisticsPass:
    """One pass over one table: sorts each key once, for all statistics of it, one key at a time to bound memory.

    Args:
        states: what was counted before.
        visible_until, source, world: see `RunningStatistics`.
        held: bool [R], rows that the states hold already: they speak for the keys of their users alone.
        untimed: bool [R], held rows of which only the order is known, not the times.
        history: baselines of earlier times, at which the labels of held rows are measured; None: those of now.
        measured: {level: [R, T]}, levels of the bias model that a pass over the same rows found before, with any other
            rows in the place of `fresh`. None: nothing is known.
        fresh: bool [R], rows that were not measured; features are those of these rows. None: all.
        depth: how many levels of the bias model the states know; no other is computed. None: all.
    """

    statistics: Sequence[StatisticConfig]
    targets: Sequence[str]
    prior: np.ndarray
    table: EventTable
    states: dict[str, KeyStates]
    visible_until: np.ndarray | None
    source: np.ndarray | None
    context: Sequence[tuple[str, ...]] = ()
    world: np.ndarray | None = None
    held: np.ndarray | None = None
    untimed: np.ndarray | None = None
    history: LevelHistory | None = None
    measured: Mapping[str, np.ndarray] | None = None
    fresh: np.ndarray | None = None
    depth: int | None = None
    own: dict[str, np.ndarray] = field(default_factory=dict)
    seen: dict[str, np.ndarray] = field(default_factory=dict)
    kept: dict[Hashable, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        table, rows = self.table, len(self.table)
        if table.targets.shape[1] != len(self.targets):
            raise ValueError(
                f"targets has {table.targets.shape[1]} columns but the statistics count {list(self.targets)}"
            )
        for name, values in (("visible_until", self.visible_until), ("source", self.source)):
            if values is not None and values.shape != (rows,):
                raise ValueError(
                    f"{name} has shape {values.shape} but the table has {rows} rows: give one value per row"
                )
        if self.visible_until is not None and np.isnan(self.visible_until).any():
            raise ValueError(
                "visible_until is NaN in some row: use inf where only the row's own time limits what it sees"
            )
        if self.source is not None and self.source.dtype != bool:
            raise ValueError(
                f"source has dtype {self.source.dtype}: give a boolean mask of the rows that may be counted"
            )
        self.counted = np.ones(rows, dtype=bool) if self.source is None else self.source
        nothing = np.zeros(rows, dtype=bool)
        self.old = nothing if self.held is None else self.held
        self.hidden = nothing if self.untimed is None else self.untimed
        timestamps, self.rank = np.unique(table.time, return_inverse=True)
        self.until = self.rank
        if self.visible_until is not None:
            self.until = np.minimum(self.rank, np.searchsorted(timestamps, self.visible_until))
        for keys in self.context:
            for key in keys:
                codes = table.codes(key)
                if isinstance(codes, MultiValued) or codes.ndim > 1:
                    raise ValueError(f"key {key!r} of a context level has several values per row: it needs one")
        for level, config in list(levels(self.context).items())[: self.depth]:
            # A row's own label is always set against the baselines of its own time, whatever others may see of it.
            found = self._occurrences(config.keys)
            self.own[level] = self._level(level, config, found)
            self.seen[level] = self.own[level]
            if self.visible_until is not None:
                self.seen[level] = self._level(level, config, found.until(self.until))

    def _occurrences(self, keys: tuple[str, ...]) -> Occurrences:
        return self._kept(keys, lambda: self._find(keys))

    def _kept(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """What was computed before; of a large table it is computed anew, which bounds memory."""
        if key not in self.kept:
            found = compute()
            if len(self.table) > _MOST_KEPT:
                return found
            self.kept[key] = found
        return self.kept[key]

    def _find(self, keys: tuple[str, ...]) -> Occurrences:
        columns = [self.table.codes(key) for key in keys]
        if "user" in keys:  # a user is of one world
            row, packed = cross(columns, self.table.missing, len(self.table))
            return Occurrences.find(row, packed, self.rank, self.counted)
        counted = self.counted & ~self.old
        if self.fresh is None:
            row, packed = cross(columns, self.table.missing, len(self.table))
        else:  # held rows are in the state, and nobody wants to know their features
            rows = np.flatnonzero(self.fresh | counted)
            within, packed = cross([codes[rows] for codes in columns], self.table.missing, len(rows))
            row = rows[within]
        return Occurrences.find(row, packed, self.rank, counted, self.world)

    def _by_keys(self, configs: Sequence[StatisticConfig]) -> Iterator[tuple[Occurrences, list[StatisticConfig]]]:
        """The statistics of each key with its occurrences, one key after the other."""
        for keys in dict.fromkeys(c.keys for c in configs):
            yield self._occurrences(keys), [c for c in configs if c.keys == keys]

    def _level(self, name: str, config: StatisticConfig, found: Occurrences) -> np.ndarray:
        """One level of the bias model at every row, [R, T]; 0 where the key is missing."""
        if self.fresh is not None:
            found = found.at(self.fresh)
        sums, counts = self._before(config, found, self._state(config, found))
        if self.history is not None and not config.personal:
            at = np.flatnonzero((self.old & ~self.hidden)[found.row])
            row, width = found.row[at], len(self.targets)
            then = self.history.before(config.name, found.keys[found.group[at]], self.table.time[row], width)
            sums[at], counts[at] = then[:, :width], then[:, width:]
        if not config.keys:
            sums = sums + config.shrinkage * self.prior
        level = np.zeros(self.table.targets.shape)
        if self.measured is not None and self.fresh is not None:
            level[~self.fresh] = self.measured[name][~self.fresh]
        level[found.row] = sums / (counts + config.shrinkage)  # a level's key occurs at most once per row
        return level

    def _state(self, config: StatisticConfig, found: Occurrences) -> KeyStates:
        state = self.states.get(config.name)
        return KeyStates.empty(found.keys, len(self.targets)) if state is None else state.at(found.keys)

    def _values(self, baseline: str) -> np.ndarray:
        """Known residuals of the rows' own time and how many they are: [R, T + T], or [R, T + 1] if all are known."""
        return self._kept(baseline, lambda: self._residuals(baseline))

    def _residuals(self, baseline: str) -> np.ndarray:
        residual = self.table.targets - sum(
            (self.own[level] for level in levels_of(baseline, len(self.context))), np.zeros(1)
        )
        known = ~np.isnan(residual)
        ones = np.ones((len(known), 1)) if known.all() else known
        return np.concatenate([np.where(known, residual, 0.0), ones], axis=1)

    def _clock(self, config: StatisticConfig, found: Occurrences) -> tuple[np.ndarray, np.ndarray]:
        """By which clock sums fade: of the sources [S] and of the occurrences [M]."""
        if config.recent is not None:
            return found.position.astype(np.float64), (found.end - found.begin).astype(np.float64)
        time = self.table.time.astype(np.float64)
        return time[found.source], time[found.row]

    def _before(self, config: StatisticConfig, found: Occurrences, state: KeyStates) -> tuple[np.ndarray, np.ndarray]:
        """Sums [M, T] and counts [M, T] of known residuals before each occurrence, continuing `state` [G]."""
        values = self._values(config.baseline)
        old_sums, old_counts = state.sums[found.group], state.counts[found.group]
        if config.fade is None:
            new = found.sums(values)
        else:
            clock, now = self._clock(config, found)
            new = found.decayed_sums(values, clock, now, config.fade)
            elapsed = now if config.recent is not None else now - state.last[found.group]
            kept = np.exp2(-np.maximum(np.nan_to_num(elapsed), 0.0) / config.fade)[:, None]
            old_sums, old_counts = kept * old_sums, kept * old_counts
        width = len(self.targets)
        sums, counts = new[:, :width] + old_sums, new[:, width:] + old_counts
        if config.half_life is not None and self.hidden.any():
            unknown = found.sums(self.hidden[:, None])[:, 0] > 0  # nobody knows how far those have faded
            sums[unknown], counts[unknown] = np.nan, np.nan
        return sums, counts

    def level_rows(self) -> dict[str, LevelRows]:
        """What each level that is no user's counts of the table's new rows, for [`LevelHistory.add`]."""
        rows = {}
        for config in levels(self.context).values():
            if config.personal:
                continue
            found = self._occurrences(config.keys)
            values = self._values(config.baseline)
            width = len(self.targets)
            values = np.concatenate(
                [values[:, :width], np.broadcast_to(values[:, width:], (len(values), width))], axis=1
            )
            row = found.source
            rows[config.name] = LevelRows(found.keys[found.source_group], self.table.time[row], values[row])
        return rows

    @property
    def baselines(self) -> np.ndarray:
        """What the bias model expects of every target in every row, [R, T]."""
        return sum(self.seen.values(), np.zeros((len(self.table), 1)))

    def features(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Every feature, float32 [R, F], of every row, or of some (bool [R])."""
        rows = np.ones(len(self.table), dtype=bool) if rows is None else rows
        at, column = len(self.targets), {}
        for config in self.statistics:
            column[config.name] = at
            at += len(config.feature_names(self.targets))
        result = np.full((int(rows.sum()), at), np.nan, dtype=np.float32)
        result[:, : len(self.targets)] = self.baselines[rows]
        for found, configs in self._by_keys(self.statistics) if len(result) else ():
            if self.visible_until is not None:
                found = found.until(self.until)
            found = found if rows.all() else found.at(rows)
            to = np.cumsum(rows)[found.row] - 1
            for config in configs:
                at = column[config.name]
                for block in self._blocks(config, found, to, len(result)):
                    result[:, at : at + block.shape[1]] = block
                    at += block.shape[1]
        return result

    def _blocks(self, config: StatisticConfig, found: Occurrences, to: np.ndarray, rows: int) -> Iterator[np.ndarray]:
        """Features of one statistic, [rows, T] per reduction and then [rows, 1] each for count and gap.

        Args:
            to: int64 [M], the row of the result that each occurrence belongs to.
        """
        state = self._state(config, found)
        sums, counts = self._before(config, found, state)
        total = counts + config.shrinkage
        means = np.divide(sums, total, out=np.full(sums.shape, np.nan), where=total > 0)
        for how in config.reduce:
            yield _reduce(means, to, rows, how)
        if config.count:
            earlier = found.end - found.begin + state.rows[found.group]
            if config.fade is not None:
                earlier = counts.mean(axis=1)
            yield _reduce(np.log1p(earlier)[:, None], to, rows, "mean")
        if config.gap:
            last = np.fmax(found.last_before(self.table.time), state.last[found.group])
            last[found.last_is(self.hidden)] = np.nan
            gap = np.log1p(np.maximum(self.table.time[found.row] - last, 0))
            yield _reduce(gap[:, None], to, rows, "min")

    def advanced(self, of: Sequence[StatisticConfig]) -> dict[str, KeyStates]:
        """The states of some statistics, after all rows of the table, of the keys that occur in it."""
        states, width = {}, len(self.targets)
        for found, configs in self._by_keys(of):
            bounds = found.bounds
            arrivals = np.diff(bounds)
            last = np.full(len(found.keys), np.nan)
            last[arrivals > 0] = self.table.time[found.source[bounds[1:][arrivals > 0] - 1]]
            for config in configs:
                values = self._values(config.baseline)
                if config.fade is None:
                    new = found.group_sums(values)
                else:
                    new = found.group_decayed_sums(values, self._clock(config, found)[0], config.fade)
                own = KeyStates(found.keys, new[:, :width], new[:, width:], arrivals, last)
                states[config.name] = self._state(config, found).followed_by(own, config)
        return states


def _reduce(values: np.ndarray, row: np.ndarray, rows: int, how: str) -> np.ndarray:
    """Occurrences [M, T] to rows [R, T]: mean, max or min of a row's known occurrences, NaN where it has none."""
    result = np.full((rows, values.shape[1]), np.nan)
    if not len(row):
        return result
    begins = changes(row)
    if len(begins) == len(row):  # one occurrence per row: nothing to reduce
        result[row] = values
    elif how == "mean":
        known = ~np.isnan(values)
        total = np.add.reduceat(np.where(known, values, 0.0), begins, axis=0)
        count = np.add.reduceat(known.astype(np.float64), begins, axis=0)
        result[row[begins]] = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    else:
        result[row[begins]] = (np.fmax if how == "max" else np.fmin).reduceat(values, begins, axis=0)
    return result
