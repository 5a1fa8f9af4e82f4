"""The running statistics of an event log as model inputs: which keys there are, scales, residuals and state.

Letters: R events, F features, T targets, P users.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyrec.core.schema import RESIDUALS, Columns, TaskConfig
from polyrec.data.catalog import EntityTable
from polyrec.data.columns import ColumnEncoder
from polyrec.data.event_log import EventLog
from polyrec.data.event_table import EventTable
from polyrec.data.level_history import LevelHistory
from polyrec.data.prior_history import PriorHistory
from polyrec.data.scaling import StatisticsScaler
from polyrec.data.statistic_config import StatisticConfig, StatisticsConfig
from polyrec.data.statistic_keys import past_table, statistic_keys
from polyrec.data.statistics import RunningStatistics
from polyrec.data.statistics_checks import check_statistics, default_history_statistics, says_the_same
from polyrec.data.statistics_pass import StatisticsPass
from polyrec.data.stored_events import StoredEvents
from polyrec.data.tables import read_json
from polyrec.data.user_states import UserStates

AFTER_PAST = 1.0  # seconds; events of the past have the time 0
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
        self.log, self.past, self.items, self.encoders, self.marked = log, past, items, encoders, dict(marked)
        self._label_columns = [j for j, t in enumerate(tasks) if not t.ranks_catalog]
        self.scaler: StatisticsScaler | None = None
        self.spread: dict[str, float] = {}
        self.past_spread: dict[str, float] = {}  # of marks of the past
        self._known: tuple[LevelHistory | None, UserStates] | None = None  # of the stored events, see [`_stored`]
        self._of_past: tuple[PriorHistory, RunningStatistics] | None = None  # of the last log, likewise

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
    def measures(self) -> list[str]:
        """Targets that are no task's label: numeric feedback columns."""
        return self.targets[len(self._label_columns) :]

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
    def fit(self, log: EventLog, train: np.ndarray, source: np.ndarray | None = None) -> np.ndarray:
        """Learn priors and scales on the rows `train` (bool [R]) and put them into the state; gives [`compute`].

        The log's events get their `residuals`, as inputs of later candidates.
        """
        values = self._targets(log)
        self.log.prior = np.nanmean(values[train], axis=0)
        self.spread = dict(zip(self.targets, np.nanstd(values[train], axis=0).tolist(), strict=True))
        if self.past is not None:
            known = [
                np.zeros(0) if log.prior_history is None else log.prior_history.marks[mark]
                for mark in self.past.targets
            ]
            self.past.prior = np.array([v.mean() if len(v) else 0.0 for v in known])
            self.past_spread = {m: float(v.std()) for m, v in zip(self.past.targets, known, strict=True) if len(v)}
            self._recount_past(log)
        counted = self._count(log, source=source)
        self.scaler = StatisticsScaler.fit(counted[train])
        self._reset()
        self.log.update(self._table(log).take(np.flatnonzero(train)))
        self._add_residuals(log, counted, train)
        return self.scaler.transform(counted)

    def resume(self, log: EventLog) -> np.ndarray:
        """[`compute`] of a log that went on after [`fit`]; the state is then that of all its events.

        Priors and scales stay as they were learned. The log's events get their `residuals`, as in [`fit`].
        """
        assert self.scaler is not None, "fit first"
        if self.past is not None:
            self._recount_past(log)
        counted = self._count(log)
        self._reset()
        self.log.update(self._table(log), log.untimed)
        self._add_residuals(log, counted, np.ones(len(log), dtype=bool))
        return self.scaler.transform(counted)

    def _reset(self) -> None:
        self.log.reset()
        self._known = None

    def _recount_past(self, log: EventLog) -> None:
        assert self.past is not None
        self.past.reset()
        self._of_past = None
        if log.prior_history is not None:
            self.past.update(past_table(self.past, self.items, self.encoders, log))

    def compute(
        self, log: EventLog, visible_until: np.ndarray | None = None, source: np.ndarray | None = None
    ) -> np.ndarray:
        """Scaled features of every event of a whole log, float32 [R, F], NaN = unknown.

        Args:
            visible_until: [R], seconds; a row sees only rows before min(its time, this).
            source: bool [R], rows that may be counted at all.
        """
        assert self.scaler is not None, "fit first"
        return self.scaler.transform(self._count(log, visible_until, source))

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
            over = self.log.request(self._table(log), log.user, log.untimed, self._history(log, stored), measured, rows)
        counted = over.features(rows)
        if self.past is not None:
            counted = np.concatenate([counted, self._past_features(log)[rows]], axis=1)
        return self.scaler.transform(counted)

    def _measured(self, log: EventLog, stored: StoredEvents | None) -> StatisticsPass:
        over = self.log.request(self._table(log), log.user, log.untimed, self._history(log, stored))
        old = log.time <= self.last_time
        self._add_residuals(log, over.baselines, old if log.untimed is None else old & ~log.untimed)
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
        return self.log.prepared(self._table(log), log.untimed, history, users, rows)

    def prepared_late(self, log: EventLog, stored: StoredEvents) -> Callable[[], None]:
        """The same of events that come too late to be counted, but for their users."""
        history, users = self._stored(stored)
        every, rows = np.ones(len(log), dtype=bool), users.rows(stored.hashes(log.user_ids))
        return self.log.prepared(self._table(log), every, history, users, rows)

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
                history, states = self.log.recorded(self._table(log), log.uncounted)
                users.put(users.rows(np.asarray(log.user_ids)[states.keys - 1]), states)
            self._known = history if stored.complete and self.targets else None, users
        return self._known

    def _count(
        self, log: EventLog, visible_until: np.ndarray | None = None, source: np.ndarray | None = None
    ) -> np.ndarray:
        counted = self.log.compute(self._table(log), visible_until, source, log.untimed)
        if self.past is None:
            return counted
        return np.concatenate([counted, self._past_features(log)], axis=1)

    def _past_features(self, log: EventLog) -> np.ndarray:
        """Features of every event of a log that come of the events before it, [R, F]."""
        assert self.past is not None
        if log.prior_history is None:
            return self.past.transform(self._table(log, self.past))
        known = self._of_past
        if known is None or known[0] is not log.prior_history:
            self._of_past = known = (
                log.prior_history,
                self.past.with_users(past_table(self.past, self.items, self.encoders, log)),
            )
        return known[1].transform(self._table(log, self.past))

    def _add_residuals(self, log: EventLog, baselines: np.ndarray, held: np.ndarray) -> None:
        """What each event's labels said against the running baseline at its time, in standard deviations, [R, T].

        Args:
            baselines: of the log's events, unscaled, [R, T]; further columns are not read.
            held: bool [R], events that the state has counted.
        """
        if not self.targets:
            return
        scale = np.array([max(self.spread[name], 1e-6) for name in self.targets])
        expected = baselines[:, : len(self.targets)] if self.ordered else self._said_by_others(log, held)
        log.event_features[RESIDUALS] = ((self._targets(log) - expected) / scale).astype(np.float32)
        if self.past is not None and log.prior_history is not None:
            found = np.full((len(log.prior_history.item), len(self.targets)), np.nan, dtype=np.float32)
            prior = dict(zip(self.past.targets, self.past.prior, strict=True))
            for target, mark in self.marked.items():
                spread = max(self.past_spread.get(mark, 1.0), 1e-6)
                found[:, self.targets.index(target)] = (log.prior_history.marks[mark] - prior[mark]) / spread
            log.prior_history.event_features[RESIDUALS] = found

    def _said_by_others(self, log: EventLog, held: np.ndarray) -> np.ndarray:
        """The shrunk mean of each event's item over the events of other users that the state has counted, [R, T]."""
        state, targets = self.log.counted(_OF_ITEMS.name, log.item), self._targets(log)
        sums, counts = state.sums - state.counts * self.log.prior, state.counts.astype(np.float64)
        known = held[:, None] & ~np.isnan(targets)
        pair = np.unique(log.user * (int(log.item.max(initial=0)) + 1) + log.item, return_inverse=True)[1]
        for j in range(targets.shape[1]):
            own = np.bincount(pair, np.where(known[:, j], targets[:, j] - self.log.prior[j], 0.0))
            sums[:, j] -= own[pair]
            counts[:, j] -= np.bincount(pair, known[:, j])[pair]
        return self.log.prior + sums / (counts + _OF_ITEMS.shrinkage)

    # --------------------------------------------------------------- tables
    def _targets(self, log: EventLog) -> np.ndarray:
        """Labels of the pair tasks and further measures, float64 [R, T]."""
        columns = [log.labels[:, self._label_columns], *(log.measures[n][:, None] for n in self.measures)]
        return np.concatenate(columns, axis=1).astype(np.float64)

    def _table(self, log: EventLog, statistics: RunningStatistics | None = None) -> EventTable:
        """What statistics (default: those of the log) read of a log."""
        time = log.time
        if statistics is None:
            statistics, targets = self.log, self._targets(log)
        else:
            # One time for all rows, after the past: what was known then is known to each, and none counts another.
            time, targets = np.full(len(log), AFTER_PAST), np.full((len(log), len(statistics.targets)), np.nan)
        read = log.item, log.user, log.user_features, log.candidate_features
        keys = statistic_keys(statistics, self.items, self.encoders, *read)
        return EventTable(time=time, keys=keys, targets=targets)

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
