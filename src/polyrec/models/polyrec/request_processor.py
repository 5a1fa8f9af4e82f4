"""Requests at serving time, encoded as training rows were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyrec.data.history_values import HistoryValues
from polyrec.data.open_requests import OpenRequests
from polyrec.data.request_builder import RequestBuilder, RequestLog
from polyrec.data.request_reader import RequestReader
from polyrec.models.polyrec.saved_processor import SavedProcessor


class RequestProcessor(SavedProcessor):
    """A processor that makes windows of requests."""

    def request(
        self,
        history: Any,
        items: np.ndarray,
        *,
        user_id: Any = None,
        user: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        time: Any = None,
        query: str | None = None,
    ) -> dict[str, Any]:
        """One window for the collator: a user's history and the candidates, all labels unknown.

        Beside the window's inputs it holds `history_items`, int64: the whole history, of which the window may hold
        the last `max_history` events only.

        Features are those that [`resume`] computes for a row of that user and time after all events known so far:

        * With `user_id` the user's stored events are the history, and `history` holds later events.
        * Without it `history` is all that is known of the user. Of its events those that are not later than the latest
          one counted ([`split`], [`resume`], [`update`]) belong to what was counted: they count for the user alone,
          which is also what becomes of an event that comes late. Later ones count for items and attributes, too.
        * If a history has no times, the time since its events is unknown (NaN), and they count for the user alone.

        Args:
            history: events, oldest first: item ids, dicts or a table; None = nobody known yet.
            items: int64 [C], rows of the catalog's items in the item table, i.e. from 2 on.
            user_id: of the request; an id without stored events is a new user.
            user: attributes of the user, {column: value}; what is absent is missing, or as stored for the `user_id`.
            context: context of the request, {column: value}.
            time: of the request: seconds, ISO text, a date or a timestamp; default: one second after the latest event
                known.
            query: what the user typed; needs `columns.query`.

        Unknown items and attribute values are cold starts, not errors; an unknown column name is an error.
        """
        given = {"user_id": user_id, "user": user, "context": context, "time": time, "query": query}
        return self.request_many([{"history": history, **given}], [items])[0]

    def request_many(self, requests: Sequence[Mapping[str, Any]], items: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Windows of several requests, made at once; each is what [`request`] makes of it alone.

        Args:
            requests: arguments of [`request`] but for the items.
            items: of each request, at least one.
        """
        opened = self.open_requests(requests)
        windows = zip(opened.windows(items), opened.history_items, strict=True)
        return [window | {"history_items": known} for window, known in windows]

    def open_requests(self, requests: Sequence[Mapping[str, Any]]) -> OpenRequests:
        """Requests that are read once, for callers that score one list of candidates after the other."""
        return OpenRequests(self._requests, requests)

    @property
    def history_values(self) -> HistoryValues:
        """What is kept of the events of histories, see `OpenRequests.history_values`."""
        return HistoryValues(self._pipeline)

    def request_log(self, history: Any, items: np.ndarray, **request: Any) -> RequestLog:
        """The events of a [`request`] and then its items, encoded; its running statistics come later."""
        builder = self._requests
        return builder.log([builder.read(history, **request)], [items])

    @property
    def request_reader(self) -> RequestReader:
        """What reads and checks requests."""
        return self._requests.reader

    def request_windows(self, request: RequestLog, keep_VL: np.ndarray | None = None) -> list[dict[str, Any]]:
        """Windows for the collator: a request as it is, or as it would be if some of its events had not happened.

        What did not happen is in no history and in no running statistic of the user (and of others, if it was not
        counted before the request); all else happened when it did, and the request comes at the same time.

        Args:
            request: see [`request_log`].
            keep_VL: bool [V, L], which of the L events happened in each variant. None: one variant, all of them.

        Returns:
            one window per variant.
        """
        return self._requests.windows(request, keep_VL)

    @property
    def _requests(self) -> RequestBuilder:
        known = self.log_columns, self.label_summary
        return RequestBuilder(self._pipeline, self._state, self.max_history, *known)

    # ------------------------------------------------------- what came later
