"""Many windows of a data set read at once: the batches of the collator without a Python loop over windows.

Letters: B windows, L events, C candidates, R events of the log, E events of the past.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from polyrec.core.schema import STATISTICS, TIME_GAP
from polyrec.data.event_log import Candidates, EventLog, WindowSpans
from polyrec.data.release import milliseconds
from polyrec.data.ties import ShuffledTies
from polyrec.data.trending import Trending
from polyrec.data.untimed import Untimed


def tensors(values: dict[str, Any]) -> dict[str, Any]:
    """Arrays in nested dicts as tensors."""
    return {n: tensors(v) if isinstance(v, dict) else torch.from_numpy(v) for n, v in values.items()}


class Windows(Protocol):
    """What is read of a [`~polyrec.data.sequences.SequenceDataset`], which makes readers of itself."""

    log: EventLog
    candidates: Candidates
    task_names: list[str]
    statistics: np.ndarray | None
    max_history: int
    shuffle_ties: bool
    seed: int
    epoch: int
    delayed_share: float | None
    transform: Any
    untimed: Untimed | None
    known_until: float
    folds: np.ndarray | None
    trending: Trending | None

    def spans(self, indices: np.ndarray) -> WindowSpans:
        """Where windows lie."""

    def shuffled(
        self, indices: np.ndarray, epoch: int, candidate: np.ndarray, window: np.ndarray, positions: np.ndarray
    ) -> ShuffledTies:
        """Some windows with events of one time exchanged."""

    def drawn_view(self, candidate: np.ndarray, epoch: int) -> np.ndarray:
        """Which of the candidates an epoch uses."""

    def candidate_labels(self, candidate: np.ndarray, epoch: int | None) -> np.ndarray:
        """Labels that an epoch uses."""


class WindowBatch(NamedTuple):
    """Windows that the collator is to read at once."""

    reader: BatchReader
    indices: list[int]


class BatchReader:
    """`reader(indices)` gives what the collator makes of `[dataset[i] for i in indices]`, many times faster.

    Windows of few events, as impression logs have them, cost more to cut out and pad one by one than the model costs to
    train on them. Data sets with a `transform` change windows one by one; `supports` says so.

    Args:
        dataset: what to read.
    """

    def __init__(self, dataset: Windows) -> None:
        if not self.supports(dataset):
            raise ValueError("windows with a transform are read one by one: use the collator")
        self.dataset = dataset
        log, past = dataset.log, dataset.log.prior_history
        known = {} if past is None else past.event_features
        self._padding = len(log) + (0 if past is None else len(past.item))
        self._items = _Table(log.item, None if past is None else past.item)
        features = {**log.event_features, **log.candidate_features}
        self._events = {name: _Table(values, known.get(name)) for name, values in features.items()}
        self._statistics = None if dataset.statistics is None else torch.from_numpy(dataset.statistics)
        self._users = {name: torch.from_numpy(values) for name, values in log.user_features.items()}

    @staticmethod
    def supports(dataset: Windows) -> bool:
        """Whether the windows of a data set can be read at once."""
        return dataset.transform is None

    def __call__(self, indices: list[int] | np.ndarray, multiple: int = 1) -> dict[str, Any]:
        """One padded batch of windows as the data set's epoch sees them; lengths are rounded up to a `multiple`."""
        data, log = self.dataset, self.dataset.log
        indices = np.asarray(indices)
        windows = data.spans(indices)
        candidate_BC, position_BC, moved = self._candidates(indices, windows, multiple)
        real_BC = candidate_BC >= 0
        most = np.where(real_BC, position_BC, 0).max(axis=1, initial=0)
        start, stop = windows.start, windows.stop
        if data.delayed_share is not None:
            stop = np.maximum(np.minimum(stop, most), start)
        before = np.zeros(len(start), dtype=np.int64)
        if log.prior_history is not None:
            held = np.minimum(np.diff(log.prior_history.offsets)[windows.user], log.prior_history.length)
            before = np.where(
                (start == 0) & real_BC.any(axis=1), np.minimum(held, data.max_history - (stop - start)), 0
            )
        index_BL = self._event_rows(windows.user, start, stop, before, multiple)
        events_BL = index_BL if moved is None else _moved(index_BL, before, stop - start, moved)
        rows_BC = data.candidates.event[np.where(real_BC, candidate_BC, 0)]
        candidate_index = np.where(real_BC, rows_BC, self._padding)
        candidate_rows, event_rows = (_Rows(rows, len(log), self._padding) for rows in (candidate_index, events_BL))
        # A gap belongs to the place, or the first of some events of one time would keep it wherever it comes to stand.
        gap_rows = event_rows if moved is None else _Rows(index_BL, len(log), self._padding)
        features = {name: self._events[name].take(candidate_rows) for name in log.candidate_features}
        if self._statistics is not None:
            view_BC = torch.from_numpy(data.candidates.statistic[np.where(real_BC, candidate_BC, 0)])
            features[STATISTICS] = _take(self._statistics, view_BC.numpy())
            features[STATISTICS][torch.from_numpy(~real_BC)] = float("nan")
        labels_BCT = data.candidate_labels(np.where(real_BC, candidate_BC, 0).ravel(), data.epoch).reshape(
            *real_BC.shape, -1
        )
        labels_BCT[~real_BC] = np.nan
        batch = {
            "item_ids": self._items.take(event_rows),
            "event_features": {
                name: table.take(gap_rows if name == TIME_GAP else event_rows) for name, table in self._events.items()
            },
            "user_features": {name: table[torch.from_numpy(windows.user)] for name, table in self._users.items()},
            "candidate_ids": torch.from_numpy(np.where(real_BC, log.item[rows_BC], 0)),
            "candidate_positions": torch.from_numpy(
                np.where(real_BC, position_BC - start[:, None] + before[:, None], 0)
            ),
            "candidate_times": torch.from_numpy(np.where(real_BC, milliseconds(log.time[rows_BC]), 0)),
            "candidate_features": features,
            "labels": {t: torch.from_numpy(labels_BCT[..., j].copy()) for j, t in enumerate(data.task_names)},
            "candidate_rows": torch.from_numpy(candidate_BC),
        }
        if data.folds is not None:
            batch["user_fold"] = torch.from_numpy(data.folds[windows.user])
        if data.trending is not None:
            found = data.trending.read(np.where(real_BC, np.minimum(log.time[rows_BC], data.known_until), -np.inf))
            batch |= tensors(found)
        if data.untimed is not None:
            data.untimed.hide(data.untimed.drawn(indices, data.seed, data.epoch), batch)
        if log.sample_weight:
            weights = {n: np.where(real_BC, v[rows_BC], np.nan) for n, v in log.sample_weight.items()}
            batch["sample_weight"] = {n: torch.from_numpy(v.astype(np.float32)) for n, v in weights.items()}
        if log.queries is not None:
            batch |= {n: torch.from_numpy(v) for n, v in log.queries.batch(rows_BC, real_BC).items()}
        return batch

    def _candidates(
        self, indices: np.ndarray, windows: WindowSpans, multiple: int
    ) -> tuple[np.ndarray, np.ndarray, ShuffledTies | None]:
        """Candidates of this epoch, int64 [B, C] with -1 = padding, how many events of the log's user each may
        see, and where events of one time come to stand."""
        data, first = self.dataset, windows.first_candidate
        lengths = windows.last_candidate - first
        flat = np.repeat(first - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        window = np.repeat(np.arange(len(first)), lengths)
        position, moved = data.candidates.position[flat], None
        if data.shuffle_ties:
            start = windows.start[window]
            moved = data.shuffled(indices, data.epoch, flat, window, position - start)
            position = moved.positions + start
        if data.delayed_share is not None:
            keep = data.drawn_view(flat, data.epoch)
            flat, window, position = flat[keep], window[keep], position[keep]
        candidate, positions = (_pad(values, window, len(first), multiple) for values in (flat, position))
        return candidate, np.maximum(positions, 0), moved

    def _event_rows(
        self, user: np.ndarray, start: np.ndarray, stop: np.ndarray, before: np.ndarray, multiple: int
    ) -> np.ndarray:
        """Rows of the event tables, int64 [B, L]: `before` events of the past, then start:stop of the user's."""
        log, past = self.dataset.log, self.dataset.log.prior_history
        length = before + stop - start
        position_BL = np.arange(_rounded(length, multiple)) - before[:, None]
        rows_BL = (log.offsets[user] + start)[:, None] + position_BL
        if past is not None:
            rows_BL = np.where(position_BL < 0, (len(log) + past.offsets[user + 1])[:, None] + position_BL, rows_BL)
        return np.where(position_BL < (stop - start)[:, None], rows_BL, self._padding)


def _moved(index_BL: np.ndarray, before: np.ndarray, events: np.ndarray, moved: ShuffledTies) -> np.ndarray:
    """Rows of the event tables where events of one time have been exchanged, [B, L]."""
    position_BL = np.arange(index_BL.shape[1]) - before[:, None]
    is_event_BL = (position_BL >= 0) & (position_BL < events[:, None])
    return np.where(is_event_BL, moved.rows[np.where(is_event_BL, moved.begins[:, None] + position_BL, 0)], index_BL)


class _Rows:
    """Rows of the log's events, of those of the past (from `events` on) and of padding, [B, X], for `_Table.take`."""

    def __init__(self, rows: np.ndarray, events: int, padding: int) -> None:
        self.shape, flat = rows.shape, rows.reshape(-1)
        self.of_log = torch.from_numpy(np.minimum(flat, max(events - 1, 0)))
        self.padded = torch.from_numpy(np.flatnonzero(flat >= padding))
        self.before = torch.from_numpy(np.flatnonzero((flat >= events) & (flat < padding)))
        self.of_past = torch.from_numpy(flat[self.before.numpy()] - events)


class _Table:
    """A column of the log and of the past, which are looked into and not copied: each worker has a reader.

    Args:
        values: of the log's events, [R(, K)].
        before: of those of the past, [E(, K)]; None: missing.
    """

    def __init__(self, values: np.ndarray, before: np.ndarray | None) -> None:
        self.values, self.before = _view(values), None if before is None else _view(before.astype(values.dtype))
        self.missing = float("nan") if values.dtype.kind == "f" else 0

    def take(self, rows: _Rows) -> Tensor:
        """Values of rows, [B, X(, K)]; `index_select` is faster than indexing on CPU."""
        found = self.values.index_select(0, rows.of_log).index_fill_(0, rows.padded, self.missing)
        if len(rows.before):
            if self.before is None:
                found.index_fill_(0, rows.before, self.missing)
            else:
                found.index_copy_(0, rows.before, self.before.index_select(0, rows.of_past))
        return found.view(*rows.shape, *found.shape[1:])


def _view(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def _rounded(lengths: np.ndarray, multiple: int) -> int:
    return -(-max(int(lengths.max(initial=0)), 1) // multiple) * multiple


def _pad(flat: np.ndarray, window: np.ndarray, windows: int, multiple: int) -> np.ndarray:
    """Values of ascending windows as rows, int64 [B, C], filled up with -1."""
    lengths = np.bincount(window, minlength=windows)
    inside = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    padded = np.full((windows, _rounded(lengths, multiple)), -1, dtype=np.int64)
    padded[window, inside] = flat
    return padded


def _take(table: Tensor, rows: np.ndarray) -> Tensor:
    """Rows of a table, [R, ...] and [B, X] -> [B, X, ...]; `index_select`, which is faster than indexing on CPU."""
    index = torch.from_numpy(rows.reshape(-1))
    return table.index_select(0, index).view(*rows.shape, *table.shape[1:])
