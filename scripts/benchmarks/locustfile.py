"""Mixed traffic for a server, by locust: recommend, score, events, search, similar items.

    pip install locust                         # into an environment of its own
    locust -f scripts/benchmarks/locustfile.py --headless -u 16 -r 16 -t 10m --host http://127.0.0.1:8000

`LOAD_COLUMNS=rating,watched` names columns of the log that events have, as numbers from 1 to 5. With `LOAD_LOG=FILE`
each response is a line of that file: what was called, the status (0: no connection, -1: no response in time) and, of
events that were acknowledged, their ids. `scripts/kill_server.py --minutes 10 --load locust` reads it.
"""

from __future__ import annotations

import json
import os
import random
import uuid
from typing import Any

import gevent
import requests
from locust import HttpUser, between, events, task

USERS, HISTORY, PATIENCE = 2_000, 20, 15.0
_COLUMNS = [name for name in os.environ.get("LOAD_COLUMNS", "").split(",") if name]
_LOG = open(os.environ["LOAD_LOG"], "a", buffering=1) if "LOAD_LOG" in os.environ else None  # noqa: SIM115
_refused = requests.exceptions.ConnectionError


@events.request.add_listener
def _log(name: str, response: Any, exception: Any, context: dict[str, Any], **others: Any) -> None:
    status = getattr(response, "status_code", 0) if exception is None or not _lost(exception) else 0
    if isinstance(exception, requests.exceptions.Timeout):
        status = -1
    if _LOG is not None:
        ids = context.get("ids", []) if status == 200 else []
        _LOG.write(json.dumps({"name": name, "status": status, "ids": ids}) + "\n")


def _lost(exception: BaseException) -> bool:
    return isinstance(exception, _refused) and not isinstance(exception, requests.exceptions.Timeout)


class Client(HttpUser):
    """Calls, and calls again after a while where nobody listened; events with the same ids."""

    wait_time = between(0.0, 0.2)
    items: list[Any] = []
    searches = False

    def on_start(self) -> None:
        """Know the catalog."""
        while not Client.items:
            try:
                found = requests.get(f"{self.host}/api/items", params={"n": 1000}, timeout=PATIENCE).json()["Items"]
                Client.items = [int(i) if i.isdecimal() else i for i in (item["ItemId"] for item in found)]
                probe = requests.post(f"{self.host}/search", json={"query": "a", "k": 1}, timeout=PATIENCE)
                Client.searches = probe.status_code == 200
            except (_refused, KeyError):
                gevent.sleep(0.2)

    def call(self, path: str, body: dict[str, Any], ids: list[str] | None = None) -> int:
        """The status of a request."""
        response = self.client.post(path, json=body, timeout=PATIENCE, name=path, context={"ids": ids or []})
        if response.status_code in (0, 503):
            gevent.sleep(0.1)
        return response.status_code or 0

    def who(self) -> dict[str, Any]:
        """A user that the server knows, or a history."""
        if random.random() < 0.7:
            return {"user_id": random.randrange(USERS)}
        return {"history": random.choices(self.items, k=random.randrange(HISTORY))}

    @task(6)
    def recommend(self) -> None:
        """Items for a user, some of them with rules."""
        rules = {"seen": {"impressions": 2, "days": 7}} if random.random() < 0.2 else None
        self.call("/recommend", {**self.who(), "k": random.choice([5, 10, 50]), "rules": rules})

    @task(2)
    def score(self) -> None:
        """Predictions of some items."""
        self.call("/score", {**self.who(), "items": random.sample(self.items, min(20, len(self.items)))})

    @task(4)
    def store(self) -> None:
        """Events, sent until they are acknowledged."""
        sent = [
            {"event_id": uuid.uuid4().hex, "user_id": random.randrange(USERS), "item_id": random.choice(self.items)}
            | {name: float(random.randint(1, 5)) for name in _COLUMNS}
            for _ in range(random.randint(1, 20))
        ]
        while self.call("/events", {"events": sent}, [event["event_id"] for event in sent]) != 200:
            pass

    @task(1)
    def search(self) -> None:
        """Items by text, or like another."""
        if self.searches:
            self.call("/search", {"query": random.choice("abcdefgh"), "k": 10})
        else:
            self.call("/similar", {"item_id": random.choice(self.items), "k": 10})
