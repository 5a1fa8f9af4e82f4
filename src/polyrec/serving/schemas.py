"""What clients send and get, as OpenAPI describes it."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from polyrec.core.rules import RULES

MOST_ITEMS, MOST_EVENTS = 1_000, 1_000  # of one request


_HALVES = re.compile("[\ud800-\udfff]")  # of characters


def _clean(text: str) -> str:
    """Text that every store can keep: no halves of characters, no zero."""
    if "\0" in text or not (text.isascii() or _HALVES.search(text) is None):
        raise ValueError("holds a character that is none")
    return text


def _finite(value: Any) -> Any:
    """Values of JSON all of whose texts are clean and numbers finite."""
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise ValueError("is no finite number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("is a whole number beyond 64 bits")
    if isinstance(value, list):
        return [_finite(part) for part in value]
    if isinstance(value, dict):
        return {_clean(name): _finite(part) for name, part in value.items()}
    return value


Text = Annotated[StrictStr, Field(max_length=512), AfterValidator(_clean)]
Id = Annotated[StrictInt, Field(ge=-(2**63), le=2**63 - 1)] | Annotated[Text, Field(min_length=1, pattern=r"\S")]
Value = Annotated[Any, AfterValidator(_finite)]
Time = Annotated[float, Field(allow_inf_nan=False)] | Text
K = Annotated[StrictInt, Field(ge=1, le=MOST_ITEMS, description="how many")]
Ids = Annotated[list[Id], Field(max_length=MOST_ITEMS)]
Attributes = Annotated[dict[Text, Value], Field(max_length=200)]


class Strict(BaseModel):
    """A body of which every key is known."""

    model_config = ConfigDict(extra="forbid")


class UserFields(Strict):
    """Who calls, and when."""

    user_id: Id | None = Field(None, description="a user whose events the server knows")
    history: Annotated[list[Id | Attributes], Field(max_length=MOST_EVENTS)] | None = Field(
        None, description="instead of a user_id: events, oldest first, as item ids or with columns of the log"
    )
    user: Attributes | None = Field(None, description="attributes of the user")
    context: Attributes | None = Field(None, description="context of the request")
    time: Time | None = Field(None, description="of the request: seconds since 1970 or ISO text; default: now")
    after: Annotated[StrictInt, Field(ge=0)] | None = Field(
        None, description="sequence number of an acknowledged event that the response must know of"
    )


RuleFields = Annotated[
    dict[Text, Any],
    Field(
        max_length=len(RULES),
        description="what a list may hold and in which order: " + ", ".join(RULES),
        examples=[{"where": "year >= 2000", "at_most": {"genres": 3}}],
    ),
]


class RecommendRequest(UserFields):
    """Who wants items."""

    k: K = 10
    task: Text | None = Field(None, description="the task that ranks; default: the model's first retrieval task")
    exclude_seen: StrictBool | None = Field(None, description="leave out items of the history")
    candidates: Ids | None = Field(None, description="items to choose from; default: the whole catalog")
    exclude: Ids = Field(default=[], description="items that are never listed")
    rules: RuleFields | None = None

    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": 7, "k": 3}, {"history": [318, 858], "k": 3}]})


class ScoreRequest(UserFields):
    """Items to score for a user."""

    items: Annotated[list[Id], Field(min_length=1, max_length=MOST_ITEMS)]

    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": 7, "items": [318, 858]}]})


class SearchRequest(UserFields):
    """What somebody typed."""

    query: Annotated[StrictStr, Field(min_length=1, max_length=4096), AfterValidator(_clean)]
    k: K = 10
    task: Text | None = None
    rules: RuleFields | None = None

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "space opera", "k": 3}]})


class SimilarRequest(Strict):
    """An item."""

    item_id: Id
    k: K = 10

    model_config = ConfigDict(json_schema_extra={"examples": [{"item_id": 318, "k": 3}]})


class ExplainRequest(UserFields):
    """Why items are recommended."""

    items: Annotated[list[Id], Field(min_length=1, max_length=50)] | None = Field(
        None, description="items to explain; default: those that are recommended"
    )
    k: Annotated[StrictInt, Field(ge=1, le=50)] = 5
    task: Text | None = None
    events: Annotated[StrictInt, Field(ge=0, le=20)] = Field(3, description="past events per item")

    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": 7, "k": 2}]})


class EventIn(BaseModel):
    """What somebody did; further keys are columns of the log (feedback, context)."""

    user_id: Id
    item_id: Id
    timestamp: Time | None = Field(None, description="seconds since 1970 or ISO text; default: now")
    event_id: Annotated[Text, Field(min_length=1)] | None = Field(
        None, description="an event that is sent again with this id counts once"
    )

    __pydantic_extra__: dict[str, Value] = Field(init=False)
    model_config = ConfigDict(extra="allow")

    def columns(self) -> dict[str, Any]:
        """All fields, as `model_dump` gives them in several times as long."""
        own = {"user_id": self.user_id, "item_id": self.item_id, "timestamp": self.timestamp, "event_id": self.event_id}
        return own | (self.__pydantic_extra__ or {})


class EventsRequest(Strict):
    """Events, oldest first."""

    events: Annotated[list[EventIn], Field(min_length=1, max_length=MOST_EVENTS)]

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"events": [{"event_id": "a1", "user_id": 7, "item_id": 318, "rating": 5.0}]}]}
    )


class ItemIn(Strict):
    """A new item, other attributes of a known one, or whether it is hidden."""

    attributes: Attributes | None = Field(None, description="columns of the catalog; of a known item others stay")
    hidden: StrictBool | None = Field(None, description="true: it is never listed")

    model_config = ConfigDict(json_schema_extra={"examples": [{"attributes": {"title": "New"}}, {"hidden": True}]})


class UserIn(Strict):
    """Attributes of a user."""

    attributes: Attributes

    model_config = ConfigDict(json_schema_extra={"examples": [{"attributes": {"age": 30}}]})


class ModelIn(Strict):
    """A run folder on the server's machine."""

    folder: Annotated[Text, Field(min_length=1)]
    force: StrictBool = Field(False, description="also if columns or tasks differ")
    variant: Text = Field("main", description="whose model is exchanged")

    model_config = ConfigDict(json_schema_extra={"examples": [{"folder": "runs/demo"}]})


# ------------------------------------------------------------------- responses
class ItemOut(BaseModel):
    """A recommended item."""

    rank: int
    item: int | str
    title: Any = None
    score: float
    predictions: dict[str, float] = Field(description="of the other tasks")
    cold_item: bool = Field(description="without training events, scored by its attributes alone")
    propensity: float | None = Field(None, description="chance with which it was drawn, of lists that explore")


class RecommendResponse(BaseModel):
    """Items, best first."""

    model: str
    variant: str = Field(description="whose model it is, `main` without variants")
    cold_start: bool | None = Field(None, description="nothing of the history is known")
    items: list[ItemOut]
    unmet: list[str] = Field(default=[], description="what rules could not keep")


class ScoredItem(BaseModel):
    """Predictions of every task for one item."""

    item: int | str
    title: Any = None
    predictions: dict[str, float]


class ScoreResponse(BaseModel):
    """Items, in the order of the request."""

    model: str
    variant: str = Field(description="whose model it is, `main` without variants")
    items: list[ScoredItem]


class SimilarItem(BaseModel):
    """An item that is like another."""

    item: int | str
    title: Any = None
    similarity: float
    events: int


class SimilarResponse(BaseModel):
    """Items, nearest first."""

    model: str
    variant: str = Field(description="whose model it is, `main` without variants")
    items: list[SimilarItem]


class ExplainResponse(BaseModel):
    """Items with reasons, as `polyrec explain --json` gives them."""

    model: str
    variant: str = Field(description="whose model it is, `main` without variants")
    items: list[dict[str, Any]]


class EventsResponse(BaseModel):
    """Durable events."""

    seq: int = Field(description="of the last one: a request with `after` of it sees them all")
    sequences: list[int]
    duplicates: int = Field(description="events that were known by their event_id")


class SeqResponse(BaseModel):
    """Something durable."""

    seq: int


class ItemResponse(BaseModel):
    """An item of the catalog."""

    item: int | str
    attributes: dict[str, Any]
    hidden: bool
    events: int = Field(description="in the training log")


class UserResponse(BaseModel):
    """What is known of a user."""

    user: int | str
    attributes: dict[str, Any]
    known: bool = Field(description="whether there are events")
    pending: int = Field(description="events that only this user's requests see yet")


class HealthResponse(BaseModel):
    """A process that lives."""

    status: str


class ReadyResponse(BaseModel):
    """A server that is ready."""

    status: str
    model: str
    seq: int
    pending: int


class VariantOut(BaseModel):
    """A model that some users see, or none: the shadow."""

    variant: str
    model: str
    folder: str
    share: float = Field(description="of all users")


class ModelResponse(BaseModel):
    """Which models are served."""

    model: str
    folder: str
    loading: bool
    error: str
    variants: list[VariantOut]


class Problem(BaseModel):
    """What is wrong with a request."""

    field: str = Field(description="where it is, empty: the whole request")
    message: str


class Refused(BaseModel):
    """A request that was refused."""

    detail: list[Problem]
