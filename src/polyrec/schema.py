"""What an event log holds: tasks to learn, columns to read, features that come of them. Needs no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from polyrec.registry import COUPLINGS, HEADS, nearest

FeatureKind = Literal["categorical", "multi", "numeric", "vector", "embedding", "text"]
FeatureSource = Literal["item", "user", "event", "candidate"]

STATISTICS = "statistics"  # name of the candidate feature that holds all running statistics
VECTOR_FILE = "embedding:"  # begins the kind of an embedding that lies in a file
RESIDUALS = "residuals"  # name of the event feature that holds labels minus running baselines
TIME_GAP = "time_gap"  # name of the event feature that holds the time since the event before
REFUSED = (
    "refused:"  # begins the event feature of a task with `repeats`: 1 where the item was asked about and not taken
)

_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_COMPARISON = re.compile(rf"^(?P<left>[^<>=!]+?)\s*(?P<op>>=|<=|==|!=|>|<)\s*(?P<value>{_NUMBER})\s*$")
_LOG1P = re.compile(r"^\s*log1p\s*\((?P<inside>[^()]*)\)\s*$")
_QUOTIENT = re.compile(rf"^(?P<column>.*\S)\s*/\s*(?P<divisor>{_NUMBER})\s*$")


def from_dict(cls: type, values: Mapping[str, Any]) -> Any:
    """Build the dataclass `cls` from a mapping; an unknown key is refused with the nearest known one."""
    known = [f.name for f in fields(cls)]
    if not isinstance(values, Mapping):
        raise ValueError(f"{cls.__name__} is {values!r}, but must be a mapping of some of {', '.join(known)}")
    for key in values:
        if key not in known:
            raise ValueError(f"unknown key {key!r} in {cls.__name__}; {nearest(key, known)}")
    return cls(**values)


@dataclass(frozen=True)
class Label:
    """Where a task's label comes from: a column, or something simple that is computed of it.

    Args:
        column: of the interactions.
        op, value: a comparison with a number (1 = true, 0 = false); None = the number itself.
        divisor: the column is divided by it first, e.g. 1000 to make seconds of milliseconds.
        log1p: then log(1 + x) is taken, which brings long watch times and large sums closer together.

    Example:
        >>> label = Label.parse("rating >= 4")
        >>> label.column, label.op, label.value
        ('rating', '>=', 4.0)
        >>> label = Label.parse("log1p(play_ms / 1000)")
        >>> label.column, label.divisor, label.log1p
        ('play_ms', 1000.0, True)
    """

    column: str
    op: str | None = None
    value: float = 0.0
    divisor: float = 1.0
    log1p: bool = False

    @classmethod
    def parse(cls, text: str) -> Label:
        """Parse "column", "column / number", "log1p(column)" or "log1p(column / number)", each also compared with a
        number by one of >=, <=, ==, !=, >, <.
        """
        left, op, value = text, None, 0.0
        if compared := _COMPARISON.match(text):
            left, op, value = compared["left"], compared["op"], float(compared["value"])
        logarithm = _LOG1P.match(left)
        column, divisor = logarithm["inside"] if logarithm else left, 1.0
        if quotient := _QUOTIENT.match(column):
            column, divisor = quotient["column"], float(quotient["divisor"])
        column = column.strip()
        if not column or re.search(r"[<>=!]", column) or re.match(r"log1p\s*\(", column):
            raise ValueError(
                f"cannot read the label {text!r}: write a column name, 'column / number', 'log1p(column)', "
                "'log1p(column / number)' or 'column >= number' (>=, <=, ==, !=, >, <)"
            )
        if divisor == 0:
            raise ValueError(f"the label {text!r} divides by 0: give another number")
        return cls(column, op, value, divisor, logarithm is not None)


@dataclass(frozen=True)
class TaskConfig:
    """One task: what to predict, with which head, from which label.

    Args:
        name: the name under which losses, logits and metrics of the task appear.
        head: a registered kind of head ("retrieval", "binary", "regression", ...).
        label: a column of the interactions, a comparison such as `"rating >= 4"`, or `"log1p(play_ms / 1000)"` (see
            [`Label.parse`]). Default: the task's name. For a retrieval task it says which events count as the next
            item, for a search task which ones as found; default: every event (with a query).
        weight: lambda of the weighted objective sum_i lambda_i L_i (a `fixed` weighting reads it).
        options: keyword arguments of the head; the head refuses those it does not know.
        parent: name of the task this one follows from (a purchase follows a click); needs a `coupling`.
        coupling: how the two are coupled, by registered name ("esmm", "aitm", ...).
        coupling_options: keyword arguments of the coupling.

    Example:
        >>> TaskConfig("like", head="binary", label="rating >= 4").weight
        1.0
    """

    name: str
    head: str
    label: str | None = None
    weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    parent: str | None = None
    coupling: str | None = None
    coupling_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", self.name):
            raise ValueError(f"task name {self.name!r} must be letters, digits and '_', beginning with a letter")
        HEADS.check(self.head)
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"weight of task {self.name!r} is {self.weight}; it must be a finite number >= 0")
        if self.label is not None:
            Label.parse(self.label)
        if (self.parent is None) != (self.coupling is None):
            raise ValueError(
                f"task {self.name!r} has parent={self.parent!r} and coupling={self.coupling!r}: give both or neither"
            )
        if self.coupling is not None:
            COUPLINGS.check(self.coupling)

    @property
    def parsed_label(self) -> Label | None:
        """The label rule; None means that every event is a positive example (retrieval without `label`)."""
        if self.label is None:
            return None if self.ranks_catalog else Label(self.name)
        return Label.parse(self.label)

    @property
    def ranks_catalog(self) -> bool:
        """Whether the task finds items in the whole catalog; others judge an item that is asked about."""
        return self.head in ("retrieval", "search")


@dataclass(frozen=True)
class FeatureConfig:
    """One input feature as the model sees it.

    Args:
        name: the key in the batch.
        source: "item" and "user" attributes, "event" (known once a past event had happened), "candidate" (known
            before the answer: context of the exposure, running statistics). Candidate features are read for past
            events too.
        kind: "categorical" (one code), "multi" (several codes, 0 = padding), "numeric" (one float, NaN = missing),
            "vector" (`size` floats, NaN = missing), "embedding" (a vector of length 1 that another model made, `size`
            floats, NaN = missing), "text" (kept for display; a text encoder is not part of this
            version, so the model does not read it).
        size: rows of the embedding table (codes 0 = missing, 1 = unknown, 2.. = values), or floats of a vector or
            embedding.
        width: codes kept per row of a "multi" feature.
    """

    name: str
    source: FeatureSource
    kind: FeatureKind
    size: int = 1
    width: int = 1

    def __post_init__(self) -> None:
        for value, options, what in (
            (self.source, get_args(FeatureSource), "source"),
            (self.kind, get_args(FeatureKind), "kind"),
        ):
            if value not in options:
                raise ValueError(f"unknown {what} {value!r} of feature {self.name!r}; {nearest(value, list(options))}")
        if self.size < 1 or self.width < 1:
            raise ValueError(f"size and width of feature {self.name!r} must be >= 1, not {self.size} and {self.width}")


@dataclass(frozen=True)
class Columns:
    """Which column of which table means what.

    Args:
        user, item, time: columns of the interactions. Times are seconds since the epoch, Arrow/pandas timestamps or
            ISO strings; `time_unit` says what plain numbers count.
        order: a column that breaks ties of `time` (used with `ties="order"`, and to make sorting reproducible).
        feedback: columns known once an event had happened (rating, watch time): inputs of LATER events only.
        context: columns known before the answer (hour, surface, position): inputs of the candidate itself.
        item_features, user_features: {column: kind} of the items and users table, kind one of "categorical", "multi"
            (lists; "multi:|" for text such as "Comedy|Drama", with any separator), "numeric", "embedding" (lists of W
            numbers each: vectors of an image, a sound, a text), "text". None: every column, its kind inferred from its
            type. Vectors of items may also lie in a file with one row per row of the items table, in its order:
            {"image": "embedding:vectors.npy"} (or .safetensors); it is read in pieces, and a copy is saved with the
            processor. Context and feedback columns may be embeddings, too.
        keys_only: attributes and context that running statistics count by, but that the model does not read itself:
            "item.<attribute>", "user.<attribute>" or "context.<column>". A creator with few events each is known well
            by their rates and would be learnt by heart as a code.
        title: column of the items table shown with recommendations.
        weight: {task: column} of weights of its labels in training (>= 0).
        propensity: {task: column} of the chances in (0, 1] with which a row came to be seen; its label weighs
            1 / max(propensity, propensity_clip) in training.
        propensity_clip: the least propensity that is believed.
        clock: hours from UTC of the people's clock; given, the hour of the day is a context feature named "hour".
        item_time: column of the items table that says when an item appeared; given, its age at the event is a context
            feature named "item_age".
        past: what people did before the log, from a `past` table with one row per person and columns of item id lists,
            oldest first: {column: feedback columns that are 1 for its items}. The first column holds the events
            themselves, e.g. {"watched": [], "liked": ["like"]}; feedback that no column names stays unknown.
        past_length: events of the past, the latest, that are read as history.
        query: what the person typed and then found this item by; null or empty = they did not search. Needs a text
            encoder (`PolyRecProcessor.fit(text=...)`).
        query_item: the item that the query is the text of (the question that a duplicate is searched for), if any; it
            is never a result.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    time_unit: Literal["s", "ms", "us", "ns"] = "s"
    order: str | None = None
    feedback: tuple[str, ...] | dict[str, str] = ()
    context: tuple[str, ...] | dict[str, str] = ()
    item_features: dict[str, str] | None = None
    user_features: dict[str, str] | None = None
    keys_only: tuple[str, ...] = ()
    title: str | None = "title"
    weight: dict[str, str] = field(default_factory=dict)
    propensity: dict[str, str] = field(default_factory=dict)
    propensity_clip: float = 0.01
    clock: float | None = None
    item_time: str | None = None
    past: dict[str, list[str]] | None = None
    past_length: int = 50
    query: str | None = None
    query_item: str | None = None

    def __post_init__(self) -> None:
        if self.time_unit not in ("s", "ms", "us", "ns"):
            raise ValueError(
                f"unknown time_unit {self.time_unit!r}; {nearest(self.time_unit, ['s', 'ms', 'us', 'ns'])}"
            )
        for name in ("feedback", "context"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise ValueError(
                    f"columns.{name} must be a list of columns, not the string {value!r}: write [{value!r}]"
                )
            if not isinstance(value, Mapping):
                object.__setattr__(self, name, tuple(value))
        object.__setattr__(self, "keys_only", tuple(self.keys_only))
        for name in ("item_features", "user_features"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, Mapping)):
                raise ValueError(
                    f"columns.{name} must say the kind of each column, e.g. {{'genre': 'categorical'}}, not {value!r}"
                )
            known = ["categorical", "multi", "numeric", "embedding", "text"]
            _check_kinds(value or {}, known, files=name == "item_features")
        for name in ("feedback", "context"):
            value = getattr(self, name)
            # Text is kept for display with items and people; nothing displays or reads it here.
            _check_kinds(value if isinstance(value, Mapping) else {}, ["categorical", "multi", "numeric", "embedding"])
        for name, value in (("weight", self.weight), ("propensity", self.propensity)):
            if not isinstance(value, Mapping):
                raise ValueError(
                    f"columns.{name} must say the column of each task, e.g. {{'like': 'w'}}, not {value!r}"
                )
        if not 0 <= self.propensity_clip <= 1:
            raise ValueError(f"columns.propensity_clip is {self.propensity_clip}; it must be in [0, 1]")
        if self.query_item is not None and self.query is None:
            raise ValueError("columns.query_item says what a query is the text of: name the column of queries, too")
        self._check_past()

    def _check_past(self) -> None:
        if self.past_length < 0:
            raise ValueError(f"columns.past_length is {self.past_length}; it must be >= 0")
        if self.past is None:
            return
        if not isinstance(self.past, Mapping):
            raise ValueError(
                f"columns.past must say what each column marks, e.g. {{'watched': [], 'liked': ['like']}}, not "
                f"{self.past!r}"
            )
        if not self.past:
            raise ValueError("columns.past names no column: name the columns of item ids, or leave it out")
        for name, meant in self.past.items():
            if isinstance(meant, str):
                raise ValueError(
                    f"columns.past[{name!r}] must be a list of feedback columns, not the string {meant!r}: "
                    f"write [{meant!r}]"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def _check_kinds(declared: Mapping[str, str], known: list[str], files: bool = False) -> None:
    for column, kind in declared.items():
        if kind.startswith(VECTOR_FILE):
            if not files or kind == VECTOR_FILE:
                raise ValueError(
                    f"kind {kind!r} of column {column!r}: only item_features may name a file of vectors, e.g. "
                    "'embedding:vectors.npy'; elsewhere give a column of lists, 'embedding'"
                )
            continue
        name = kind if kind in known else kind.partition(":")[0]
        if name not in known or (name != "multi" and name != kind) or kind == "multi:":
            raise ValueError(f"unknown kind {kind!r} of column {column!r}; {nearest(kind, known)}")


def parse_tasks(tasks: Sequence[TaskConfig | Mapping[str, Any]]) -> list[TaskConfig]:
    """Make TaskConfigs of dicts; refuse an empty list, duplicate names and weights that sum to 0."""
    parsed = [t if isinstance(t, TaskConfig) else from_dict(TaskConfig, t) for t in tasks]
    if not parsed:
        raise ValueError('no tasks given: pass at least one, e.g. tasks=[TaskConfig("next_item", head="retrieval")]')
    names = [t.name for t in parsed]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"task name {name!r} is used {names.count(name)} times: names must be unique")
    if sum(t.weight for t in parsed) == 0:
        raise ValueError(
            "every task has weight 0, so nothing would be learnt: give at least one task a positive weight"
        )
    parents_first(parsed)
    return parsed


def parents_first(tasks: Sequence[TaskConfig]) -> list[TaskConfig]:
    """The tasks in an order in which every parent comes before its children; unknown parents and cycles are refused.

    Example:
        >>> tasks = [TaskConfig("buy", "binary", parent="click", coupling="monotone"), TaskConfig("click", "binary")]
        >>> [t.name for t in parents_first(tasks)]
        ['click', 'buy']
    """
    by_name = {t.name: t for t in tasks}
    ordered: dict[str, TaskConfig] = {}
    for task in tasks:
        line = [task]  # from the task up to an ancestor that is placed already, or has no parent
        while line[-1].parent is not None and line[-1].parent not in ordered:
            name = line[-1].parent
            if name not in by_name:
                raise ValueError(
                    f"task {line[-1].name!r} has the unknown parent {name!r}; {nearest(name, list(by_name))}"
                )
            if name in [t.name for t in line]:
                chain = " -> ".join([*(t.name for t in line), name])
                raise ValueError(f"the parents of tasks run in a circle ({chain}): remove one of the parents")
            line.append(by_name[name])
        ordered |= {t.name: t for t in reversed(line)}
    return list(ordered.values())
