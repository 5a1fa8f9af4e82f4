"""One typed reader of what was written: recipes, flags, requests and the arguments of configurations.

A dataclass declares what may be given: its annotations say the type, `Annotated[float, Range(...)]` the range. Values
are checked before any work begins, and converted only where nothing can be misread: a whole float or a numpy scalar is
a number, and so is the text "1e-3", because YAML 1.1 reads exponents without a dot as text. The text "no" is no truth
value, `true` is no number, and NaN and infinity are no settings. Messages are one line.
"""

from __future__ import annotations

import difflib
import enum
import functools
import inspect
import math
import numbers
import os
import re
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from polyrec.core.older_files import in_section
from polyrec.core.ranges import Range
from polyrec.core.setting_words import bare, choices_of, expected, takes_list, takes_text
from polyrec.core.suggestions import suggest

_EXPONENT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)[eE][+-]?\d{1,4}", re.ASCII)
_LARGEST = 2**63 - 1  # of a whole number without a range
_SHOWN = 80  # characters of a value in a message


class SettingError(ValueError):
    """A setting that cannot be meant.

    Args:
        name: of the setting, dotted ("training.learning_rate").
        problem: what follows the name ("is 'abc'; it must be a number > 0").
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name, self.problem = name, problem

    def __reduce__(self) -> tuple[type[SettingError], tuple[str, str]]:
        """Another process reads it with both parts."""
        return type(self), (self.name, self.problem)


@contextmanager
def section(name: str) -> Iterator[None]:
    """Errors of settings that are read inside carry the section of the recipe in front of their name.

    Example:
        >>> with section("training"):
        ...     read_value(float, "abc", "learning_rate")
        Traceback (most recent call last):
            ...
        polyrec.core.settings.SettingError: training.learning_rate is 'abc'; it must be a number
    """
    try:
        yield
    except SettingError as error:
        if not name or error.name == name or error.name.startswith((f"{name}.", f"{name}[")):
            raise
        raise SettingError(f"{name}.{error.name}", error.problem) from error


def nearest(name: Any, known: Collection[Any]) -> str:
    """Return the end of an error message: the nearest name, if any is near, and the known ones.

    Example:
        >>> nearest("binry", ["binary", "count"])
        "did you mean 'binary'? known: binary, count"
    """
    return suggest(str(name), [str(k) for k in known])


def check_keys(values: Mapping[Any, Any], known: Collection[str], what: str) -> None:
    """Refuse a key that is not known, with the nearest one that is.

    Example:
        >>> check_keys({"ratng": 5}, ["item_id", "rating"], "an event of the history")
        Traceback (most recent call last):
            ...
        ValueError: unknown key 'ratng' in an event of the history; did you mean 'rating'? known: item_id, rating
    """
    for key in values:
        if key not in known:
            raise ValueError(f"unknown key {shown(key)} in {what}; {nearest(key, known)}")


def shown(value: Any) -> str:
    """A value as a message shows it: one short line, whatever it is.

    Example:
        >>> shown("a\\nb"), len(shown("x" * 1000))
        ("'a\\\\nb'", 80)
    """
    try:
        is_scalar = hasattr(value, "tolist") and getattr(value, "ndim", 1) == 0  # of numpy, of torch
        text = repr(value.tolist() if is_scalar else value)
    except ValueError:  # whole numbers of more than 4,300 digits are not printed
        text = f"a number of {value.bit_length():,} bits" if isinstance(value, int) else type(value).__name__
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def read(cls: type, values: Any, where: str = "", ranges: Mapping[str, Range] | None = None) -> Any:
    """Build the dataclass `cls` from a mapping.

    Args:
        where: the section that the values come from, for messages ("columns").
        ranges: {field: numbers that make sense}, beside those that the annotations declare.

    Raises:
        ValueError: a key is not known, a value is of another type or out of its range, or a key is missing.
    """
    if isinstance(values, cls):
        return values
    arguments = read_arguments(cls, values, where, ranges)
    for f in fields(cls):
        if f.init and f.default is MISSING and f.default_factory is MISSING and f.name not in arguments:
            raise SettingError(
                where or cls.__name__, f"has no {f.name!r}: give {expected(annotations_of(cls)[f.name])}"
            )
    with section(where):
        return cls(**arguments)


def read_arguments(
    cls: type,
    values: Any,
    where: str = "",
    ranges: Mapping[str, Range] | None = None,
    only: Collection[str] | None = None,
) -> dict[str, Any]:
    """The values of [`read`], checked and converted, without building the object.

    Args:
        only: keys that are read; the others are left as they are. None: all, and unknown ones are refused.
    """
    known = [f.name for f in fields(cls) if f.init]
    if not isinstance(values, Mapping):
        what = f"{where or cls.__name__} is {shown(values)}"
        raise ValueError(f"{what}; it must be a mapping of some of {', '.join(known)}")
    values = in_section(cls, values)
    if only is None:
        check_keys(values, known, where or cls.__name__)
    hints = annotations_of(cls)
    return {
        key: read_value(_ranged(hints[key], (ranges or {}).get(key)), value, f"{where}.{key}" if where else key)
        if only is None or key in only
        else value
        for key, value in values.items()
    }


def reads_arguments(ranges: Mapping[str, Range]) -> Callable[[type], type]:
    """Class decorator of transformers' configurations: keyword arguments are checked and converted first.

    Args:
        ranges: {argument: numbers that make sense} of those that the class and its bases in polyrec declare.
    """

    def wrap(cls: Any) -> Any:
        original = cls.__init__
        ours = [base for base in cls.__mro__ if base.__module__.startswith("polyrec.")]
        own = {name for base in ours for name in inspect.get_annotations(base)}

        @functools.wraps(original)
        def __init__(self: Any, *args: Any, **values: Any) -> None:
            original(self, *args, **read_arguments(cls, values, "", ranges, only=own & set(values)))

        cls.__init__ = __init__
        return cls

    return wrap


def conform(instance: Any, ranges: Mapping[str, Range] | None = None, where: str = "") -> None:
    """Check and convert the fields of a dataclass in place; for its `__post_init__`.

    Raises:
        ValueError: a value is of another type or out of its range.
    """
    given = {f.name: getattr(instance, f.name) for f in fields(instance) if f.init}
    for key, value in read_arguments(type(instance), given, where, ranges, only=given).items():
        if value is not given[key]:
            object.__setattr__(instance, key, value)


def read_value(annotation: Any, value: Any, name: str) -> Any:
    """A value as its annotation wants it.

    Raises:
        SettingError: it is of another type or out of its range.

    Example:
        >>> read_value(Annotated[float, Range(0, open_low=True)], "1e-3", "learning_rate")
        0.001
        >>> read_value(bool, "no", "exclude_seen")
        Traceback (most recent call last):
            ...
        polyrec.core.settings.SettingError: exclude_seen is 'no'; it must be true or false
    """
    found = _read(annotation, value, name)
    if found is _WRONG:
        hint = ""
        if isinstance(value, str) and value and takes_list(annotation):
            hint = f", e.g. [{shown(value)}]"
        elif isinstance(value, str) and (
            close := difflib.get_close_matches(value[:_SHOWN], choices_of([annotation]), n=1)
        ):
            hint = f"; did you mean {close[0]!r}?"
        elif isinstance(value, bool | int | float) and takes_text(annotation):
            hint = ", written in quotes"  # YAML reads no, yes, on, off and 1:30 as something else
        elif isinstance(value, float) and not math.isfinite(value):
            hint = ", and finite"
        raise SettingError(name, f"is {shown(value)}; it must be {expected(annotation)}{hint}")
    return found


def read_like(default: Any, value: Any, name: str) -> Any:
    """A value of the type that a default has; where there is none (None), or it is a container, any value passes.

    Example:
        >>> read_like(4, "four", "option 'members'")
        Traceback (most recent call last):
            ...
        polyrec.core.settings.SettingError: option 'members' is 'four'; it must be a whole number
    """
    kind = type(default)
    return read_value(kind, value, name) if kind in (bool, int, float, str) else value


# ---------------------------------------------------------------------- by annotation
_WRONG: Any = object()  # what a value becomes that its annotation does not mean


@functools.cache
def annotations_of(cls: type) -> dict[str, Any]:
    """Annotations of a class and its bases; one that names what is imported for type checkers only says nothing."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        names = vars(sys.modules[base.__module__])
        for name, annotation in inspect.get_annotations(base).items():
            try:
                found[name] = eval(annotation, names) if isinstance(annotation, str) else annotation
            except NameError:
                found[name] = Any
    return found


def _ranged(annotation: Any, limits: Range | None) -> Any:
    return annotation if limits is None else Annotated[annotation, limits]


def _read(annotation: Any, value: Any, name: str, limits: Range | None = None) -> Any:
    """The value, or `_WRONG`; what is wrong inside of it raises."""
    origin = get_origin(annotation)
    if origin is Annotated:
        own = next((a for a in annotation.__metadata__ if isinstance(a, Range)), None)
        return _read(annotation.__origin__, value, name, own or limits)
    if annotation is Any or annotation is object:
        return value
    if origin in (Union, types.UnionType):
        return _read_union(get_args(annotation), value, name, limits)
    if origin is Literal:
        same = [a for a in get_args(annotation) if type(a) is type(value) and a == value]
        return same[0] if same else _WRONG
    if annotation in (None, type(None)):
        return None if value is None else _WRONG
    if annotation in (bool, int, float, str):
        return _read_plain(annotation, value, limits)
    return _read_container(origin or annotation, get_args(annotation), value, name, limits)


def _read_plain(kind: type, value: Any, limits: Range | None) -> Any:
    if kind is str:
        return os.fspath(value) if isinstance(value, os.PathLike) else value if isinstance(value, str) else _WRONG
    if kind is bool:
        return bool(value) if _is_bool(value) else _WRONG
    number = as_number(value)
    if number is None or (kind is int and number != int(number)):
        return _WRONG
    if limits is None and abs(number) > _LARGEST and kind is int:
        return _WRONG
    if limits is not None and not limits.holds(number):
        return _WRONG
    try:
        return kind(number)
    except OverflowError:  # a whole number of hundreds of digits
        return _WRONG


def as_number(value: Any) -> int | float | None:
    """The finite number that a value is, or that a text with an exponent says; None = it is none.

    Example:
        >>> as_number("1e-3"), as_number(True), as_number("no"), as_number(float("nan"))
        (0.001, None, None, None)
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item") and not _is_bool(value):  # of numpy, of torch
        value = value.item()
    if _is_bool(value):
        return None
    if isinstance(value, str):
        if not _EXPONENT.fullmatch(value):
            return None
        value = float(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    return None


def _is_bool(value: Any) -> bool:
    kind = type(value)
    return kind is bool or (kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_"))


def _read_union(choices: Sequence[Any], value: Any, name: str, limits: Range | None) -> Any:
    if isinstance(value, str) and any(_is_enum(choice) for choice in choices):
        return value if value in choices_of(choices) else _WRONG  # `str` beside it means the texts of its values
    # A value that is of one of the types already is never converted to another one.
    for exact in (True, False):
        for choice in choices:
            if exact and not _is_already(choice, value):
                continue
            found = _read(choice, value, name, limits)
            if found is not _WRONG:
                return found
    return _WRONG


def _is_enum(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, enum.Enum)


def _is_already(annotation: Any, value: Any) -> bool:
    kind = bare(annotation)
    if kind in (bool, int, float, str):
        return type(value) is kind
    return kind is type(None) and value is None


def _read_container(kind: Any, inside: tuple[Any, ...], value: Any, name: str, limits: Range | None) -> Any:
    if is_dataclass(kind):
        assert isinstance(kind, type)
        if isinstance(value, kind):
            return value
        return read(kind, value, name) if isinstance(value, Mapping) else _WRONG
    if not isinstance(kind, type):
        return value  # an annotation that says nothing about plain values
    if issubclass(kind, enum.Enum):
        return value if isinstance(value, kind) or value in [member.value for member in kind] else _WRONG
    if issubclass(kind, Path | os.PathLike):
        return value if isinstance(value, os.PathLike) else _WRONG
    if issubclass(kind, Mapping):
        return _read_mapping(inside, value, name, limits) if isinstance(value, Mapping) else _WRONG
    if issubclass(kind, Collection):
        return _read_list(kind, inside, value, name, limits)
    return value if isinstance(value, kind) else _WRONG


def _read_mapping(inside: tuple[Any, ...], value: Mapping[Any, Any], name: str, limits: Range | None) -> Any:
    keys, values = inside or (Any, Any)
    found = {}
    for key, entry in value.items():
        if _read(keys, key, name) is _WRONG:
            raise SettingError(name, f"has the key {shown(key)}; keys must be {expected(keys)}")
        found[key] = _of(values, entry, f"{name}.{key}", limits)
    return found


def _read_list(kind: type, inside: tuple[Any, ...], value: Any, name: str, limits: Range | None) -> Any:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
        return _WRONG
    given = value.tolist() if hasattr(value, "tolist") else list(value)
    if kind is tuple and inside and inside[-1] is not Ellipsis:
        if len(given) != len(inside):
            return _WRONG
        return tuple(_of(a, v, f"{name}[{n}]", limits) for n, (a, v) in enumerate(zip(inside, given, strict=True)))
    entry = inside[0] if inside else Any
    if entry is Any:  # a vocabulary, say
        return tuple(given) if kind is tuple else given
    found = [_of(entry, v, f"{name}[{n}]", limits) for n, v in enumerate(given)]
    return tuple(found) if kind is tuple else found


def _of(annotation: Any, value: Any, name: str, limits: Range | None) -> Any:
    return read_value(_ranged(annotation, limits), value, name)
