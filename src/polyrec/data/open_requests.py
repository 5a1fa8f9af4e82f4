"""Requests that are read and encoded once, and then scored for one list of candidates after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from polyrec.data.columns import FIRST
from polyrec.data.history_values import HistoryValues
from polyrec.data.request_builder import RequestBuilder, RequestLog
from polyrec.data.requests import alike

_NO_ITEM = np.array([FIRST])  # of a request that has no candidates yet


class OpenRequests:
    """Several requests; each is what it would be alone.

    Args:
        builder: makes windows of requests.
        requests: arguments of `PolyRecProcessor.request` but for the items.

    Attributes:
        history_items: the items of each whole history, rows of the item table; a window may hold the last ones only.
    """

    def __init__(self, builder: RequestBuilder, requests: Sequence[Mapping[str, Any]]) -> None:
        parsed = [builder.read(**own) for own in requests]
        self._builder = builder
        self._logs: list[RequestLog] = []
        self._at: list[tuple[int, int]] = [(0, 0)] * len(parsed)  # log, user in it
        self.history_items: list[np.ndarray] = [_NO_ITEM] * len(parsed)
        for members in alike(parsed):
            log = builder.log([parsed[n] for n in members], [_NO_ITEM] * len(members))
            for user, (n, items) in enumerate(zip(members, log.history_items(), strict=True)):
                self._at[n], self.history_items[n] = (len(self._logs), user), items
            self._logs.append(log)

    def histories(self) -> list[dict[str, Any]]:
        """A window of each request about no item in particular, for whoever reads its history alone."""
        self._logs = [self._builder.measured(log) for log in self._logs]
        found = [self._builder.windows(log, statistics=False) for log in self._logs]
        return [found[log][user] for log, user in self._at]

    def history_values(self, columns: Sequence[str]) -> list[dict[str, pa.Array]]:
        """What was known of the events of each history, {column: values}.

        They are the last ones of `history_items`; nothing is kept of events before the log (`columns.prior_history`).

        Args:
            columns: of `PolyRecProcessor.history_values`.
        """
        values = HistoryValues(self._builder.pipeline)
        rows = [log.event_rows() for log in self._logs]
        return [{n: values.of(self._logs[log].log, rows[log][user], n) for n in columns} for log, user in self._at]

    def event_ages(self) -> list[np.ndarray]:
        """Seconds between the events of each history and the request, of the same events as `history_values`."""
        found = [log.event_ages() for log in self._logs]
        return [found[log][user] for log, user in self._at]

    def windows(self, items: Sequence[np.ndarray], which: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """A window of each request and its candidates.

        Args:
            items: of each, int64, rows of the item table, at least one.
            which: requests, any of them several times; None: all.
        """
        chosen = range(len(self._at)) if which is None else which
        windows: list[dict[str, Any]] = [{} for _ in chosen]
        for number, log in enumerate(self._logs):
            own = [n for n, request in enumerate(chosen) if self._at[request][0] == number]
            if not own:
                continue
            users = np.array([self._at[chosen[n]][1] for n in own])
            made = self._builder.windows(self._builder.with_candidates(log, users, [items[n] for n in own]))
            for n, window in zip(own, made, strict=True):
                windows[n] = window
        return windows
