"""What an event log holds: tasks to learn, columns to read, features that come of them. Needs no torch."""

from __future__ import annotations

import difflib
import re
import zoneinfo
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal

from polyrec.core.label import Label
from polyrec.core.names import check_task_name, check_task_names
from polyrec.core.older_files import reads_section
from polyrec.core.ranges import AT_LEAST_ONE, NOT_NEGATIVE, SHARE
from polyrec.core.registry import COUPLINGS, HEADS, nearest
from polyrec.core.settings import SettingError, conform, read, shown

FeatureKind = Literal["categorical", "multi", "numeric", "vector", "embedding", "text"]
FeatureSource = Literal["item", "user", "event", "candidate"]
TimeUnit = Literal["s", "ms", "us", "ns"]

ROW_ORDER = "__row__"  # in the place of a time column: the order of the file's rows; of a user column: each row is one
TIME_GAP = "time_gap"  # name of the event feature that holds the time since the event before
STATISTICS = "statistics"  # name of the candidate feature that holds all running statistics
VECTOR_FILE = "embedding:"  # begins the kind of an embedding that lies in a file
RESIDUALS = "residuals"  # name of the event feature that holds labels minus running baselines
REFUSED = "refused:"  # begins the event feature of a task with `repeats`: 1 where the item was shown and is a negative


def from_dict(cls: type, values: Any, where: str = "") -> Any:
    """Build the dataclass `cls` from a mapping, see [`polyrec.core.settings.read`].

    Args:
        where: the section that the values come from, for messages ("columns").

    Raises:
        ValueError: an unknown key, with the nearest known one; a value of another type or out of its range.
    """
    return read(cls, values, where)


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
    head: Annotated[str, HEADS]
    label: str | None = None
    weight: Annotated[float, NOT_NEGATIVE] = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    parent: str | None = None
    coupling: Annotated[str, COUPLINGS] | None = None
    coupling_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", self.name)):
            raise ValueError(
                f"task name {shown(self.name)} must be letters, digits and '_' (64 at most), beginning with a letter"
            )
        conform(self, where=f"tasks.{self.name}")
        check_task_name(self.name)
        HEADS.check(self.head)
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
        """Whether the task finds items in the whole catalog; others score one candidate."""
        return self.head in ("retrieval", "search")


@dataclass(frozen=True)
class FeatureConfig:
    """One input feature as the model sees it.

    Args:
        name: the key in the batch.
        source: "item" and "user" attributes, "event" (known once a past event had happened), "candidate" (known
            before the prediction: context of the exposure, running statistics). Candidate features are read for past
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
    size: Annotated[int, AT_LEAST_ONE] = 1
    width: Annotated[int, AT_LEAST_ONE] = 1

    def __post_init__(self) -> None:
        conform(self, where=f"features.{self.name}")


@reads_section("columns")
@dataclass(frozen=True)
class Columns:
    """Which column of which table means what.

    Args:
        user: user column of the event log.
        item: item column of the event log.
        time: time column of the event log; row: rows are in order of time; none: there are no times. Files and Python
            write "__row__" and null (None). Times are seconds since the epoch, Arrow/pandas timestamps or ISO strings.
            Without times the events of a user are a *set* whatever their order in the file, see
            `PolyRecProcessor.split`.
        time_unit: what times that are plain numbers count.
        time_format: format of times that are not ISO 8601, e.g. %d.%m.%Y. It is read as by `datetime.strptime`; times
            of requests may be written so, too.
        order: a column that breaks ties of `time` (used with `ties="order"`, and to make sorting reproducible).
        feedback: columns known once an event had happened (rating, watch time): inputs of LATER events only.
        context: columns known before the event (hour, surface, position): inputs of the candidate itself.
        item_features, user_features: {column: kind} of the items and users table, kind one of "categorical", "multi"
            (lists; "multi:|" for text such as "Comedy|Drama", with any separator), "numeric", "embedding" (lists of W
            numbers each: vectors of an image, a sound, a text), "text". None: every column, its kind inferred from its
            type. Item embeddings may also lie in a file with one row per row of the items table, in its order:
            {"image": "embedding:vectors.npy"} (or .safetensors); it is read in pieces, and a copy is saved with the
            processor. Context and feedback columns may be embeddings, too.
        statistics_only: attributes and context that running statistics count by, but that are no inputs themselves:
            "item.<attribute>", "user.<attribute>" or "context.<column>". A creator with few events each is known well
            by their rates and would be memorised as a code.
        title: column of the items table shown with recommendations.
        weight: {task: column} of weights of its labels in training (>= 0).
        propensity: {task: column} of the chances in (0, 1] with which a row came to be seen; its label weighs
            1 / max(propensity, propensity_clip) in training.
        propensity_clip: the least propensity that is used; smaller ones are clipped.
        time_zone: of the users, by name ("Europe/Berlin", summer time included) or as hours from UTC; given, the
            hour of the day is a context feature named "hour".
        item_time: column of the items table that says when an item appeared; given, its age at the event is a context
            feature named "item_age".
        prior_history: what users did before the log, from a table with one row per user and columns of item id lists,
            oldest first: {column: feedback columns that are 1 for its items}. The first column holds the events
            themselves, e.g. {"watched": [], "liked": ["like"]}; feedback that no column names stays unknown.
        prior_history_length: how many of those events, the latest, are read as history.
        history: column of the interactions that lists the item ids before each row, oldest first: lists, or texts such
            as "1 2 3", "1,2,3", "a|b" and "[1, 2]". Each row is then a sequence of its own, whose list is all that it
            sees, and only the row's item is a target. `user` may be "__row__" (each row is a user of its own; also if
            it is left out and there is no such column); else rows of one user are kept together.
        query: what the user typed and then found this item by; null or empty = they did not search. Needs a text
            encoder (`PolyRecProcessor.fit(text=...)`).
        query_item: the item that the query is the text of (e.g. the post whose duplicate is searched), if any; it
            is never a result.
        max_unmatched: share of the distinct users (or items) of the interactions that may be missing in the users (or
            items) table; beyond it, ids are most likely written in two ways. 1 allows any.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str | None = "timestamp"
    time_unit: TimeUnit = "s"
    time_format: str | None = None
    order: str | None = None
    feedback: tuple[str, ...] | dict[str, str] = ()
    context: tuple[str, ...] | dict[str, str] = ()
    item_features: dict[str, str] | None = None
    user_features: dict[str, str] | None = None
    statistics_only: tuple[str, ...] = ()
    title: str | None = "title"
    weight: dict[str, str] = field(default_factory=dict)
    propensity: dict[str, str] = field(default_factory=dict)
    propensity_clip: Annotated[float, SHARE] = 0.01
    time_zone: float | str | None = None
    item_time: str | None = None
    prior_history: dict[str, list[str]] | None = None
    prior_history_length: Annotated[int, NOT_NEGATIVE] = 50
    history: str | None = None
    query: str | None = None
    query_item: str | None = None
    max_unmatched: Annotated[float, SHARE] = 0.95

    def __post_init__(self) -> None:
        conform(self, where="columns")
        known = ["categorical", "multi", "numeric", "embedding", "text"]
        for name in ("item_features", "user_features"):
            _check_kinds(getattr(self, name) or {}, known, files=name == "item_features")
        for name in ("feedback", "context"):
            value = getattr(self, name)
            # Text is kept for display with items and users; nothing displays or reads it here.
            _check_kinds(value if isinstance(value, Mapping) else {}, ["categorical", "multi", "numeric", "embedding"])
        self._check_names()
        if self.query_item is not None and self.query is None:
            raise ValueError("columns.query_item says what a query is the text of: name the column of queries, too")
        _check_time_zone(self.time_zone)
        if self.time_format is not None:
            _check_format(self.time_format)
        if self.prior_history is not None and not self.prior_history:
            raise ValueError("columns.prior_history names no column: name the columns of item ids, or leave it out")
        if self.time is None or self.time == ROW_ORDER:
            self._check_without_times()
        self._check_lists()

    def _check_without_times(self) -> None:
        """Refuse what compares with a time, where there is none."""
        needless = ["time_format", "time_zone", "item_time", *(["order", "prior_history"] if self.time is None else [])]
        for name in needless:
            if getattr(self, name) is not None:
                raise SettingError(
                    f"columns.{name}", f"needs times, and columns.time is {shown(self.time)}: leave it out"
                )

    def _check_lists(self) -> None:
        """Refuse what does not go with a list of items in each row."""
        if self.history is None:
            if self.user == ROW_ORDER:
                raise SettingError("columns.user", f"is {ROW_ORDER!r}, which needs columns.history: name the users")
            return
        for name in ("prior_history", "query"):
            if getattr(self, name) is not None:
                raise SettingError(f"columns.{name}", "does not go with columns.history: leave one of both out")

    def _check_names(self) -> None:
        """Refuse one column for two meanings, and columns whose names stand for inputs that polyrec computes."""
        keys = {"user": self.user, "item": self.item}
        if self.time is not None:
            keys["time"] = self.time
        if self.history is not None:
            keys["history"] = self.history
        named = [column for column in keys.values() if column != ROW_ORDER]
        if len(set(named)) < len(named):
            raise SettingError("columns", f"has one column for several of {keys}: name different ones")
        # Feedback and context are read side by side for past events, so that none may have the name of another.
        for name in ("feedback", "context"):
            for column in getattr(self, name):
                if column in keys.values():
                    raise SettingError(f"columns.{name}", f"names {column!r}, a column of ids or times: leave it out")
                if column in (TIME_GAP, RESIDUALS, STATISTICS) or column.startswith(REFUSED):
                    raise SettingError(f"columns.{name}", f"names {column!r}, an input that polyrec makes: rename it")
                if name == "context" and column in self.feedback:
                    raise SettingError("columns", f"names {column!r} as feedback and as context: it is one of both")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def _check_time_zone(zone: float | str | None) -> None:
    """Refuse a time zone that does not exist, and hours that no zone is away from UTC."""
    if isinstance(zone, str):
        known = zoneinfo.available_timezones()
        if zone not in known:
            close = difflib.get_close_matches(zone, sorted(known), n=1)
            hint = f"did you mean {close[0]!r}?" if close else "give a name such as 'Europe/Berlin', or hours from UTC"
            raise SettingError("columns.time_zone", f"is {zone!r}, which is no time zone; {hint}")
    elif zone is not None and not -24 <= zone <= 24:
        raise SettingError("columns.time_zone", f"is {zone}; hours from UTC are -24 to 24, or name a zone")


def _check_format(written: str) -> None:
    """Refuse a format that does not say which day it was."""
    day = datetime(2026, 11, 24)
    try:
        found = datetime.strptime(day.strftime(written), written)
    except ValueError:
        found = None
    if found is None or found.date() != day.date():
        raise SettingError(
            "columns.time_format", f"is {written!r}, which says no day: write e.g. '%d.%m.%Y' or '%m/%d/%Y %H:%M'"
        )


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


def label_columns(tasks: Sequence[TaskConfig]) -> tuple[str, ...]:
    """Columns of the labels: what a past event is known to have brought."""
    found = [t.parsed_label.column for t in tasks if t.parsed_label is not None]
    return tuple(dict.fromkeys(found))


def parse_tasks(tasks: Sequence[TaskConfig | Mapping[str, Any]]) -> list[TaskConfig]:
    """Make TaskConfigs of dicts; refuse an empty list, duplicate names and weights that sum to 0."""
    if isinstance(tasks, str | Mapping) or not isinstance(tasks, Collection):
        raise SettingError("tasks", f"is {shown(tasks)}: give a list of tasks, each with a name and a head")
    parsed = [_parse_task(task, n) for n, task in enumerate(tasks)]
    if not parsed:
        raise ValueError('no tasks given: pass at least one, e.g. tasks=[TaskConfig("next_item", head="retrieval")]')
    names = [t.name for t in parsed]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"task name {name!r} is used {names.count(name)} times: names must be unique")
    check_task_names(names)
    if sum(t.weight for t in parsed) == 0:
        raise ValueError(
            "every task has weight 0, so nothing would be learned: give at least one task a positive weight"
        )
    parents_first(parsed)
    return parsed


def _parse_task(task: Any, position: int) -> TaskConfig:
    if isinstance(task, TaskConfig):
        return task
    where = f"tasks[{position}]"
    if isinstance(task, Mapping):
        for key in ("name", "head"):
            if key not in task:
                raise SettingError(where, f"has no {key}: give one, e.g. {{name: like, head: binary}}")
        if isinstance(task["name"], str):
            where = f"tasks.{task['name']}"
    return from_dict(TaskConfig, task, where)


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
