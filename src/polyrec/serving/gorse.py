"""The part of Gorse's interface that its Python client uses, so that its users can switch.

Ids are texts there. Feedback types are values of a column of the log where it has one of them ("like", "star" ...), and
`Value` goes to the column named `value` or `rating`, if the log has one; other feedback is an event all the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from polyrec.serving.access import Access, Served
from polyrec.serving.calls import Recommend, Similar, User
from polyrec.serving.catalog import Unknown, item_id, known_item, new_item, user_attributes
from polyrec.serving.records import Kind, Record
from polyrec.serving.schemas import MOST_EVENTS, MOST_ITEMS, Text, Value
from polyrec.serving.service import Service

_LABELS, _CATEGORIES = "labels", "categories"  # columns that hold them, if the catalog has these
_FEEDBACK = "gorse"  # begins the event ids of feedback: type, user and item name one, as in Gorse
N = Annotated[int, Query(ge=1, le=MOST_ITEMS)]
Offset = Annotated[int, Query(ge=0, le=MOST_ITEMS)]
PathText = Annotated[str, Path(min_length=1, max_length=512, pattern=r"\S")]


class _Gorse(BaseModel):
    model_config = ConfigDict(extra="allow")


class Feedback(_Gorse):
    """What somebody did."""

    FeedbackType: Annotated[Text, Field(min_length=1, max_length=100)]
    UserId: Annotated[Text, Field(min_length=1, pattern=r"\S")]
    ItemId: Annotated[Text, Field(min_length=1, pattern=r"\S")]
    Timestamp: Text | None = None
    Value: Annotated[float, Field(allow_inf_nan=False)] | None = None


class Item(_Gorse):
    """An item; labels that are a dict are columns of the catalog."""

    ItemId: Annotated[Text, Field(min_length=1, pattern=r"\S")]
    IsHidden: bool | None = None
    Labels: Value | None = None
    Comment: Text | None = None
    Categories: list[Text] | None = None


class ItemPatch(_Gorse):
    """What changes of an item."""

    IsHidden: bool | None = None
    Labels: Value | None = None
    Comment: Text | None = None
    Categories: list[Text] | None = None


class GorseUser(_Gorse):
    """A user; labels that are a dict are attributes."""

    UserId: Annotated[Text, Field(min_length=1, pattern=r"\S")]
    Labels: Value | None = None


def router(access: Access) -> APIRouter:
    """The routes under /api."""
    found = APIRouter(prefix="/api", tags=["gorse"])
    _add_feedback(found, access)
    _add_items(found, access)
    _add_users(found, access)
    _add_recommend(found, access)
    return found


def _event(service: Service, feedback: Feedback, where: str, named: bool = True) -> Record:
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


def _add_feedback(found: APIRouter, access: Access) -> None:
    @found.post("/feedback", dependencies=[access.scope("events")])
    async def insert(
        service: Served, given: Annotated[list[Feedback], Field(max_length=MOST_EVENTS)]
    ) -> dict[str, int]:
        """Store feedback; what is known by type, user and item stays as it was."""
        service.check_keeps_events()
        if not given:
            return {"RowAffected": 0}
        records = [_event(service, one, f"[{n}]") for n, one in enumerate(given)]
        before = service.writer.known
        seqs = await access.submit(service, records)
        return {"RowAffected": len({seq for seq in seqs if seq > before})}

    @found.get("/user/{user}/feedback/{kind}", dependencies=[access.scope("read")])
    async def of_user(service: Served, user: PathText, kind: PathText) -> list[dict[str, Any]]:
        """The latest feedback of a user of one type."""
        own = [_feedback(record) for record in service.store.of_user(user, MOST_ITEMS)]
        return [one for one in own if one["FeedbackType"] == kind]


def _attributes(service: Service, given: Item | ItemPatch) -> dict[str, Any]:
    """Columns of the catalog that an item of Gorse tells; it may tell more than the model was trained with."""
    processor = service.state.processor
    columns, title = {*processor.items.table.column_names} - {processor.columns.item}, processor.columns.title
    told = dict(given.Labels) if isinstance(given.Labels, dict) else {}
    if isinstance(given.Labels, list):
        told[_LABELS] = given.Labels
    if given.Categories:
        told[_CATEGORIES] = given.Categories
    if given.Comment and title is not None:
        told.setdefault(title, given.Comment)
    return {name: value for name, value in told.items() if name in columns}


def _add_items(found: APIRouter, access: Access) -> None:
    admin = [access.scope("admin")]

    @found.post("/item", dependencies=admin)
    async def insert(service: Served, given: Item) -> dict[str, int]:
        """Add an item, or change a known one."""
        attributes = _attributes(service, given)
        known = service.state.format.item_row(item_id(service.state, given.ItemId)) is not None
        told = None if known and not attributes else attributes
        body = new_item(service.state, given.ItemId, told, bool(given.IsHidden))
        return await _change(access, service, body)

    @found.patch("/item/{item}", dependencies=admin)
    async def patch(service: Served, item: PathText, given: ItemPatch) -> dict[str, int]:
        """Change an item; what is not given stays."""
        known_item(service.state, item)
        attributes = _attributes(service, given)
        if given.IsHidden is None and not attributes:
            return {"RowAffected": 0}
        return await _change(access, service, new_item(service.state, item, attributes or None, given.IsHidden))

    @found.delete("/item/{item}", dependencies=admin)
    async def delete(service: Served, item: PathText) -> dict[str, int]:
        """Hide an item: a model keeps its catalog until it is trained anew."""
        return await _change(access, service, new_item(service.state, item, None, True))

    @found.get("/item/{item}", dependencies=[access.scope("read")])
    async def get(service: Served, item: PathText) -> dict[str, Any]:
        """An item."""
        known = known_item(service.state, item)
        title = service.state.processor.columns.title
        return {
            "ItemId": str(known["item"]),
            "IsHidden": known["hidden"],
            "Categories": [],
            "Labels": known["attributes"],
            "Comment": str(known["attributes"].get(title) or ""),
        }

    @found.get("/item/{item}/neighbors", dependencies=[access.scope("read")])
    async def near(
        request: Request, service: Served, item: PathText, n: N = 10, offset: Offset = 0
    ) -> list[dict[str, Any]]:
        """Items like one."""
        call = Similar(item_id(service.state, item), min(n + offset, MOST_ITEMS))
        _, rows = await access.call(request, service, call)
        return [{"Id": str(row["item"]), "Score": row["similarity"]} for row in rows[offset:]]


async def _change(access: Access, service: Service, body: dict[str, Any]) -> dict[str, int]:
    [seq] = await access.submit(service, [Record(Kind.ITEM, json.dumps(body))])
    await access.in_thread(lambda: service.forgotten(seq, access.deadline), "the item was not changed in time")
    return {"RowAffected": 1}


def _add_users(found: APIRouter, access: Access) -> None:
    async def insert(service: Service, given: Sequence[GorseUser]) -> dict[str, int]:
        known = service.state.processor.users.encoders
        records = []
        for user in given:
            labels = user.Labels if isinstance(user.Labels, dict) else {}
            attributes = user_attributes(service.state, {n: v for n, v in labels.items() if n in known})
            records.append(Record(Kind.USER, json.dumps(attributes), user=user.UserId))
        if records:
            seqs = await access.submit(service, records)
            await access.in_thread(lambda: service.forgotten(max(seqs), access.deadline), "not stored in time")
        return {"RowAffected": len(records)}

    @found.post("/user", dependencies=[access.scope("events")])
    async def one(service: Served, given: GorseUser) -> dict[str, int]:
        """Set attributes of a user."""
        return await insert(service, [given])

    @found.post("/users", dependencies=[access.scope("events")])
    async def several(
        service: Served, given: Annotated[list[GorseUser], Field(max_length=MOST_EVENTS)]
    ) -> dict[str, int]:
        """Set attributes of users."""
        return await insert(service, given)

    @found.get("/user/{user}", dependencies=[access.scope("read")])
    async def get(service: Served, user: PathText) -> dict[str, Any]:
        """A user."""
        attributes = service.state.attributes.get(user)
        if attributes is None and service.engine.latest_of(user) == float("-inf") and not service.pending.of(user):
            raise Unknown("no such user")
        return {"UserId": user, "Labels": attributes or {}, "Comment": ""}

    @found.delete("/user/{user}", dependencies=[access.scope("admin")])
    async def delete(service: Served, user: PathText) -> dict[str, int]:
        """Delete a user."""
        [seq] = await access.submit(service, [Record(Kind.FORGET, "{}", user=user)])
        await access.in_thread(lambda: service.forgotten(seq, 60.0), "the user is being deleted")
        return {"RowAffected": 1}


def _add_recommend(found: APIRouter, access: Access) -> None:
    reads = [access.scope("read")]

    async def respond(request: Request, service: Service, who: User, n: int, offset: int) -> list[dict[str, Any]]:
        _, found = await access.call(request, service, Recommend(who, min(n + offset, MOST_ITEMS)))
        return [{"Id": str(row["item"]), "Score": row["score"]} for row in found.rows[offset:]]

    @found.get("/recommend/{user}", dependencies=reads)
    @found.get("/recommend/{user}/", dependencies=reads, include_in_schema=False)
    async def recommend(request: Request, service: Served, user: PathText, n: N = 10, offset: Offset = 0) -> list[Any]:
        """Items for a user; ids alone unless the header X-API-Version is 2."""
        rows = await respond(request, service, User(user), n, offset)
        return rows if request.headers.get("x-api-version") == "2" else [row["Id"] for row in rows]

    @found.get("/recommend/{user}/{category}", dependencies=reads, include_in_schema=False)
    async def of_category(service: Served, user: str, category: str) -> None:
        """Categories are not kept."""
        raise HTTPException(404, "this server has no categories: leave the category out")

    @found.post("/session/recommend", dependencies=reads)
    async def session(
        request: Request, service: Served, given: Annotated[list[Feedback], Field(max_length=MOST_EVENTS)], n: N = 10
    ) -> list[dict[str, Any]]:
        """Items for somebody who is not known, by feedback."""
        form = service.state.format
        events = [form.read(_event(service, one, f"[{n}]", named=False)) for n, one in enumerate(given)]
        history = form.history(sorted(events, key=lambda event: event.time))
        return await respond(request, service, User(history=history), n, 0)
