"""Requests: a user's history and candidates as one window, with features as they are in training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from polyrec.core.schema import TIME_GAP, label_columns
from polyrec.core.settings import nearest
from polyrec.core.stack import caller_level
from polyrec.data.columns import FIRST
from polyrec.data.derived import AGE, ages, derived_names
from polyrec.data.encoding import time_gap
from polyrec.data.event_log import Candidates, EventLog
from polyrec.data.later_events import shown_time
from polyrec.data.log_state import LogState
from polyrec.data.pipeline import LogPipeline
from polyrec.data.request_reader import RequestReader, read_scalar
from polyrec.data.requests import ParsedRequest, continued, gathered, request_table, variants, without_times
from polyrec.data.sequences import SequenceDataset
from polyrec.data.tables import as_array, first_bad_row, normalise_ids


class RequestLog(NamedTuple):
    """Requests encoded: of each user first the events and then the candidates.

    Args:
        log: one user per request, in their order.
        candidates: int64 [B], how many of a user's last rows are candidates, at least one.
        measured: what statistics know of the events, see `LogStatistics.measure`; None: not yet.
    """

    log: EventLog
    candidates: np.ndarray
    measured: Mapping[str, np.ndarray] | None = None

    @property
    def events(self) -> np.ndarray:
        """How many of a user's rows are events, int64 [B]."""
        return np.diff(self.log.offsets) - self.candidates

    def event_rows(self) -> list[np.ndarray]:
        """The rows of each user's events, int64."""
        begins = zip(self.log.offsets[:-1].tolist(), self.events.tolist(), strict=True)
        return [np.arange(begin, begin + n) for begin, n in begins]

    def event_ages(self) -> list[np.ndarray]:
        """Seconds between each event of a user and the request, float64; 0 where its time is not known."""
        log, now = self.log, self.log.time[self.log.offsets[1:] - 1]
        known = np.ones(len(log), dtype=bool) if log.untimed is None else ~log.untimed
        return [
            np.where(known[rows], time - log.time[rows], 0.0) for rows, time in zip(self.event_rows(), now, strict=True)
        ]

    def history_items(self) -> list[np.ndarray]:
        """The items of each whole history, int64."""
        log, past = self.log, self.log.prior_history
        found = [log.item[rows] for rows in self.event_rows()]
        if past is None:
            return found
        bounds = zip(past.offsets[:-1], past.offsets[1:], found, strict=True)
        return [np.concatenate([past.item[begin:end], own]) for begin, end, own in bounds]


@dataclass(frozen=True)
class RequestBuilder:
    """Makes windows of requests; see `PolyRecProcessor.request`.

    Args:
        pipeline: reads what requests hold as it reads logs.
        state: what is known of the log so far.
        max_history: events per window.
        log_columns: of the log that was fitted, also those that nothing reads; [] = unknown.
        label_summary: of the training rows, {task: ...}.
    """

    pipeline: LogPipeline
    state: LogState
    max_history: int
    log_columns: Sequence[str]
    label_summary: Mapping[str, Mapping[str, Any]]

    @property
    def reader(self) -> RequestReader:
        """What reads and checks the arguments."""
        own = self.pipeline
        derived, candidate = derived_names(own.columns), own.event_encoders["candidate"]
        return RequestReader(
            own.columns,
            own.tasks,
            feedback=own.event_encoders["event"],
            context={name: encoder for name, encoder in candidate.items() if name not in derived},
            user=own.users.encoders,
            measured=() if own.statistics is None else own.statistics.measures,
            log_columns=self.log_columns,
            labels=self.label_summary,
        )

    def read(self, history: Any = None, **given: Any) -> ParsedRequest:
        """A request checked; arguments as of `PolyRecProcessor.request`.

        Raises:
            ValueError: names what is wrong with which argument.
        """
        if unknown := [name for name in given if name not in ParsedRequest._fields]:
            raise TypeError(f"a request has no argument {unknown[0]!r}; {nearest(unknown[0], ParsedRequest._fields)}")
        columns, reader = self.pipeline.columns, self.reader
        if given.get("time") is not None and columns.time is None:
            raise ValueError(
                "time is given, but the log that was fitted has no times (columns.time: null): leave it out"
            )
        user = reader.attributes(given.get("user"), "user", reader.user)
        context = reader.attributes(given.get("context"), "context", reader.context)
        table, time = reader.history(history), reader.time(given.get("time"))
        user_id = reader.user_id(given.get("user_id"))
        reader.check_alike(table, context)
        query = None if given.get("query") is None else read_scalar("query", given["query"])
        if query is not None and columns.query is None:
            raise ValueError("this processor reads no queries: fit it with columns.query and a text encoder")
        self._check_time(time, user_id)
        if user_id is not None:
            self._check_stored()
        return ParsedRequest(table, time, user_id, user, context, query)

    def log(self, requests: Sequence[ParsedRequest], items: Sequence[np.ndarray]) -> RequestLog:
        """The events of requests, which are [`alike`][polyrec.data.requests.alike], and then their items, encoded;
        running statistics come later.

        Args:
            items: of each request, int64, rows of the item table.
        """
        own = self.pipeline
        columns, encoders = own.columns, own.event_encoders
        known = _known_users(requests)
        stored, after = self._events_of([requests[n].user_id for n in known]), np.full(len(requests), -np.inf)
        if stored is not None:
            np.maximum.at(after, np.array(known)[stored.user], stored.time)
        rows = request_table(
            requests,
            [own.items.ids.take(pa.array(self._checked(np.asarray(wanted)) - FIRST)) for wanted in items],
            columns,
            {*encoders["event"], *label_columns(own.tasks)},
            self.reader.context,
            self.state.latest,
            after,
        )
        log = own.encode(rows.table)
        log.time = rows.seconds  # a unit and back may round
        log.event_features[TIME_GAP] = time_gap(log)
        if rows.untimed.any():
            derived = {name: encoders["candidate"][name] for name in derived_names(columns)}
            without_times(log, rows.untimed, derived)
        self._set_users(log, requests)
        log = log if stored is None else continued(stored, log, np.array(known))
        return RequestLog(log, np.array([len(wanted) for wanted in items], dtype=np.int64))

    def _checked(self, items: np.ndarray) -> np.ndarray:
        """Candidates, which are rows of the item table."""
        number = len(self.pipeline.items)
        unknown = first_bad_row((items < FIRST) | (items >= number))
        if unknown is not None:
            raise ValueError(
                f"items[{unknown}] is {items[unknown]}: give rows of the item table, {FIRST}..{number - 1}"
            )
        return items

    def _set_users(self, log: EventLog, requests: Sequence[ParsedRequest]) -> None:
        """Give the log the attributes of its users, those that are not given as stored for the id."""
        users, known = self.pipeline.users, _known_users(requests)
        rows = users.rows(pa.array([requests[n].user_id for n in known])) if known else known
        for name, encoder in users.encoders.items():
            if encoder.kind == "text":
                continue
            what = f"user attribute {name!r}"
            values = encoder.encode(as_array([None] * len(requests), what), what)
            values[known] = users.encoded[name][rows]
            for n, request in enumerate(requests):
                if name in request.user:
                    values[n] = encoder.encode(as_array([request.user[name]], what), what)[0]
            log.user_features[name] = values

    def _check_time(self, time: float | None, user_id: Any) -> None:
        """Refuse a request that cannot be served as of its time."""
        if time is None or time > self.state.counted:
            return
        what = f"time {shown_time(time)} is not after {shown_time(self.state.counted)}, the latest event counted"
        if user_id is not None:
            raise ValueError(
                f"{what}, and statistics know only now: ask for a later time, or `resume` the log up to then"
            )
        warnings.warn(f"{what}: running statistics are those of now", stacklevel=caller_level())

    def _check_stored(self) -> None:
        if self.pipeline.columns.history is not None:
            raise ValueError(
                "user_id is given, but rows bring their own lists (columns.history), and no user events are stored: "
                "give the list as the history, without user_id"
            )
        if self.state.stored_events is None:
            raise ValueError(
                "user_id is given, but this processor has no stored events (they never leave with a shared model): "
                "`resume` the log first, or give the user's whole history without user_id"
            )

    def _events_of(self, user_ids: list[Any]) -> EventLog | None:
        """Stored events of users, who are numbered as they are given; None if nothing is stored."""
        stored = self.state.stored_events
        if not user_ids or stored is None or stored.is_empty:
            return None
        return stored.of(normalise_ids(pa.array(user_ids), "user_id"))

    def with_candidates(self, requests: RequestLog, users: np.ndarray, items: Sequence[np.ndarray]) -> RequestLog:
        """Some requests (int64 [V]) with other candidates, at least one each, instead of what they have.

        A request's candidates differ in their item alone, and in its age where that is read.
        """
        num_candidates = np.array([len(own) for own in items], dtype=np.int64)
        lengths = requests.events[users] + num_candidates
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        events = np.repeat(requests.events[users], lengths)
        row = np.repeat(requests.log.offsets[users], lengths) + np.minimum(within, events)
        log, is_candidate = (
            gathered(requests.log, row, np.repeat(np.arange(len(users)), lengths), users),
            within >= events,
        )
        log.item[is_candidate] = self._checked(np.concatenate(items))
        if AGE in log.candidate_features:
            own = self.pipeline
            known = ages(own.columns, own.items, log.item[is_candidate], log.time[is_candidate])
            encoder = own.event_encoders["candidate"][AGE]
            log.candidate_features[AGE][is_candidate] = encoder.encode(known, f"interactions: column {AGE!r}")
        measured = requests.measured
        measured = None if measured is None else {level: values[row] for level, values in measured.items()}
        return RequestLog(log, num_candidates, measured)

    def measured(self, requests: RequestLog) -> RequestLog:
        """The same requests, of whose events statistics need to know nothing more."""
        counter = self.state.statistics
        if counter is None or counter.scaler is None:
            return requests
        return requests._replace(measured=counter.measure(requests.log, self.state.stored_events))

    def windows(
        self, requests: RequestLog, keep_VL: np.ndarray | None = None, statistics: bool = True
    ) -> list[dict[str, Any]]:
        """Windows for the collator, see `PolyRecProcessor.request_windows`.

        Args:
            statistics: False: those of candidates are left unknown, for whoever only reads the histories of requests
                that are [`measured`].
        """
        log, num_candidates, happened, measured = requests.log, requests.candidates, requests.events, requests.measured
        if keep_VL is not None:
            measured = None
            [number] = num_candidates
            log = variants(log, np.pad(keep_VL, ((0, 0), (0, number)), constant_values=True))
            happened, num_candidates = keep_VL.sum(axis=1), np.full(len(keep_VL), number)
        position = np.repeat(happened, num_candidates)
        within = np.arange(num_candidates.sum()) - np.repeat(np.cumsum(num_candidates) - num_candidates, num_candidates)
        event = np.repeat(log.offsets[:-1], num_candidates) + position + within
        counted = self._statistics(log, event, measured, statistics)
        candidates = Candidates(event, position, np.arange(len(event)))
        # One example, one window: a stride of 1 lets it reach back as far as `max_history` goes.
        names = [t.name for t in self.pipeline.tasks]
        windows = SequenceDataset(log, candidates, names, counted, self.max_history, stride=1)
        trends = self.state.trends.of_requests(log, self._later_events(log, happened), num_candidates.tolist())
        return [windows[v] | own for v, own in enumerate(trends)]

    def _statistics(
        self, log: EventLog, candidates: np.ndarray, measured: Mapping[str, np.ndarray] | None, known: bool
    ) -> np.ndarray | None:
        """Features of candidates, rows of the log; its events get their residuals."""
        counter = self.state.statistics
        if counter is None or counter.scaler is None:
            return None
        if not known:
            return np.full((len(candidates), len(counter.names)), np.nan, dtype=np.float32)
        rows = np.zeros(len(log), dtype=bool)
        rows[candidates] = True
        return counter.request(log, rows, self.state.stored_events, measured)

    def _later_events(self, log: EventLog, happened: np.ndarray) -> list[np.ndarray]:
        """The events of each request since the latest one counted, and before the request."""
        now = log.time[log.offsets[:-1] + happened]
        later = (log.time > self.state.counted) & (log.time < now[log.user])
        if log.untimed is not None:
            later &= ~log.untimed
        return [
            begin + np.flatnonzero(later[begin : begin + n])
            for begin, n in zip(log.offsets[:-1], happened, strict=True)
        ]


def _known_users(requests: Sequence[ParsedRequest]) -> list[int]:
    """Which requests give a user id."""
    return [n for n, request in enumerate(requests) if request.user_id is not None]
