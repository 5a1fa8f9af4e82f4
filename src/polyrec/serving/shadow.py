"""A model that nobody sees: it scores what others were shown, while nothing else waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from polyrec.serving.calls import Recommend
from polyrec.serving.variant import Variant


class Compared(NamedTuple):
    """A list beside that of the shadow.

    Args:
        overlap: share of the items that are in both, of the longer list.
        difference: mean of the shadow's scores less those that were served, of items in both. None: there are none.
    """

    overlap: float
    difference: float | None


def compared(served: list[dict[str, Any]], shadow: list[dict[str, Any]]) -> Compared:
    """Compare two lists.

    Example:
        >>> compared([{"item": 1, "score": 2.0}, {"item": 2, "score": 1.0}], [{"item": 2, "score": 1.5}])
        Compared(overlap=0.5, difference=0.5)
    """
    scores = {row["item"]: row["score"] for row in served}
    both = [row["score"] - scores[row["item"]] for row in shadow if row["item"] in scores]
    longest = max(len(served), len(shadow))
    return Compared(len(both) / longest if longest else 1.0, sum(both) / len(both) if both else None)


class Shadow:
    """Lets a variant repeat requests.

    Args:
        variant: of the shadow; only the model's thread calls its engine.
        when_idle: takes work that may wait, or be given up.
        compared: called with each comparison; None: the shadow failed.
    """

    def __init__(
        self,
        variant: Variant,
        when_idle: Callable[[Callable[[], None]], None],
        compared: Callable[[Compared | None], None],
    ) -> None:
        self.variant, self._when_idle, self._compared = variant, when_idle, compared

    def offer(self, call: Any, rows: list[dict[str, Any]]) -> None:
        """A list was served. Lists that are drawn differ by chance, so they are left out."""
        if isinstance(call, Recommend) and (call.rules is None or call.rules.explore is None):
            self._when_idle(lambda: self._repeat(call, rows))

    def _repeat(self, call: Recommend, rows: list[dict[str, Any]]) -> None:
        [found] = self.variant.engine.respond([call])
        self._compared(None if isinstance(found, Exception) else compared(rows, found.rows))
