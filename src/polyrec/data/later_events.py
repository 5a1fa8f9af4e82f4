"""New events come after those that were counted."""

from __future__ import annotations

import numpy as np


def check_later(time: np.ndarray, latest: float, known: str = "the latest event already counted") -> None:
    """Refuse events that are not later than what is known: they would be counted twice, or out of order.

    Args:
        time: [R], seconds, in the order of the table's rows.
        latest: seconds.
        known: what happened then, for the message.

    Raises:
        ValueError: names the first such row, how many there are, and the fix.

    Example:
        >>> check_later(np.array([3.0, 2.0]), latest=2.0)
        Traceback (most recent call last):
            ...
        ValueError: row 1 has time 2, the time of the latest event already counted: update with events in time order...
    """
    late = time <= latest
    if not late.any():
        return
    row = int(late.argmax())
    when = f"earlier than {shown_time(latest)}," if time[row] < latest else "the time of"
    several = "" if late.sum() == 1 else f" ({int(late.sum())} rows come too late)"
    raise ValueError(
        f"row {row} has time {shown_time(time[row])}, {when} {known}: update with events in time order, each "
        f"once and those of one time together, or give all events at once to `resume`{several}"
    )


def shown_time(seconds: float) -> str:
    """Seconds for a message, no digit more than needed.

    Example:
        >>> shown_time(199.0), shown_time(0.25)
        ('199', '0.25')
    """
    return f"{seconds:.3f}".rstrip("0").rstrip(".")
