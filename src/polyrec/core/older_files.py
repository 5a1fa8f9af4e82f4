"""What files, recipes and calls of earlier versions hold: keys that have another name today.

This is the only place that knows old names. Saved files with them load silently; code and recipes
that use one get a warning, and it works for one more release.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from polyrec.core.stack import caller_level

# Dotted as in a recipe and in --set. Arguments of `Columns` are those of the section `columns`, and arguments of
# `PolyRecConfig` (and keys of config.json) those of `model`.
RENAMED = {
    "past": "prior_history",
    "columns.past": "columns.prior_history",
    "columns.past_length": "columns.prior_history_length",
    "columns.keys_only": "columns.statistics_only",
    "columns.clock": "columns.time_zone",
    "model.item_rank": "model.item_embedding_rank",
}
_FIELDS = {"import": "imports"}  # keys of recipes that are words of Python, under which a dataclass can have no field
_SECTIONS: dict[type, str] = {}  # of classes that read a part of a recipe
_reading_saved: ContextVar[bool] = ContextVar("reading_saved", default=False)


@contextmanager
def saved_files() -> Iterator[None]:
    """Inside, names that are refused or renamed today are accepted, because files of an earlier version hold them."""
    token = _reading_saved.set(True)
    try:
        yield
    finally:
        _reading_saved.reset(token)


def reads_saved() -> bool:
    """Whether what is being read comes from files of a saved run, see [`saved_files`]."""
    return _reading_saved.get()


def deprecated(message: str) -> None:
    """Warn of an old name, at the line outside polyrec that has it: Python shows such warnings of `__main__` alone."""
    warnings.warn(message, DeprecationWarning, stacklevel=caller_level())


def new_key(key: str, say: Callable[[str], None] = deprecated) -> str:
    """A dotted key under its name of today.

    Args:
        say: is given the message about an old name; not called while saved files are read.

    Example:
        >>> new_key("columns.clock", say=print)
        columns.clock is now columns.time_zone; the old name will be removed
        'columns.time_zone'
    """
    if key in _FIELDS:
        return _FIELDS[key]
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            if not reads_saved():
                say(f"{old} is now {new}; the old name will be removed")
            return new + key.removeprefix(old)
    return key


def with_new_keys(
    values: Mapping[str, Any], section: str = "", say: Callable[[str], None] = deprecated
) -> dict[str, Any]:
    """A section of a recipe, or the whole, with its keys of today.

    Raises:
        ValueError: one thing is given under both names.

    Example:
        >>> with_new_keys({"past": "p.parquet", "columns": {"clock": 8, "user": "u"}}, say=lambda message: None)
        {'prior_history': 'p.parquet', 'columns': {'time_zone': 8, 'user': 'u'}}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        old = f"{section}.{key}".removeprefix(".")
        current = new_key(old, say)
        new = current.removeprefix(f"{section}.") if current != old else key
        if new != key and new in values:
            raise ValueError(f"{old} is the old name of {current}, and both are given: leave {old} out")
        inside = not section and key in ("columns", "model") and isinstance(value, Mapping)
        found[new] = with_new_keys(value, key, say) if inside else value
    return found


def in_section(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a class under their names of today; nothing changes for classes that read no section."""
    return dict(values) if cls not in _SECTIONS else with_new_keys(values, _SECTIONS[cls])


def reads_section(section: str) -> Callable[[type], type]:
    """Class decorator: keyword arguments of a section of the recipe ("" = the whole) may have their old names."""

    def wrap(cls: Any) -> Any:
        original = cls.__init__
        _SECTIONS[cls] = section

        @functools.wraps(original)
        def __init__(self: Any, *args: Any, **values: Any) -> None:
            original(self, *args, **with_new_keys(values, section))

        cls.__init__ = __init__
        return cls

    return wrap


def renamed_argument(old: str, value: Any, new: str, current: Any) -> Any:
    """An argument of a function that may be given under its old name.

    Args:
        old, value: that name and what was given under it; None: nothing.
        new, current: the name of today and what was given under it.
    """
    if value is None:
        return current
    deprecated(f"{old}= is now {new}=; the old name will be removed")
    return value
