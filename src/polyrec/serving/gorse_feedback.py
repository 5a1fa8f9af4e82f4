"""Feedback as clients of Gorse send, list and delete it: events of the log."""

from __future__ import annotations

import asyncio
import json
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from polyrec.serving.access import Access, Served
from polyrec.serving.catalog import item_id
from polyrec.serving.records import EventStore, Kind, Record
from polyrec.serving.schemas import MOST_EVENTS, MOST_ITEMS, Text
from polyrec.serving.service import Service

_FEEDBACK = "gorse"  # begins the event ids of feedback: type, user and item name one, as in Gorse
_WINDOW = 1_000  # records that are looked at together
N = Annotated[int, Query(ge=1, le=MOST_ITEMS)]
PathText = Annotated[Text, Path(min_length=1, pattern=r"\S")]
Cursor = Annotated[Text, Query()]  # "" = from the first on; in a response: that was all
NumberCursor = Annotated[str, Query(pattern=r"^\d{0,18}$")]


class GorseModel(BaseModel):
    """Keys that polyrec does not know are left."""

    model_config = ConfigDict(extra="allow")


class Feedback(GorseModel):
    """What somebody did."""

    FeedbackType: Annotated[Text, Field(min_length=1, max_length=100)]
    UserId: Annotated[Text, Field(min_length=1, pattern=r"\S")]
    ItemId: Annotated[Text, Field(min_length=1, pattern=r"\S")]
    Timestamp: Text | None = None
    Value: Annotated[float, Field(allow_inf_nan=False)] | None = None


def event_of(service: Service, feedback: Feedback, where: str, named: bool = True) -> Record:
    """Feedback as an event.

    Args:
        where: the field that holds it, for messages.
        named: whether it is the same event when it comes again.
    """
    columns = service.state.format.columns
    event: dict[str, Any] = {
        "user_id": feedback.UserId,
        "item_id": item_id(service.state, feedback.ItemId),
        "timestamp": feedback.Timestamp or None,
    }
    if feedback.FeedbackType in columns:
        event[feedback.FeedbackType] = 1 if not feedback.Value else feedback.Value
    else:
        target = next((name for name in ("value", "rating") if name in columns), None)
        if target is not None and feedback.Value:
            event[target] = feedback.Value
    if named:
        event["event_id"] = json.dumps([_FEEDBACK, feedback.FeedbackType, feedback.UserId, feedback.ItemId])
    return service.state.format.record(event, where)


def _feedback(record: Record) -> dict[str, Any]:
    kind, user, item = _named(record)
    body = json.loads(record.body)
    return {
        "FeedbackType": kind,
        "UserId": user,
        "ItemId": item,
        "Timestamp": body["timestamp"],
        "Value": next((float(body[name]) for name in ("value", "rating") if name in body), 0.0),
    }


def _named(record: Record) -> tuple[str, str, str]:
    """Type, user and item of feedback; of events that came another way the type is "event"."""
    try:
        _, kind, user, item = json.loads(record.event_id or "")
        return kind, user, item
    except ValueError:
        return "event", record.user or "", str(json.loads(record.body)["item_id"])


def add_feedback(found: APIRouter, access: Access) -> None:
    """The routes of feedback."""

    @found.post("/feedback", dependencies=[access.scope("events")])
    async def insert(
        service: Served, given: Annotated[list[Feedback], Field(max_length=MOST_EVENTS)]
    ) -> dict[str, int]:
        """Store feedback; what is known by type, user and item stays as it was."""
        service.check_keeps_events()
        if not given:
            return {"RowAffected": 0}
        records = [event_of(service, one, f"[{n}]") for n, one in enumerate(given)]
        before = service.writer.known
        seqs = await access.submit(service, records)
        return {"RowAffected": len({seq for seq in seqs if seq > before})}

    @found.get("/user/{user}/feedback/{kind}", dependencies=[access.scope("read")])
    async def of_user(service: Served, user: PathText, kind: PathText) -> list[dict[str, Any]]:
        """The latest feedback of a user of one type."""
        own = [_feedback(record) for record in service.store.of_user(user, MOST_ITEMS)]
        return [one for one in own if one["FeedbackType"] == kind]

    @found.get("/feedback", dependencies=[access.scope("read")])
    async def listed(service: Served, n: N = 10, cursor: NumberCursor = "") -> dict[str, Any]:
        """Feedback of all users in the order in which it was stored; that of the run's own log is not among it."""
        records = await asyncio.to_thread(_after, service.store, int(cursor or 0), n)
        more = records[-1].seq if len(records) == n else ""
        return {"Feedback": [_feedback(record) for record in records], "Cursor": str(more)}

    @found.delete("/feedback/{user}/{item}", dependencies=[access.scope("admin")])
    async def delete(service: Served, user: PathText, item: PathText) -> dict[str, int]:
        """Delete what a user did with an item; what was counted of the item stays."""
        known = item_id(service.state, item)
        own = await asyncio.to_thread(service.store.of_user, user, MOST_ITEMS)
        number = sum(str(json.loads(record.body)["item_id"]) == str(known) for record in own)
        body = json.dumps({"item_id": known})
        [seq] = await access.submit(service, [Record(Kind.RETRACT, body, user=user)])
        await access.in_thread(lambda: service.forgotten(seq, access.deadline), "the feedback is being deleted")
        return {"RowAffected": number}


def _after(store: EventStore, seq: int, n: int) -> list[Record]:
    """The next n events after a sequence number."""
    found: list[Record] = []
    last = store.last
    while seq < last and len(found) < n:
        end = seq + max(_WINDOW, n) + 1
        found += islice(store.read(after=seq, before=end, kinds=[Kind.EVENT]), n - len(found))
        seq = end - 1
    return found
