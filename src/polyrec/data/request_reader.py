"""What a request may say: history, user, context, time and query are checked before anything is computed of them.

`recommend`, `search`, `explain`, `rerank`, the pipeline, the web demo and the command line all read requests here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa

from polyrec.core.ids import check_id
from polyrec.core.ranges import NOT_NEGATIVE, SHARE, Range
from polyrec.core.schema import Columns, TaskConfig
from polyrec.core.settings import SettingError, as_number, check_keys, nearest, read_value, shown
from polyrec.core.stack import caller_level
from polyrec.data.columns import ColumnEncoder
from polyrec.data.tables import as_table, column, is_table, label_values
from polyrec.data.times import read_time

# Scalars of requests, by the names that functions give them.
_SCALARS: Mapping[str, Any] = {
    "k": Annotated[int, Range(1)],
    "events": Annotated[int, NOT_NEGATIVE],
    "expand": Annotated[int, NOT_NEGATIVE],
    "expand_weight": Annotated[float, SHARE],
    "blend": Annotated[float, NOT_NEGATIVE],
    "exclude_seen": bool | None,
    "words": bool,
    "reasons": bool,
    "task": str | None,
    "query": str,
}
_BOUNDED = ("multiclass", "ordinal")  # heads whose labels have limits, which are those of training


def read_scalar(name: str, value: Any) -> Any:
    """A number, switch or text of a request.

    Example:
        >>> read_scalar("k", np.int64(5))
        5
        >>> read_scalar("exclude_seen", "no")
        Traceback (most recent call last):
            ...
        polyrec.core.settings.SettingError: exclude_seen is 'no'; it must be true or false or null
    """
    return read_value(_SCALARS[name], value, name)


def read_ids(given: Any, name: str) -> list[Any]:
    """Item ids of a request, as a list.

    Raises:
        ValueError: it is one text (whose letters would be ids), or an entry is no id.
    """
    if isinstance(given, pa.Array | pa.ChunkedArray):
        given = given.to_pylist()
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Collection):
        raise SettingError(name, f"is {shown(given)}; it must be a list of item ids")
    found = given.tolist() if isinstance(given, np.ndarray) else list(given)
    for n, entry in enumerate(found):
        check_id(entry, f"{name}[{n}]")
    return [str(entry) for entry in found] if len({isinstance(entry, str) for entry in found}) > 1 else found


@dataclass(frozen=True)
class RequestReader:
    """Reads requests by what the tables were.

    Args:
        columns, tasks: as the processor has them.
        feedback, context, user: encoders of what the model reads.
        measured: further columns of the log that statistics read.
        log_columns: all columns of the log that was fitted; those that nothing reads are no mistake in a history.
        labels: {task: summary of its training labels}.
    """

    columns: Columns
    tasks: Sequence[TaskConfig]
    feedback: Mapping[str, ColumnEncoder]
    context: Mapping[str, ColumnEncoder]
    user: Mapping[str, ColumnEncoder]
    measured: Collection[str] = ()
    log_columns: Collection[str] = ()
    labels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def event_columns(self) -> list[str]:
        """Columns that an event of a history may have, those that the model reads first."""
        own, rules = self.columns, [task.parsed_label for task in self.tasks]
        known: list[str | None] = [
            own.item,
            own.time,
            *self.feedback,
            *(rule.column for rule in rules if rule),
            *self.context,
        ]
        others = [own.user, own.order, own.query, own.query_item, *own.weight.values(), *own.propensity.values()]
        return list(dict.fromkeys(n for n in (*known, *self.measured, *others, *self.log_columns) if n is not None))

    def history(self, given: Any) -> pa.Table | None:
        """Events, oldest first, as a table; None = there are none.

        Raises:
            ValueError: an entry is neither an id nor an event, or has a key that no event has.
        """
        if given is None:
            return None
        if isinstance(given, str) and not (is_table(given) or Path(given).exists()):
            raise SettingError("history", f"is {shown(given)}; pass a list of item ids (or the path of a table)")
        if isinstance(given, np.ndarray | pa.Array | pa.ChunkedArray):
            given = given.tolist() if isinstance(given, np.ndarray) else given.to_pylist()
        elif type(given).__name__ == "Series":  # of pandas or polars
            given = list(given)
        if isinstance(given, Mapping) and not all(_is_column(values) for values in given.values()):
            raise SettingError("history", f"is {shown(given)}, one event: put it into a list")
        if isinstance(given, Sequence) and not isinstance(given, str | bytes):
            for n, event in enumerate(given):
                self._check_event(event, f"history[{n}]")
        table = as_table(given, self.columns.item)
        if table is None:
            return None
        if self.log_columns:  # processors of before do not know what else the log had
            check_keys(dict.fromkeys(table.column_names), self.event_columns, "the history")
        self._check_numbers(table)
        self._check_feedback(table)
        return table

    def check_alike(self, history: pa.Table | None, context: Mapping[str, Any]) -> None:
        """Refuse context of another kind (a number, a text, a list) than the history's."""
        for name, value in context.items():
            if history is None or value is None or name not in history.column_names:
                continue
            known = [v for v in column(history, name, "history", "context").to_pylist() if v is not None]
            if known and _kind(known[0]) != _kind(value):
                raise SettingError(
                    f"context.{name}", f"is {shown(value)}, but the history has {shown(known[0])}: give both alike"
                )

    def _check_event(self, event: Any, name: str) -> None:
        if not isinstance(event, Mapping):
            check_id(event, name)
            return
        check_keys(event, self.event_columns, name)
        if self.columns.item not in event:
            raise SettingError(name, f"has no {self.columns.item!r}: say which item it is about")
        check_id(event[self.columns.item], f"{name}.{self.columns.item}")
        for key, value in event.items():
            if isinstance(value, Mapping | set | bytes):
                raise SettingError(f"{name}.{key}", f"is {shown(value)}; it must be one value or a list of values")

    def _check_numbers(self, table: pa.Table) -> None:
        """Refuse what is no number in a column that is read as numbers."""
        rules = [task.parsed_label for task in self.tasks]
        numeric = {rule.column for rule in rules if rule is not None and not rule.words}
        numeric |= {n for n, e in (*self.feedback.items(), *self.context.items()) if e.kind == "numeric"}
        for name in sorted({*numeric, *self.measured} & set(table.column_names)):
            values = column(table, name, "history", "feedback")
            known = self.feedback[name].vocabulary if name in self.feedback else []
            switch = pa.types.is_boolean(values.type) and {*known} <= {"true", "false"}
            if switch or pa.types.is_integer(values.type) or pa.types.is_null(values.type):
                continue
            for n, value in enumerate(values.to_pylist()):
                if not _is_number(value):
                    raise SettingError(f"history[{n}].{name}", f"is {shown(value)}; it must be a finite number or null")

    def _check_feedback(self, table: pa.Table) -> None:
        """Refuse a label that its head cannot mean; say where feedback lies outside of what training has seen."""
        for task in self.tasks:
            rule, seen = task.parsed_label, self.labels.get(task.name, {})
            if task.head not in _BOUNDED or rule is None or rule.column not in table.column_names or not seen:
                continue
            values = label_values(table, rule, "history")
            wrong = values[(values < seen["minimum"]) | (values > seen["maximum"])]
            if len(wrong):
                allowed = f"{seen['minimum']:g} to {seen['maximum']:g}"
                raise SettingError("history", f"has the {task.name} {wrong[0]:g}; it must be in {allowed}")
        for name, encoder in self.feedback.items():
            limits = _limits(encoder)
            if limits is None or name not in table.column_names:
                continue
            for value in column(table, name, "history", "feedback").to_pylist():
                number = as_number(value)
                if number is not None and not limits[0] <= number <= limits[1]:
                    warnings.warn(
                        f"history: {name} is {number:g}, outside of what training has seen ({limits[0]:g} to "
                        f"{limits[1]:g})",
                        stacklevel=caller_level(),
                    )
                    break

    def attributes(self, given: Any, name: str, known: Mapping[str, ColumnEncoder]) -> dict[str, Any]:
        """Attributes of the user, or context of the request, {column: value}.

        Args:
            name: "user" or "context".
            known: encoders of the columns.
        """
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            raise SettingError(name, f"is {shown(given)}; it must be a mapping of columns to values")
        found = {}
        for key, value in given.items():
            if key not in known:
                raise ValueError(f"unknown {name} column {shown(key)}; {nearest(key, sorted(known))}")
            if known[key].kind == "numeric" and not _is_number(value):
                raise SettingError(f"{name}.{key}", f"is {shown(value)}; it must be a finite number or null")
            if isinstance(value, Mapping | set | bytes) or (isinstance(value, float) and math.isinf(value)):
                raise SettingError(f"{name}.{key}", f"is {shown(value)}; it must be one value or a list of values")
            large = isinstance(value, int) and abs(value) >= 2**63  # more than Arrow's whole numbers hold
            found[key] = value if not large else float(value) if known[key].kind == "numeric" else str(value)
        return found

    def user_id(self, given: Any) -> Any:
        """Whose stored events are the history; None = nobody's."""
        if given is not None:
            check_id(given, "user_id", "a user id")
        return given

    def time(self, given: Any) -> float | None:
        """When the request is made, in seconds; None = right after the latest event known."""
        return None if given is None else read_time(given)


def _is_column(values: Any) -> bool:
    return isinstance(values, Sequence | np.ndarray | pa.Array | pa.ChunkedArray) and not isinstance(values, str)


def _is_number(value: Any) -> bool:
    """Whether a value is a number, or says that there is none; a text with an exponent is none in a table."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    number = None if isinstance(value, str) else as_number(value)
    return number is not None and abs(number) < 1e300


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    return "number" if as_number(value) is not None or isinstance(value, bool) else type(value).__name__


def _limits(encoder: ColumnEncoder) -> tuple[float, float] | None:
    """The least and the largest number of training; None = the column holds none."""
    if encoder.kind == "numeric":
        return (encoder.knots[0], encoder.knots[-1]) if encoder.knots else None
    numbers = [as_number(value) if not isinstance(value, str) else _number_of(value) for value in encoder.vocabulary]
    known = [number for number in numbers if number is not None]
    return (min(known), max(known)) if known and len(known) == len(numbers) and encoder.kind == "categorical" else None


def _number_of(text: str) -> float | None:
    try:
        return float(text)  # a categorical column of fractions keeps their texts
    except ValueError:
        return None
