"""What the server offers."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Request, Response
from fastapi.responses import JSONResponse

from polyrec.core.names import ROW_KEYS
from polyrec.core.rules import Rules
from polyrec.serving.access import Access, Served
from polyrec.serving.calls import Explain, Recommend, Score, Search, Similar, User
from polyrec.serving.catalog import known_item, new_item, user_attributes
from polyrec.serving.records import Kind, Record
from polyrec.serving.schemas import (
    EventsRequest,
    EventsResponse,
    ExplainRequest,
    ExplainResponse,
    HealthResponse,
    ItemIn,
    ItemOut,
    ItemResponse,
    ModelIn,
    ModelResponse,
    ReadyResponse,
    RecommendRequest,
    RecommendResponse,
    Refused,
    ScoreRequest,
    ScoreResponse,
    SearchRequest,
    SeqResponse,
    SimilarRequest,
    SimilarResponse,
    UserFields,
    UserIn,
    UserResponse,
    VariantOut,
)

__all__ = ["Refused", "add_requests", "router"]
PathId = Annotated[str, Path(min_length=1, max_length=512, pattern=r"\S")]


def who(given: UserFields) -> User:
    """The user of a request."""
    return User(given.user_id, given.history, given.user, given.context, given.time)


def listed(row: dict[str, Any]) -> ItemOut:
    """A recommended item as clients get it."""
    own = {name: value for name, value in row.items() if name in ROW_KEYS and name != "cold_start"}
    return ItemOut(**own, predictions={name: value for name, value in row.items() if name not in ROW_KEYS})


def router(access: Access) -> APIRouter:
    """All routes but those of Gorse."""
    found = APIRouter()
    add_requests(found, access)
    _add_events(found, access)
    _add_catalog(found, access)
    _add_operation(found, access)
    return found


def add_requests(found: APIRouter, access: Access) -> None:
    """The routes that call the model."""
    reads = [access.scope("read")]

    @found.post("/recommend", dependencies=reads, tags=["recommend"])
    async def recommend(request: Request, given: RecommendRequest) -> RecommendResponse:
        """Items for one user, best first, with every task's prediction."""
        chosen = given.task, given.exclude_seen, given.candidates, tuple(given.exclude)
        call = Recommend(who(given), given.k, *chosen, Rules.of(given.rules))
        by, (rows, unmet) = await access.call(request, call, given.user_id, given.after)
        cold = rows[0]["cold_start"] if rows else None
        items = [listed(row) for row in rows]
        return RecommendResponse(**by._asdict(), cold_start=cold, items=items, unmet=list(unmet))

    @found.post("/score", dependencies=reads, tags=["recommend"])
    async def score(request: Request, given: ScoreRequest) -> ScoreResponse:
        """Every task's prediction for given items."""
        by, rows = await access.call(request, Score(who(given), given.items), given.user_id, given.after)
        return ScoreResponse(**by._asdict(), items=rows)

    @found.post("/search", dependencies=reads, tags=["recommend"])
    async def search(request: Request, given: SearchRequest) -> RecommendResponse:
        """Items by what somebody typed; the model needs a search task."""
        call = Search(who(given), given.query, given.k, given.task, Rules.of(given.rules))
        by, rows = await access.call(request, call, given.user_id, given.after)
        return RecommendResponse(**by._asdict(), cold_start=None, items=[listed(row) for row in rows])

    @found.post("/similar", dependencies=reads, tags=["recommend"])
    async def similar(request: Request, given: SimilarRequest) -> SimilarResponse:
        """Items that the model takes for alike."""
        by, rows = await access.call(request, Similar(given.item_id, given.k))
        return SimilarResponse(**by._asdict(), items=rows)

    @found.post("/explain", dependencies=reads, tags=["recommend"])
    async def explain(request: Request, given: ExplainRequest) -> ExplainResponse:
        """Why items are recommended: past events and attributes, with their effects."""
        call = Explain(who(given), given.items, given.k, given.task, given.events)
        by, rows = await access.call(request, call, given.user_id, given.after)
        return ExplainResponse(**by._asdict(), items=rows)


def _add_events(found: APIRouter, access: Access) -> None:
    @found.post("/events", dependencies=[access.scope("events")], tags=["events"])
    async def events(service: Served, given: EventsRequest) -> EventsResponse:
        """Store events; they are durable, and known to requests of their users, when the response comes."""
        service.check_keeps_events()
        form = service.state.format
        records = [form.record(e.columns(), f"events[{n}]") for n, e in enumerate(given.events)]
        before = service.writer.known
        seqs = await access.submit(service, records)
        known = sum(seq <= before for seq in seqs) + len(seqs) - len(set(seqs))
        return EventsResponse(seq=max(seqs), sequences=seqs, duplicates=known)


def _add_catalog(found: APIRouter, access: Access) -> None:
    @found.get("/items/{item}", dependencies=[access.scope("read")], tags=["catalog"])
    async def item(service: Served, item: PathId) -> ItemResponse:
        """An item of the catalog."""
        return ItemResponse(**known_item(service.state, item))

    @found.put("/items/{item}", dependencies=[access.scope("admin")], tags=["catalog"])
    async def put_item(service: Served, item: PathId, given: ItemIn) -> SeqResponse:
        """Add an item to the catalog, give a known one other attributes, or hide it, or show it again."""
        body = new_item(service.state, item, given.attributes, given.hidden)
        [seq] = await access.submit(service, [Record(Kind.ITEM, json.dumps(body))])
        await access.in_thread(lambda: service.forgotten(seq, access.deadline), "the item was not changed in time")
        return SeqResponse(seq=seq)

    @found.get("/users/{user}", dependencies=[access.scope("read")], tags=["users"])
    async def user(service: Served, user: PathId) -> UserResponse:
        """What is known of a user."""
        pending = len(service.pending.of(user))
        attributes = service.state.attributes.get(user, {})
        known = pending > 0 or service.engine.latest_of(user) > float("-inf")
        return UserResponse(user=user, attributes=attributes, known=known, pending=pending)

    @found.put("/users/{user}", dependencies=[access.scope("events")], tags=["users"])
    async def put_user(service: Served, user: PathId, given: UserIn) -> SeqResponse:
        """Set attributes of a user, which the model reads from now on; others stay."""
        attributes = user_attributes(service.state, given.attributes)
        [seq] = await access.submit(service, [Record(Kind.USER, json.dumps(attributes), user=user)])
        await access.in_thread(lambda: service.forgotten(seq, access.deadline), "the user was not changed in time")
        return SeqResponse(seq=seq)

    @found.delete("/users/{user}", dependencies=[access.scope("admin")], tags=["users"])
    async def delete_user(service: Served, user: PathId) -> SeqResponse:
        """Delete a user's events and attributes, in the store, in the state and in its snapshots.

        What was counted of items and attributes stays; so do files that the model was trained on.
        """
        [seq] = await access.submit(service, [Record(Kind.FORGET, "{}", user=user)])
        await access.in_thread(lambda: service.forgotten(seq, 60.0), "the user is being deleted")
        return SeqResponse(seq=seq)


def _add_operation(found: APIRouter, access: Access) -> None:
    @found.get("/health", tags=["operation"])
    async def health() -> HealthResponse:
        """Whether the process lives."""
        return HealthResponse(status="ok")

    @found.get("/ready", tags=["operation"])
    async def ready(service: Served) -> ReadyResponse:
        """Whether requests are served: all records are read and the model is warm."""
        seq, pending = service.state.seq, len(service.pending)
        return ReadyResponse(status="ready", model=service.engine.name, seq=seq, pending=pending)

    @found.get("/metrics", dependencies=[access.scope("read")], tags=["operation"])
    async def metrics(request: Request) -> Response:
        """Figures in Prometheus' format."""
        return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @found.get("/admin/model", dependencies=[access.scope("admin")], tags=["operation"])
    async def model(service: Served) -> ModelResponse:
        """Which model is served, and whether another is being loaded."""
        return ModelResponse(
            model=service.engine.name,
            folder=str(service.run),
            loading=service.swapping,
            error=service.swap_error,
            variants=[
                VariantOut(
                    variant=name, model=own.engine.name, folder=str(own.run), share=service.assignment.share(name)
                )
                for name, own in service.variants.items()
            ],
        )

    @found.post("/admin/model", status_code=202, dependencies=[access.scope("admin")], tags=["operation"])
    async def put_model(service: Served, given: ModelIn) -> JSONResponse:
        """Load another run of this machine beside the model that is served, and exchange them when it is ready."""
        if service.swapping:
            raise HTTPException(409, "another model is being loaded")
        service.swap_soon(given.folder, given.force, given.variant)
        await asyncio.sleep(0)
        return JSONResponse({"status": "loading"}, 202)
