"""The windows of an event log that a model reads.

A [`SequenceDataset`] has examples of an [`EventLog`]: *candidates* (which item, seen after how many of the
user's events, with which labels), cut into windows of at most `max_history` events. It is numpy only and without a
Python loop over events.

Letters: R events, P users, C candidates, F statistics, T tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from polyrec.core.schema import STATISTICS, TIME_GAP
from polyrec.data.augmentation import Transform, missing_rows, without_oldest
from polyrec.data.batching import BatchReader, WindowBatch
from polyrec.data.event_log import Candidates, EventLog, WindowSpans
from polyrec.data.prefix_sums import changes, pieces_of_runs
from polyrec.data.prior_history import PriorHistory
from polyrec.data.release import milliseconds
from polyrec.data.sampling import VIEW, check_keep_negatives, dropped_negatives, uniform
from polyrec.data.storage import Storage
from polyrec.data.ties import ShuffledTies, shuffle_ties
from polyrec.data.trending import Trending
from polyrec.data.untimed import Untimed

_CANDIDATES = 1024  # of a window at most; where more than half as many events fit into a window, twice as many as those


class WindowDataset(ABC):
    """What training reads: windows whose content may be drawn anew in every epoch."""

    epoch: int = 0
    seed: int = 0

    @abstractmethod
    def __len__(self) -> int:
        """Windows of an epoch, the same in all of them."""

    @abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]:
        """One window: the batch contract without the batch dimension, plus `candidate_rows`."""

    @property
    @abstractmethod
    def lengths(self) -> list[int]:
        """Padded-length proxy of each window of this epoch, for bucketing."""

    def set_epoch(self, epoch: int) -> None:
        """Draw for another epoch (trainer and data loader call this)."""
        self.epoch = epoch

    def set_seed(self, seed: int) -> None:
        """Draw by another seed (the trainer calls this with its own before each epoch)."""
        self.seed = seed


@dataclass(eq=False, repr=False)
class SequenceDataset(WindowDataset):
    """Windows of one log: what a `DataLoader` iterates and the collator turns into batches.

    A user's candidates are grouped by how much they may see: those that see (b * stride, (b + 1) * stride] events
    share a window that ends at their last visible event and holds at most `max_history` events (before a user's first
    event those of `log.prior_history`, as far as there is place). With
    `stride == max_history` each event is read once (training); a smaller stride re-reads events so that each
    candidate sees at least `max_history - stride` of them (evaluation). Very many candidates that see as much, as where
    a whole library has one timestamp, are several windows: a batch is as wide as its widest window.

    The options from `shuffle_ties` on are for training. What they draw depends on seed, epoch and the window or event
    alone, so that ranks agree and a resumed run draws the same; [`fixed`] turns the draws off.

    Args:
        log: the events.
        candidates: the examples.
        task_names: names of the T label columns.
        statistics: float32 [S, F] or None; rows 0..R-1 belong to the log's events, further rows to other views.
        max_history, stride: events per window, see above; the stride defaults to `max_history`.
        shuffle_ties: draw the order of events of one time anew in every epoch: their order in a file is mostly chance,
            and a model that sees one order only memorises it. Candidates stand where their event comes to
            stand. Of a log without times, so an example sees another part of its user's set in every epoch.
        seed: of all draws; in training the trainer's (`args.data_seed`, or `args.seed`) takes its place.
        own_view_tasks: tasks of candidates in the log's own view only (`statistic == event`): next items are
            no labels for a user whose latest events are hidden.
        delayed_share: of an event with two views, its own and a delayed one, an epoch uses the delayed one
            with this chance and else its own, so that an epoch costs no more than one without delays. None: both.
        keep_negatives: {task: share of its negatives that an epoch asks}, see `polyrec.data.sampling`; the label of the
            others is unknown in that task, and nothing else changes.
        transform: changes what a window shows of the history, see `polyrec.data.augmentation`.
        source: bool [R], events that the statistics of this set may count; None: all. Whoever computes them again for
            another view (`ExampleBuilder.without_updates`) keeps to it.
        untimed: shows a share of the windows as if nobody knew when their events happened; None: none.
        known_until: seconds; no candidate sees an event at or after it, nor do its statistics
            (`ExampleBuilder.without_updates`).
        folds: int64 [U], from 1, the fold of each user of the log, see `polyrec.data.neighbours`; None: in none.
        trending: what was popular at each time, counted of the events in `source`; None: no task reads it.
    """

    log: EventLog
    candidates: Candidates
    task_names: list[str]
    statistics: np.ndarray | None = None
    max_history: int = 200
    stride: int | None = None
    shuffle_ties: bool = False
    seed: int = 0
    own_view_tasks: tuple[str, ...] = ()
    delayed_share: float | None = None
    keep_negatives: dict[str, float] = field(default_factory=dict)
    transform: Transform | None = None
    source: np.ndarray | None = None
    untimed: Untimed | None = None
    known_until: float = np.inf
    folds: np.ndarray | None = None
    trending: Trending | None = None

    def __post_init__(self) -> None:
        log, candidates = self.log, self.candidates
        stride = self.max_history if self.stride is None else self.stride
        if not 1 <= stride <= self.max_history:
            raise ValueError(f"stride must be in 1..max_history = {self.max_history}, not {stride}")
        check_keep_negatives(self.keep_negatives, self.task_names, log.labels)
        self._own_view_columns = [self.task_names.index(name) for name in self.own_view_tasks]
        self.candidates = candidates = candidates.sorted_for(log)
        user = log.user[candidates.event]
        block = np.maximum(candidates.position - 1, 0) // stride
        first = pieces_of_runs(changes(user, block), len(user), max(_CANDIDATES, 2 * self.max_history))
        self._candidate_offsets = np.append(first, len(user))
        self._user = user[first]
        last_position = self.candidates.position[self._candidate_offsets[1:] - 1] if len(first) else first
        self._stop = last_position
        self._start = np.maximum((block[first] + 1) * stride - self.max_history, 0)
        self._two_views = self._find_two_views()

    def __len__(self) -> int:
        return len(self._user)

    @property
    def lengths(self) -> list[int]:
        """Events or (expected) candidates of each window, whichever are more."""
        events, candidates = self._stop - self._start, np.diff(self._candidate_offsets)
        if self.log.prior_history is not None:
            past = np.minimum(np.diff(self.log.prior_history.offsets)[self._user], self.log.prior_history.length)
            events = np.where(self._start == 0, np.minimum(events + past, self.max_history), events)
        if self.delayed_share is not None and self._two_views is not None:
            chance = np.where(self.own_view, 1 - self.delayed_share, self.delayed_share)
            candidates_before = np.concatenate([[0], np.cumsum(np.where(self._two_views, chance, 1.0))])
            candidates = np.ceil(np.diff(candidates_before[self._candidate_offsets])).astype(np.int64)
        return np.maximum(events, candidates).tolist()

    def keep(self, storage: Storage, name: str) -> None:
        """Let a storage have the candidates."""
        self.candidates = self.candidates.kept(storage, name)

    @property
    def own_view(self) -> np.ndarray:
        """Which candidates see all that the log knew at their time, bool [C]."""
        return self.candidates.statistic == self.candidates.event

    @property
    def num_candidates(self) -> int:
        """Candidates of all windows."""
        return len(self.candidates.event)

    def labels_by_task(self) -> dict[str, np.ndarray]:
        """{task: float32 [C]}, what [`labels`] says of each task, NaN = unknown."""
        return dict(zip(self.task_names, self.labels().T, strict=True))

    def __repr__(self) -> str:
        return (
            f"SequenceDataset({len(self):,} windows, {self.num_candidates:,} candidates, tasks={self.task_names}, "
            f"max_history={self.max_history})"
        )

    def __getitem__(self, index: int | slice) -> Any:
        """One window of this epoch, or a list of those of a slice."""
        if isinstance(index, slice):
            return [self.window(n, self.epoch) for n in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        return self.window(index % len(self), self.epoch)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]] | WindowBatch:
        """What a data loader asks for: windows that the collator reads at once, where nothing changes them one by one.

        (A loader's fetcher looks for this method before it calls `__getitem__` for each index.)
        """
        if not BatchReader.supports(self):
            return [self[index] for index in indices]
        return WindowBatch(self._reader, indices)

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process: its reader looks into its own log."""
        return {name: value for name, value in self.__dict__.items() if name != "_reader"}

    @cached_property
    def _reader(self) -> BatchReader:
        return BatchReader(self)

    def spans(self, indices: np.ndarray) -> WindowSpans:
        """Where windows lie, before any draw."""
        candidates = self._candidate_offsets[indices], self._candidate_offsets[indices + 1]
        return WindowSpans(self._user[indices], self._start[indices], self._stop[indices], *candidates)

    def window(self, index: int, epoch: int) -> dict[str, Any]:
        """One window as an epoch sees it: the batch contract without the batch dimension, plus `candidate_rows`.

        A window whose candidates all have another view this time has no candidates and no events.
        """
        log, user = self.log, self._user[index]
        first, start, stop = log.offsets[user] + self._start[index], self._start[index], self._stop[index]
        candidate = np.arange(self._candidate_offsets[index], self._candidate_offsets[index + 1])
        events, position = np.arange(first, first + stop - start), self.candidates.position[candidate] - start
        if self.shuffle_ties:
            moved = self.shuffled(np.array([index]), epoch, candidate, np.zeros_like(candidate), position)
            events, position = moved.rows[: len(events)], moved.positions
        if self.delayed_share is not None:
            keep = self.drawn_view(candidate, epoch)
            candidate, position = candidate[keep], position[keep]
            events = events[: position.max(initial=0)]
        rows, statistic = self.candidates.event[candidate], self.candidates.statistic[candidate]
        event_features = {k: v[events] for k, v in log.event_features.items()}
        if self.shuffle_ties and TIME_GAP in event_features:
            # Events of one time change places, their times do not: the gap belongs to the place, or the first event of
            # a tie would keep the gap before the tie wherever it comes to stand.
            event_features[TIME_GAP] = log.event_features[TIME_GAP][first : first + len(events)]
        event_features |= {k: v[events] for k, v in log.candidate_features.items()}
        candidate_features = {k: v[rows] for k, v in log.candidate_features.items()}
        if self.statistics is not None:
            candidate_features[STATISTICS] = self.statistics[statistic]
        if self.untimed is not None and self.untimed.drawn(np.array([index]), self.seed, epoch)[0]:
            event_features = self.untimed.events_of(event_features)
            candidate_features = self.untimed.candidates_of(candidate_features)
        labels = self.candidate_labels(candidate, epoch)
        found = {
            "item_ids": log.item[events],
            "event_features": event_features,
            "user_features": {k: v[user] for k, v in log.user_features.items()},
            "candidate_ids": log.item[rows],
            "candidate_positions": position,
            "candidate_times": milliseconds(log.time[rows]),
            "candidate_features": candidate_features,
            "labels": {task: labels[:, j] for j, task in enumerate(self.task_names)},
            "candidate_rows": candidate,
        }
        if self.folds is not None:
            found["user_fold"] = self.folds[user]
        if log.sample_weight:
            found["sample_weight"] = {task: values[rows] for task, values in log.sample_weight.items()}
        if self.trending is not None:
            found |= self.trending.read(np.minimum(log.time[rows], self.known_until))
        if log.queries is not None:
            found |= log.queries.window(rows)
        if log.prior_history is not None and start == 0 and len(candidate):
            found = self._after_past(log.prior_history, user, found)
        return found if self.transform is None else self._transformed(self.transform, found, index, epoch)

    def _after_past(self, past: PriorHistory, user: int, window: dict[str, Any]) -> dict[str, Any]:
        """A window that begins with the user's first event, after as much of their past as it has place for."""
        read = past.read(user, self.max_history - len(window["item_ids"]))
        item, known = past.item[read], past.event_features
        features = {
            name: np.concatenate([known[name][read] if name in known else missing_rows(values, len(item)), values])
            for name, values in window["event_features"].items()
        }
        return window | {
            "item_ids": np.concatenate([item, window["item_ids"]]),
            "event_features": features,
            "candidate_positions": window["candidate_positions"] + len(item),
        }

    def _transformed(self, transform: Transform, window: dict[str, Any], index: int, epoch: int) -> dict[str, Any]:
        window = transform(window, np.random.default_rng((self.seed, epoch, index, 1)))  # 1: not the draw of the ties
        beyond = len(window["item_ids"]) - self.max_history
        return without_oldest(window, beyond) if beyond > 0 else window

    def shuffled(
        self, indices: np.ndarray, epoch: int, candidate: np.ndarray, window: np.ndarray, positions: np.ndarray
    ) -> ShuffledTies:
        """Some windows with events of one time exchanged.

        Args:
            candidate, window: candidates of all windows, and the place in `indices` of the window of each.
            positions: how many events of its window each candidate may see.
        """
        spans, rows = self.spans(indices), self.candidates.event[candidate]
        return shuffle_ties(
            self.log.offsets[spans.user] + spans.start,
            spans.stop - spans.start,
            window,
            rows,
            positions,
            self.candidates.statistic[candidate] == rows,
            self.log.time if self.log.set_until is None else None,
            [(self.seed, epoch, int(index)) for index in indices],
        )

    def _find_two_views(self) -> np.ndarray | None:
        """Which candidates' events have their own view and a delayed one, bool [C]; None: no choice."""
        if self.delayed_share is None:
            return None
        if not 0 <= self.delayed_share <= 1:
            raise ValueError(f"delayed_share is {self.delayed_share}; it must be in [0, 1], or None to use both views")
        own, event = self.own_view, self.candidates.event
        views = np.stack([np.bincount(event[is_view], minlength=len(self.log)) for is_view in (own, ~own)])
        if views.max(initial=0) > 1:
            raise ValueError(
                f"event {int(views.max(axis=0).argmax())} of the log occurs {views.max()} times in one kind of view: "
                "delayed_share chooses between the own view and one delayed view of each event"
            )
        return (views.min(axis=0) > 0)[event]

    def drawn_view(self, candidate: np.ndarray, epoch: int) -> np.ndarray:
        """Which of the candidates this epoch uses, bool; every event once."""
        assert self._two_views is not None
        rows = self.candidates.event[candidate]
        delayed = uniform(rows, self.seed, epoch, VIEW) < self.delayed_share
        return ~self._two_views[candidate] | (delayed == (self.candidates.statistic[candidate] != rows))

    def candidate_labels(self, candidate: np.ndarray, epoch: int | None) -> np.ndarray:
        """Labels that an epoch uses, float32 [len(candidate), T]; None: before negatives are drawn."""
        rows = self.candidates.event[candidate]
        labels = self.log.labels[rows]
        if self._own_view_columns:
            labels[np.ix_(self.candidates.statistic[candidate] != rows, self._own_view_columns)] = np.nan
        if epoch is None:
            return labels
        for task, share in self.keep_negatives.items():
            column = labels[:, self.task_names.index(task)]
            column[dropped_negatives(column, rows, share, self.seed, epoch, task)] = np.nan
        return labels

    def labels(self) -> np.ndarray:
        """Labels that candidates are asked for, in `candidate_rows` order and before any draw, float32 [C, T]."""
        return self.candidate_labels(np.arange(self.num_candidates), epoch=None)

    def user_codes(self) -> np.ndarray:
        """User of each candidate in `candidate_rows` order, int64 [C], see [`EventLog.user_codes`]."""
        return self.log.user_codes[self.candidates.event]

    def with_candidates(
        self, candidates: Candidates, statistics: np.ndarray | None, stride: int | None = None
    ) -> SequenceDataset:
        """Other examples of the same log, everything else as it is here."""
        stride = self.stride if stride is None else stride
        return replace(self, candidates=candidates, statistics=statistics, stride=stride)

    def fixed(self) -> SequenceDataset:
        """The same examples without random choices, as evaluations use them: each candidate, every label."""
        return replace(self, shuffle_ties=False, delayed_share=None, keep_negatives={}, transform=None, untimed=None)
