"""Requests of strangers, of a server or a page: plain values of bounded size, and never the name of a file."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

import numpy as np

MAX_EVENTS = 10_000  # of a history; a model reads the last ones
MAX_TEXT = 10_000  # characters
_MAX_COLUMNS = 1_000
_MAX_LIST = 10_000  # values of one cell: categories, or a vector
_SCALARS = (str, int, float, bool, np.integer, np.floating, np.bool_, date, datetime, type(None))


def check_history(history: Any) -> None:
    """Refuse a history that is no list of item ids or of events, or is larger than any user's.

    Raises:
        ValueError: with what it is and what is expected.

    Example:
        >>> check_history([3, {"item_id": 4, "rating": 5.0}])
        >>> check_history("/srv/log.parquet")
        Traceback (most recent call last):
            ...
        ValueError: history is a str; send a list of item ids, or of events such as {"item_id": 3, "rating": 5}
    """
    if history is None:
        return
    if not isinstance(history, list | tuple):
        raise ValueError(
            f"history is a {type(history).__name__}; send a list of item ids, or of events such as "
            '{"item_id": 3, "rating": 5}'
        )
    if len(history) > MAX_EVENTS:
        raise ValueError(f"history has {len(history):,} events; send the latest {MAX_EVENTS:,} at most")
    for position, event in enumerate(history):
        where = f"history[{position}]"
        if isinstance(event, Mapping):
            check_values(event, where)
        else:
            _check_scalar(event, where)


def check_values(values: Any, where: str) -> None:
    """Refuse attributes of a user, of a request or of an event that are no plain values.

    Example:
        >>> check_values({"age": 33, "tags": ["a", "b"]}, "user")
        >>> check_values({"image": {"path": "/etc/passwd"}}, "user")
        Traceback (most recent call last):
            ...
        ValueError: user['image'] is a dict; send a number, a text, or a list of them
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is a {type(values).__name__}; send a mapping such as {{'age': 33}}")
    if len(values) > _MAX_COLUMNS:
        raise ValueError(f"{where} has {len(values):,} entries; send {_MAX_COLUMNS:,} at most")
    for name, value in values.items():
        _check_scalar(name, f"a name in {where}")
        if not isinstance(value, list | tuple):
            _check_scalar(value, f"{where}[{name!r}]")
            continue
        if len(value) > _MAX_LIST:
            raise ValueError(f"{where}[{name!r}] has {len(value):,} values; send {_MAX_LIST:,} at most")
        for entry in value:
            _check_scalar(entry, f"{where}[{name!r}]")


def check_text(text: Any, where: str) -> None:
    """Refuse a text that is none, or longer than anybody types."""
    if not isinstance(text, str):
        raise ValueError(f"{where} is a {type(text).__name__}; send a text")
    _check_scalar(text, where)


def _check_scalar(value: Any, where: str) -> None:
    if not isinstance(value, _SCALARS):
        raise ValueError(f"{where} is a {type(value).__name__}; send a number, a text, or a list of them")
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise ValueError(f"{where} has {len(value):,} characters; send {MAX_TEXT:,} at most")
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise ValueError(f"{where} is beyond 64 bits")
