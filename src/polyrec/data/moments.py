"""A time that stands alone: of a request, of a cut."""

from __future__ import annotations

from typing import Any

from polyrec.core.settings import SettingError, as_number, shown

_LATEST = 4.1e10  # seconds; a larger number (after the year 3268) counts milliseconds or finer


def as_seconds(value: Any, name: str) -> float:
    """Seconds since the epoch.

    Args:
        value: a number of seconds, ISO text, a date, a datetime or a timestamp of pandas or numpy. Without a time zone
            it is UTC.
        name: of the setting, for messages.

    Example:
        >>> as_seconds("1970-01-02", "time"), as_seconds(5, "time")
        (86400.0, 5.0)
        >>> as_seconds("soon", "time")
        Traceback (most recent call last):
            ...
        polyrec.core.settings.SettingError: time is 'soon'; it must be seconds, ISO text ...
    """
    wrong = "; it must be seconds, ISO text such as '2026-11-24T10:00:00', a date or a datetime"
    seconds = as_number(value)
    if seconds is None:
        seconds = _parsed(value)
    if seconds is None:
        raise SettingError(name, f"is {shown(value)}{wrong}")
    if abs(seconds) > _LATEST:
        raise SettingError(
            name, f"is {shown(value)}, after the year 3000: it counts seconds, divide milliseconds by 1000"
        )
    return float(seconds)


def _parsed(value: Any) -> float | None:
    import datetime

    import pandas as pd

    kinds = (str, datetime.date, pd.Timestamp)
    if not (isinstance(value, kinds) or type(value).__name__ == "datetime64") or value == "":
        return None
    try:
        if isinstance(value, str):
            found = pd.to_datetime([value], utc=True, format="ISO8601")[0]
        else:
            found = pd.Timestamp(value)
            found = found.tz_localize("UTC") if found.tzinfo is None else found.tz_convert("UTC")
    except (ValueError, TypeError, OverflowError):
        return None
    return None if pd.isna(found) else found.timestamp()
