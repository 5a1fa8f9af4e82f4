"""The running statistics of an event log as model inputs: which keys there are, scales, residuals and state.

Letters: R events, F features, T targets, P users.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyrec.core.progress import progress
from polyrec.core.schema import RESIDUALS, Columns, TaskConfig
from polyrec.data.block_passes import BlockPasses
from polyrec.data.catalog import EntityTable
from polyrec.data.columns import ColumnEncoder
from polyrec.data.event_log import EventLog
from polyrec.data.event_table import EventTable
from polyrec.data.level_history import LevelHistory
from polyrec.data.log_passes import LogPasses, time_blocks
from polyrec.data.log_tables import LogTables
from polyrec.data.past_features import PastFeatures
from polyrec.data.residuals import residuals, said_by_others
from polyrec.data.scaling import MeanVariance, StatisticsScaler
from polyrec.data.statistic_config import StatisticConfig, StatisticsConfig
from polyrec.data.statistics import RunningStatistics
from polyrec.data.statistics_checks import check_statistics, default_history_statistics, says_the_same
from polyrec.data.statistics_pass import StatisticsPass
from polyrec.data.storage import MEMORY, Folder, Storage
from polyrec.data.stored_events import StoredEvents
from polyrec.data.tables import read_json
from polyrec.data.user_states import UserStates

_LOG, _PAST, _SCALES = "log", "past", "scales.json"
_OF_ITEMS = StatisticConfig(("item",), "none")  # what residuals are measured against in logs without times


class LogStatistics:
    """Counts an [`EventLog`], and what users did before it, into one scaled matrix [R, F].

    Args:
        log: statistics of the log; their targets are the pair tasks and further numeric feedback columns.
        past: statistics of the events before the log, whose targets are the feedback columns that
            `Columns.prior_history` marks; None without prior history.
        items: the catalog.
        encoders: {"user": {...}, "candidate": {...}}, encoders of the attributes that may be keys.
        marked: {target of the log: mark of the past that says the same}, for the residuals of past events.
        tasks: of the processor, in the order of the log's labels.
        ordered: whether logs have times. Without them residuals of events are measured against what *other* users said
            of the item, since an example may see any of its user's events, also those that were counted after it.

    Attributes:
        scaler: mean and spread of the features on training rows, None before `fit`.
        spread: {target: standard deviation on training rows}.
    """

    def __init__(
        self,
        log: RunningStatistics,
        past: RunningStatistics | None,
        items: EntityTable,
        encoders: Mapping[str, Mapping[str, ColumnEncoder]],
        marked: Mapping[str, str],
        tasks: Sequence[TaskConfig],
        ordered: bool = True,
    ) -> None:
        self.ordered = ordered
        self.log, self.past, self.marked = log, past, dict(marked)
        labels = [j for j, t in enumerate(tasks) if not t.ranks_catalog]
        self.tables = LogTables(items, encoders, labels, log.targets[len(labels) :])
        self.scaler: StatisticsScaler | None = None
        self.spread: dict[str, float] = {}
        self.past_spread: dict[str, float] = {}  # of marks of the past
        self._known: tuple[LevelHistory | None, UserStates] | None = None  # of the stored events, see [`_stored`]
        self._of_past = None if past is None else PastFeatures(past, self.tables)

    @classmethod
    def of(
        cls,
        config: StatisticsConfig,
        columns: Columns,
        tasks: Sequence[TaskConfig],
        items: EntityTable,
        encoders: Mapping[str, Mapping[str, ColumnEncoder]],
    ) -> LogStatistics:
        """Statistics as configured, or the default set."""
        pair = [t for t in tasks if not t.ranks_catalog]
        targets = [*(t.name for t in pair), *config.targets]
        kinds = {f"item.{n}": e.kind for n, e in items.encoders.items() if e.countable}
        kinds |= {f"user.{n}": e.kind for n, e in encoders["user"].items() if e.countable}
        item_keys, user_keys = ([k for k in kinds if k.startswith(side)] for side in ("item.", "user."))
        multi = [k for k, kind in kinds.items() if kind == "multi"]
        context = [tuple(keys) for keys in config.context]
        check_statistics(
            config,
            columns,
            [t.name for t in pair],
            [*kinds, *(f"context.{n}" for n, e in encoders["candidate"].items() if e.countable)],
        )
        ordered = columns.time is not None
        if config.log is None:
            log = RunningStatistics.default(item_keys, user_keys, targets, multi, context, ordered)
        else:
            log = RunningStatistics(config.log, targets, context=context)
        if not ordered and targets and _OF_ITEMS.name not in [s.name for s in log.statistics]:
            log = RunningStatistics([*log.statistics, _OF_ITEMS], targets, context=context)
        if columns.prior_history is None or not any(columns.prior_history.values()):
            return cls(log, None, items, encoders, {}, tasks, ordered)
        marks = sorted({mark for meant in columns.prior_history.values() for mark in meant})
        past = RunningStatistics(default_history_statistics(item_keys) if config.past is None else config.past, marks)
        names = {t.name: t.parsed_label for t in pair}
        marked = {n: rule.column for n, rule in names.items() if rule is not None and says_the_same(rule, marks)}
        marked |= {n: n for n in config.targets if n in marks}
        return cls(log, past, items, encoders, marked, tasks)

    @property
    def targets(self) -> list[str]:
        """Names of the T targets of the log, those of the residuals."""
        return self.log.targets

    @property
    def measures(self) -> Sequence[str]:
        """Targets that are no task's label: numeric feedback columns."""
        return self.tables.measures

    @property
    def names(self) -> list[str]:
        """Names of the F features."""
        return [*self.log.names, *([] if self.past is None else [f"past.{n}" for n in self.past.names])]

    @property
    def timed_columns(self) -> np.ndarray:
        """Columns that follow from the times of the user's own events, int64."""
        found: list[int] = []
        at = len(self.targets)
        for config in self.log.statistics:
            names = config.feature_names(self.targets)
            if config.personal and config.half_life is not None:
                found += range(at, at + len(names))
            elif config.personal and config.gap:
                found.append(at + len(names) - 1)  # the gap comes last
            at += len(names)
        return np.array(found, dtype=np.int64)

    @property
    def last_time(self) -> float:
        """Seconds; the latest event counted into the state, -inf if there is none."""
        return self.log.last_time

    # -------------------------------------------------------------- compute
    def fit(
        self, log: EventLog, train: np.ndarray, source: np.ndarray | None = None, storage: Storage = MEMORY
    ) -> np.ndarray:
        """Learn priors and scales on the rows `train` (bool [R]) and put them into the state; gives [`compute`].

        The log's events get their `residuals`, as inputs of later candidates.

        Args:
            storage: where the features go.
        """
        self.log.prior, spread = self._mean_and_spread(log, train)
        self.spread = dict(zip(self.targets, spread.tolist(), strict=True))
        self.past_spread = {} if self._of_past is None else self._of_past.fit(log)
        self.scaler = None
        return self._count_all(log, source, train, storage)

    def resume(self, log: EventLog, storage: Storage = MEMORY) -> np.ndarray:
        """[`compute`] of a log that went on after [`fit`]; the state is then that of all its events.

        Priors and scales stay as they were learned. The log's events get their `residuals`, as in [`fit`].

        Args:
            storage: as of [`fit`].
        """
        assert self.scaler is not None, "fit first"
        return self._count_all(log, None, None, storage)

    def _count_all(
        self, log: EventLog, source: np.ndarray | None, train: np.ndarray | None, storage: Storage
    ) -> np.ndarray:
        """Scaled features of every event; the state is then that of the rows `train`, None: of all."""
        if self._of_past is not None:
            self._of_past.recount(log)
        matrix, scales = storage.writer("statistics", len(log), len(self.names)), MeanVariance(len(self.names))
        said = storage.writer(f"event_features.{RESIDUALS}", len(log), len(self.targets))
        passes = self._passes(log, source, storage, kept=train)
        blocks = -(-len(log) // storage.block)
        for rows, features in progress(passes.features(), "Running statistics", blocks, unit="block"):
            counted, targets = self._with_past(features, log, rows), self.tables.targets(log, rows)
            matrix.put(rows, counted)
            said.put(rows, residuals(targets, counted[:, : len(self.targets)], self.spread))
            if train is not None:
                scales.add(counted[train[rows]])
        self._known = None
        self.log.adopt(passes.states, passes.last_time)
        self.scaler = StatisticsScaler.of(scales) if self.scaler is None else self.scaler
        held = np.ones(len(log), dtype=bool) if train is None else train
        self._set_residuals(log, said.finish(np.asarray) if self.ordered else self._against_others(log, held))
        return matrix.finish(self.scaler.transform)

    def _passes(
        self,
        log: EventLog,
        source: np.ndarray | None,
        storage: Storage,
        kept: np.ndarray | None = None,
        visible_until: np.ndarray | None = None,
    ) -> LogPasses | BlockPasses:
        """Passes over the log; rows that see less than what came before them need all of it at once."""
        whole = visible_until is not None or log.untimed is not None
        if isinstance(storage, Folder) and storage.engine is not None:
            return BlockPasses(self.log, self.tables, log, storage, storage.engine, source, kept)
        blocks = iter([np.arange(len(log))]) if whole else time_blocks(log.order, log.time, storage.block)

        def table(rows: np.ndarray) -> EventTable:
            return self.tables.of_log(self.log, log, rows)

        return LogPasses(self.log, blocks, table, source, kept, visible_until, log.untimed)

    def _mean_and_spread(self, log: EventLog, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the targets of some rows, bool [R]."""
        scales, rows = MeanVariance(len(self.targets)), np.flatnonzero(train)
        for begin in range(0, len(rows), MEMORY.block):
            scales.add(self.tables.targets(log, rows[begin : begin + MEMORY.block]))
        return scales.mean, np.sqrt(scales.variance)

    def compute(
        self,
        log: EventLog,
        visible_until: np.ndarray | None = None,
        source: np.ndarray | None = None,
        rows: np.ndarray | None = None,
        storage: Storage = MEMORY,
    ) -> np.ndarray:
        """Scaled features of every event of a whole log, float32 [R, F], NaN = unknown.

        Args:
            visible_until: [R], seconds; a row sees only rows before min(its time, this).
            source: bool [R], rows that may be counted at all.
            rows: bool [R], events whose features are wanted; those of the others are NaN. None: all.
            storage: where the features go.
        """
        assert self.scaler is not None, "fit first"
        matrix = storage.writer("statistics.tested", len(log), len(self.names))
        for found, features in self._passes(log, source, storage, visible_until=visible_until).features(rows):
            matrix.put(found, self._with_past(features, log, found))
        return matrix.finish(self.scaler.transform)

    def measure(self, log: EventLog, stored: StoredEvents | None = None) -> Mapping[str, np.ndarray]:
        """Give the log's events their `residuals`; {level of the bias model: [R, T]} for later calls of [`request`].

        Events that are not later than `last_time`, or whose times are not known, are part of what was counted: they
        speak for their user's keys and for nobody else's. Several users of the log are as many requests, which know
        nothing of each other.

        Args:
            stored: all events that the state has counted, which tell the baselines of earlier times. None: residuals
                of earlier events are those against the baselines of now.
        """
        return self._measured(log, stored).own

    def request(
        self,
        log: EventLog,
        rows: np.ndarray,
        stored: StoredEvents | None = None,
        measured: Mapping[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Features of some rows of requests (bool [R]), [rows, F]: the state continued by users' own events. The log's
        events get their `residuals`.

        Args:
            stored: as of [`measure`].
            measured: what [`measure`] gave of these rows, with any others in the place of `rows`, and without a change
                of the state since. None: it is done first.
        """
        assert self.scaler is not None, "fit first"
        if measured is None:
            over = self._measured(log, stored)
        else:
            over = self.log.request(
                self.tables.of_log(self.log, log), log.user, log.untimed, self._history(log, stored), measured, rows
            )
        counted = over.features(rows)
        return self.scaler.transform(self._with_past(counted, log, np.flatnonzero(rows)))

    def _measured(self, log: EventLog, stored: StoredEvents | None) -> StatisticsPass:
        over = self.log.request(self.tables.of_log(self.log, log), log.user, log.untimed, self._history(log, stored))
        old = log.time <= self.last_time
        held = old if log.untimed is None else old & ~log.untimed
        said = residuals(over.table.targets, over.baselines, self.spread) if self.ordered else None
        self._set_residuals(log, self._against_others(log, held) if said is None else said)
        return over

    def _history(self, log: EventLog, stored: StoredEvents | None) -> LevelHistory | None:
        """The baselines of earlier times, where a log has events of them."""
        return self._stored(stored)[0] if stored is not None and (log.time <= self.last_time).any() else None

    def prepared(self, log: EventLog, stored: StoredEvents | None = None) -> Callable[[], None]:
        """What counting new events, later than all counted so far, has to compute; the call of the result counts them.

        Args:
            stored: all events counted so far; None: unknown.
        """
        history, users = (None, None) if stored is None else self._stored(stored)
        rows = None if users is None or stored is None else users.rows(stored.hashes(log.user_ids))
        return self.log.prepared(self.tables.of_log(self.log, log), log.untimed, history, users, rows)

    def prepared_late(self, log: EventLog, stored: StoredEvents) -> Callable[[], None]:
        """The same of events that come too late to be counted, but for their users."""
        history, users = self._stored(stored)
        every, rows = np.ones(len(log), dtype=bool), users.rows(stored.hashes(log.user_ids))
        return self.log.prepared(self.tables.of_log(self.log, log), every, history, users, rows)

    def warm(self, stored: StoredEvents) -> None:
        """Compute what is kept of the stored events."""
        self._stored(stored)

    def forget(self, hashes: np.ndarray) -> None:
        """Nothing is known of some users, by hash, any more."""
        if self._known is not None:
            self._known[1].forget(hashes)

    def _stored(self, stored: StoredEvents) -> tuple[LevelHistory | None, UserStates]:
        """The baselines of all times, if the stored events tell them, and what is counted of each user.

        They are computed of all stored events when they are first needed, and advance with new ones.
        """
        if self._known is None:
            history, users = LevelHistory(), UserStates(len(self.targets))
            if not stored.is_empty and self.targets:
                log = stored.log()
                history, states = self.log.recorded(self.tables.of_log(self.log, log), log.uncounted)
                users.put(users.rows(np.asarray(log.user_ids)[states.keys - 1]), states)
            self._known = history if stored.complete and self.targets else None, users
        return self._known

    def _with_past(self, counted: np.ndarray, log: EventLog, rows: np.ndarray) -> np.ndarray:
        """Features of some events of a log with those that come of the events before it, [rows, F]."""
        past = self._of_past
        return counted if past is None else np.concatenate([counted, past.of(log, rows)], axis=1)

    def _set_residuals(self, log: EventLog, found: np.ndarray) -> None:
        """What each event's labels said against what was expected at its time, in standard deviations, [R, T]."""
        if not self.targets:
            return
        log.event_features[RESIDUALS] = found
        past = log.prior_history
        if self._of_past is not None and past is not None:
            said = self._of_past.residuals(past, self.targets, self.marked, self.past_spread)
            past.event_features[RESIDUALS] = said

    def _against_others(self, log: EventLog, held: np.ndarray) -> np.ndarray:
        """Residuals against what other users said of the item in events that are counted, bool [R]."""
        state, targets = self.log.counted(_OF_ITEMS.name, log.item), self.tables.targets(log)
        pair = log.user * (int(log.item.max(initial=0)) + 1) + log.item
        others = said_by_others(state, pair, targets, held, self.log.prior, _OF_ITEMS.shrinkage)
        return residuals(targets, others, self.spread)

    # -------------------------------------------------------------- on disk
    def save(self, folder: Path) -> None:
        """Write log/, past/ and scales.json; nothing in them is about a user."""
        self.log.save(folder / _LOG)
        if self.past is not None:
            self.past.save(folder / _PAST)
        scales: dict[str, Any] = {
            "scaler": None if self.scaler is None else self.scaler.to_dict(),
            "spread": self.spread,
            "past_spread": self.past_spread,
            "marked": self.marked,
            "past": self.past is not None,
        }
        (folder / _SCALES).write_text(json.dumps(scales) + "\n", encoding="utf-8")

    @classmethod
    def load(
        cls,
        folder: Path,
        items: EntityTable,
        encoders: Mapping[str, Mapping[str, ColumnEncoder]],
        tasks: Sequence[TaskConfig],
        ordered: bool = True,
    ) -> LogStatistics:
        """Rebuild from [`save`]."""
        scales = read_json(folder / _SCALES)
        past = RunningStatistics.load(folder / _PAST) if scales["past"] else None
        found = cls(RunningStatistics.load(folder / _LOG), past, items, encoders, scales["marked"], tasks, ordered)
        found.spread, found.past_spread = scales["spread"], scales.get("past_spread", {})
        if scales["scaler"] is not None:
            found.scaler = StatisticsScaler.from_dict(scales["scaler"])
        return found
