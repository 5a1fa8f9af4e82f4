"""Requests: a user's history and candidates as one window, with features as they are in training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from polyrec.core.schema import TIME_GAP, label_columns
from polyrec.core.stack import caller_level
from polyrec.data.columns import FIRST
from polyrec.data.derived import derived_names
from polyrec.data.encoding import time_gap
from polyrec.data.event_log import Candidates, EventLog
from polyrec.data.log_state import LogState
from polyrec.data.pipeline import LogPipeline
from polyrec.data.request_reader import RequestReader, read_scalar
from polyrec.data.requests import continued, request_table, variants, without_times
from polyrec.data.sequences import SequenceDataset
from polyrec.data.statistics import shown_time
from polyrec.data.tables import as_array, first_bad_row, normalise_ids


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

    def log(
        self,
        history: Any,
        items: np.ndarray,
        *,
        user_id: Any = None,
        user: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        time: Any = None,
        query: str | None = None,
    ) -> EventLog:
        """The events of a request and then its items, encoded; its running statistics come later."""
        own, reader = self.pipeline, self.reader
        columns, encoders = own.columns, own.event_encoders
        feedback = {*encoders["event"], *label_columns(own.tasks)}
        if time is not None and columns.time is None:
            raise ValueError(
                "time is given, but the log that was fitted has no times (columns.time: null): leave it out"
            )
        user = reader.attributes(user, "user", own.users.encoders)
        context = reader.attributes(context, "context", reader.context)
        history, time, user_id = reader.history(history), reader.time(time), reader.user_id(user_id)
        reader.check_alike(history, context)
        known_context = {n: context.get(n) for n in reader.context}
        items = np.asarray(items)
        num_items = len(own.items)
        unknown = first_bad_row((items < FIRST) | (items >= num_items))
        if unknown is not None:
            raise ValueError(
                f"items[{unknown}] is {items[unknown]}: give rows of the item table, {FIRST}..{num_items - 1}"
            )
        candidate_ids = own.items.ids.take(pa.array(items - FIRST))
        query = None if query is None else read_scalar("query", query)
        if query is not None and columns.query is None:
            raise ValueError("this processor reads no queries: fit it with columns.query and a text encoder")
        stored = self._events_of(user_id, time)
        after = stored.time.max(initial=-np.inf) if stored is not None else -np.inf
        table, seconds, timed = request_table(
            history, candidate_ids, columns, feedback, known_context, time, self.state.latest, query, after
        )
        log = own.encode(table)
        log.time = seconds  # a unit and back may round
        log.event_features[TIME_GAP] = time_gap(log)
        if not timed:
            derived = {name: encoders["candidate"][name] for name in derived_names(columns)}
            without_times(log, len(log) - len(items), derived)
        self._set_user(log, user, user_id)
        return log if stored is None else continued(stored, log)

    def _set_user(self, log: EventLog, user: Mapping[str, Any], user_id: Any) -> None:
        """Give the log the attributes of its user, those that are not given as stored for the id."""
        users = self.pipeline.users
        row = None if user_id is None else users.rows(pa.array([user_id]))
        for name, encoder in users.encoders.items():
            if encoder.kind == "text":
                continue
            if row is not None and name not in user:
                log.user_features[name] = users.encoded[name][row]
            else:
                values = as_array([user.get(name)], f"user attribute {name!r}")
                log.user_features[name] = encoder.encode(values, f"user attribute {name!r}")

    def _events_of(self, user_id: Any, time: float | None) -> EventLog | None:
        """Stored events of a user, None if there are none; refuses requests that cannot be served as of their time."""
        if time is not None and time <= self.state.counted:
            what = f"time {shown_time(time)} is not after {shown_time(self.state.counted)}, the latest event counted"
            if user_id is not None:
                raise ValueError(
                    f"{what}, and statistics know only now: ask for a later time, or `resume` the log up to then"
                )
            warnings.warn(f"{what}: running statistics are those of now", stacklevel=caller_level())
        if user_id is None:
            return None
        if self.pipeline.columns.history is not None:
            raise ValueError(
                "user_id is given, but rows bring their own lists (columns.history), and no user events are stored: "
                "give the list as the history, without user_id"
            )
        stored = self.state.stored_events
        if stored is None:
            raise ValueError(
                "user_id is given, but this processor has no stored events (they never leave with a shared model): "
                "`resume` the log first, or give the user's whole history without user_id"
            )
        return None if stored.is_empty else stored.of(normalise_ids(pa.array([user_id]), "user_id"))

    def windows(self, log: EventLog, num_candidates: int, keep_VL: np.ndarray | None = None) -> list[dict[str, Any]]:
        """Windows for the collator, see `PolyRecProcessor.request_windows`."""
        events = len(log) - num_candidates
        if keep_VL is not None:
            log = variants(log, np.pad(keep_VL, ((0, 0), (0, num_candidates)), constant_values=True))
        statistics = self.state.statistics
        counted = None if statistics is None else statistics.request(log, self.state.stored_events)
        happened_V = np.array([events]) if keep_VL is None else keep_VL.sum(axis=1)
        candidates = Candidates(
            (log.offsets[:-1, None] + happened_V[:, None] + np.arange(num_candidates)).ravel(),
            np.repeat(happened_V, num_candidates),
        )
        # One example, one window: a stride of 1 lets it reach back as far as `max_history` goes.
        names = [t.name for t in self.pipeline.tasks]
        windows = SequenceDataset(log, candidates, names, counted, self.max_history, stride=1)
        return [windows[v] | self._trending(log, v, int(n), num_candidates) for v, n in enumerate(happened_V)]

    def _trending(self, log: EventLog, variant: int, happened: int, num_candidates: int) -> dict[str, Any]:
        """What is popular at the time of a request, by variant, with its own events since the latest one counted."""
        own = np.arange(log.offsets[variant], log.offsets[variant] + happened)
        later = (log.time[own] > self.state.counted) & (log.time[own] < log.time[log.offsets[variant] + happened])
        own = own[later if log.untimed is None else later & ~log.untimed[own]]
        return self.state.trends.of_request(log, own, num_candidates)
