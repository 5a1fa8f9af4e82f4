"""One model with its state: responds to several requests at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from polyrec.core.settings import SettingError
from polyrec.data.request_reader import read_ids
from polyrec.data.times import read_time
from polyrec.inference.catalog_index import IndexKind
from polyrec.inference.explanation import explain
from polyrec.inference.explanation.neighbours import neighbours
from polyrec.inference.predictions import predictions
from polyrec.inference.recommender import Recommender
from polyrec.inference.scorer import Scorer
from polyrec.inference.search import search
from polyrec.modules.encoders.item import FIRST_ITEM
from polyrec.serving.calls import Call, Explain, Recommend, Recommended, Score, Search, Similar, User
from polyrec.serving.events import Event
from polyrec.serving.pending import PendingEvents
from polyrec.serving.state import ServedState

LIVE = 30 * 86_400.0  # seconds; a log that is newer is one of now, and requests are made now
_AFTER = 1e-3  # seconds after the latest event


class Engine:
    """Responses with one model and its state. Only the model's thread calls it.

    Args:
        state: of model and processor.
        pending: events that the state has not counted.
        name: of the model, as responses say.
        scorer: computes scores in the model's place.
        index: see [`ServiceOptions`][polyrec.serving.service.ServiceOptions].
    """

    def __init__(
        self,
        state: ServedState,
        pending: PendingEvents,
        name: str,
        scorer: Scorer | None = None,
        index: IndexKind = "exact",
    ) -> None:
        self.state, self.pending, self.name = state, pending, name
        self.recommender = Recommender(state.model, state.processor, scorer=scorer, index=index)

    def warm(self) -> None:
        """Compute what first requests would wait for."""
        first = self.state.processor.items.ids[:1].to_pylist()
        for who in (User(), User(history=first)):
            for response in self.respond([Recommend(who, k=1), Recommend(who, k=2)]):
                if isinstance(response, Exception):
                    raise response
            self._score(Score(who, first))

    def respond(self, calls: Sequence[Call]) -> list[Any]:
        """Responses, or exceptions, in the order of the requests."""
        found: list[Any] = [None] * len(calls)
        alike: dict[Any, list[int]] = {}
        for place, call in enumerate(calls):
            if isinstance(call, Recommend):
                # A list with rules that is cut is not the list of fewer items.
                ruled = None if call.rules is None else (str(call.rules), call.k)
                alike.setdefault((call.task, call.exclude_seen, ruled), []).append(place)
            else:
                found[place] = self._alone(call)
        for places in alike.values():
            for place, response in zip(places, self._recommend([calls[p] for p in places]), strict=True):
                found[place] = response
        return found

    def _alone(self, call: Call) -> Any:
        how: dict[type, Any] = {
            Recommend: lambda call: self._recommend([call])[0],
            Score: self._score,
            Search: self._search,
            Similar: lambda call: neighbours(
                self.state.model, self.state.processor, call.item, call.k, self.recommender.items
            ),
            Explain: self._explain,
        }
        try:
            return how[type(call)](call)
        except Exception as error:
            return error

    def _recommend(self, calls: Sequence[Any]) -> list[Any]:
        try:
            hidden = self._hidden()
            requests = [
                {**self.request(call.who), "candidates": call.candidates, "exclude": [*call.exclude, *hidden]}
                for call in calls
            ]
            first, k = calls[0], max(call.k for call in calls)
            how: dict[str, Any] = {"task": first.task, "exclude_seen": first.exclude_seen, "rules": first.rules}
            found = list(self.recommender.rank(requests, k, **how))
            shown = self.recommender.shown_tasks(first.task)
        except Exception as error:
            return [error] if len(calls) == 1 else [self._alone(call) for call in calls]  # one may spoil it for all
        return [
            Recommended(ranked.described(self.state.processor, shown)[: call.k], ranked.unmet)
            for ranked, call in zip(found, calls, strict=True)
        ]

    def _hidden(self) -> list[Any]:
        return [item for item in self.state.hidden.values() if self.state.format.item_row(item) is not None]

    def _score(self, call: Score) -> list[dict[str, Any]]:
        processor = self.state.processor
        rows = processor.items.rows(pa.array(read_ids(call.items, "items")))
        for place, row in enumerate(rows):
            if row < FIRST_ITEM:
                raise SettingError(f"items[{place}]", "is not in the catalog: leave it out")
        with self.recommender.scorer() as scorer:
            opened = processor.open_requests([self.request(call.who)])
            [found] = predictions(self.state.model, opened, [rows], scorer)
        return [
            {**processor.describe(int(row)), "predictions": {name: float(v[n]) for name, v in found.items()}}
            for n, row in enumerate(rows)
        ]

    def _search(self, call: Search) -> list[dict[str, Any]]:
        which: dict[str, Any] = {"k": call.k, "task": call.task, "rules": call.rules, "exclude": self._hidden()}
        which |= {"items": self.recommender.items}
        return search(self.state.model, self.state.processor, call.query, **which, **self.request(call.who))

    def _explain(self, call: Explain) -> list[dict[str, Any]]:
        request = self.request(call.who)
        chosen: dict[str, Any] = {"items": call.items, "k": call.k, "task": call.task, "events": call.events}
        return explain(self.state.model, self.state.processor, recommender=self.recommender, **chosen, **request)

    def request(self, who: User) -> dict[str, Any]:
        """Arguments of `processor.request`: a user's own events are known at once, also those nobody counted yet."""
        found: dict[str, Any] = {"history": who.history, "user": who.user, "context": who.context}
        found["time"] = self._now() if who.time is None else read_time(who.time)
        if who.user_id is not None:
            if who.history is not None:
                raise SettingError("history", "is given beside user_id, whose events the server knows: leave one out")
            name = str(who.user_id)
            own = self.state.format.history(self._own(name, found["time"]))
            found |= {"user_id": who.user_id, "history": own or None}
            known = self.state.attributes.get(name, {})
            found["user"] = {**known, **(who.user or {})} or None
        return {name: value for name, value in found.items() if value is not None or name == "history"}

    def _own(self, user: str, now: float | None) -> list[Event]:
        """Events of a user that the state has not counted, before a time, after those it has."""
        events = self.pending.of(user)
        if not events:
            return []
        if now is not None:
            events = [event for event in events if event.time < now]
        latest = self.latest_of(user)
        return [event for event in events if event.time > latest]

    def latest_of(self, user: str) -> float:
        """The time of a user's latest event in the state, seconds; -inf = none."""
        stored = self.state.processor.stored_events
        return float("-inf") if stored is None else float(stored.latest(pa.array([user]))[0])

    def _now(self) -> float | None:
        """The time of a request that says none; None: right after the latest event that is known."""
        now, counted = time.time(), self.state.processor.log_state.counted
        return max(now, counted + _AFTER) if counted > now - LIVE else None
