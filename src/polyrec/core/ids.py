"""Ids of items and users as requests give them."""

from __future__ import annotations

from typing import Any

from polyrec.core.settings import SettingError, as_number, shown


def check_id(value: Any, name: str, of: str = "an item id") -> None:
    """Refuse what is neither text nor a whole number.

    Args:
        of: what it should be an id of, for the message.
    """
    if type(value) in (str, int):
        return
    number = as_number(value)
    if not isinstance(value, str) and (number is None or number != int(number)):
        raise SettingError(name, f"is {shown(value)}; it must be {of}: text or a whole number")
