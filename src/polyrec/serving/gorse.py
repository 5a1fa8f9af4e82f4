"""The part of Gorse's interface that its Python client uses, so that its users can switch.

Ids are texts there. Feedback types are values of a column of the log where it has one of them ("like", "star" ...), and
`Value` goes to the column named `value` or `rating`, if the log has one; other feedback is an event all the same.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from fastapi import APIRouter, HTTPException, Query, Request
from pydantic import Field

from polyrec.core.settings import SettingError
from polyrec.serving.access import Access, Served
from polyrec.serving.calls import Recommend, Search, Similar, User
from polyrec.serving.catalog import Unknown, item_id, known_item, new_item, user_attributes
from polyrec.serving.gorse_feedback import (
    Cursor,
    Feedback,
    GorseModel,
    N,
    NumberCursor,
    PathText,
    add_feedback,
    event_of,
)
from polyrec.serving.records import Kind, Record
from polyrec.serving.schemas import MOST_EVENTS, MOST_ITEMS, Text, Value
from polyrec.serving.service import Service

_LABELS, _CATEGORIES = "labels", "categories"  # columns that hold them, if the catalog has these
Offset = Annotated[int, Query(ge=0, le=MOST_ITEMS)]


class Item(GorseModel):
    """An item; labels that are a dict are columns of the catalog."""

    ItemId: Annotated[Text, Field(min_length=1, pattern=r"\S")]
    IsHidden: bool | None = None
    Labels: Value | None = None
    Comment: Text | None = None
    Categories: list[Text] | None = None


class ItemPatch(GorseModel):
    """What changes of an item."""

    IsHidden: bool | None = None
    Labels: Value | None = None
    Comment: Text | None = None
    Categories: list[Text] | None = None


class GorseUser(GorseModel):
    """A user; labels that are a dict are attributes."""

    UserId: Annotated[Text, Field(min_length=1, pattern=r"\S")]
    Labels: Value | None = None


def router(access: Access) -> APIRouter:
    """The routes under /api."""
    found = APIRouter(prefix="/api", tags=["gorse"])
    add_feedback(found, access)
    _add_items(found, access)
    _add_users(found, access)
    _add_recommend(found, access)
    return found


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
        return _item(service, item)

    @found.get("/items", dependencies=[access.scope("read")])
    async def listed(
        request: Request, service: Served, n: N = 10, cursor: NumberCursor = "", q: Annotated[Text, Query()] = ""
    ) -> dict[str, Any]:
        """The catalog in its order, or the items that fit a query."""
        if q:
            return {
                "Items": [_item(service, str(one)) for one in await _searched(request, service, q, n)],
                "Cursor": "",
            }
        ids, begin = service.state.processor.items.ids, int(cursor or 0)
        some = [_item(service, str(one)) for one in ids[begin : begin + n].to_pylist()]
        return {"Items": some, "Cursor": str(begin + n) if begin + n < len(ids) else ""}

    async def _searched(request: Request, service: Service, query: str, n: int) -> list[Any]:
        model, processor = service.state.model, service.state.processor
        if any(model.heads[name].excludes == "own item" for name in model.state_tasks):
            _, rows = await access.call(request, Search(User(), query, n))
            return [row["item"] for row in rows]
        title = processor.columns.title
        if title not in processor.items.table.column_names:
            raise SettingError("q", "is given, but the model has neither a search task nor titles of items")
        fits = pc.match_substring(processor.items.table[title].cast(pa.string()), query, ignore_case=True)
        return processor.items.ids.filter(fits.combine_chunks().fill_null(False))[:n].to_pylist()

    @found.get("/item/{item}/neighbors", dependencies=[access.scope("read")])
    async def near(
        request: Request, service: Served, item: PathText, n: N = 10, offset: Offset = 0
    ) -> list[dict[str, Any]]:
        """Items like one."""
        call = Similar(item_id(service.state, item), min(n + offset, MOST_ITEMS))
        _, rows = await access.call(request, call)
        return [{"Id": str(row["item"]), "Score": row["similarity"]} for row in rows[offset:]]


def _item(service: Service, item: str) -> dict[str, Any]:
    known = known_item(service.state, item)
    attributes, title = known["attributes"], service.state.processor.columns.title
    categories = attributes.get(_CATEGORIES)
    return {
        "ItemId": str(known["item"]),
        "IsHidden": known["hidden"],
        "Categories": categories if isinstance(categories, list) else [],
        "Labels": attributes,
        "Comment": str(attributes.get(title) or ""),
    }


async def _change(access: Access, service: Service, body: dict[str, Any]) -> dict[str, int]:
    [seq] = await access.submit(service, [Record(Kind.ITEM, json.dumps(body))])
    await access.in_thread(lambda: service.forgotten(seq, access.deadline), "the item was not changed in time")
    return {"RowAffected": 1}


def _user(service: Service, user: str) -> dict[str, Any]:
    return {"UserId": user, "Labels": service.state.attributes.get(user, {}), "Comment": ""}


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
        known = service.state.attributes.get(user) is not None or service.pending.of(user)
        if not known and service.engine.latest_of(user) == float("-inf"):
            raise Unknown("no such user")
        return _user(service, user)

    @found.get("/users", dependencies=[access.scope("read")])
    async def listed(service: Served, n: N = 10, cursor: Cursor = "") -> dict[str, Any]:
        """Users whose feedback or attributes are stored here, by their ids; of others there are hashes alone."""
        found = await asyncio.to_thread(service.store.users, cursor, n)
        return {"Users": [_user(service, user) for user in found], "Cursor": found[-1] if len(found) == n else ""}

    @found.delete("/user/{user}", dependencies=[access.scope("admin")])
    async def delete(service: Served, user: PathText) -> dict[str, int]:
        """Delete a user."""
        [seq] = await access.submit(service, [Record(Kind.FORGET, "{}", user=user)])
        await access.in_thread(lambda: service.forgotten(seq, 60.0), "the user is being deleted")
        return {"RowAffected": 1}


def _add_recommend(found: APIRouter, access: Access) -> None:
    reads = [access.scope("read")]

    async def respond(request: Request, service: Service, who: User, n: int, offset: int) -> list[dict[str, Any]]:
        # Feedback of one second often comes in several requests, the later of which are late events.
        known = None if who.user_id is None else service.writer.known
        call = Recommend(who, min(n + offset, MOST_ITEMS))
        _, found = await access.call(request, call, who.user_id, known)
        return [{"Id": str(row["item"]), "Score": row["score"]} for row in found.rows[offset:]]

    @found.get("/recommend/{user}", dependencies=reads)
    @found.get("/recommend/{user}/", dependencies=reads, include_in_schema=False)
    async def recommend(
        request: Request,
        service: Served,
        user: PathText,
        n: N = 10,
        offset: Offset = 0,
        write_back_type: Annotated[Text | None, Query(alias="write-back-type")] = None,
    ) -> list[Any]:
        """Items for a user; ids alone unless the header X-API-Version is 2."""
        if write_back_type is not None:
            raise SettingError("write-back-type", "is not supported: send feedback of the items that were shown")
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
        events = [form.read(event_of(service, one, f"[{n}]", named=False)) for n, one in enumerate(given)]
        history = form.history(sorted(events, key=lambda event: event.time))
        return await respond(request, service, User(history=history), n, 0)
