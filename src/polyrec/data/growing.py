"""Parts that grow: small ones are merged into larger ones, so that adding costs little however much is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import TypeVar

Part = TypeVar("Part", bound=Sized)


def with_part(parts: Sequence[Part], new: Part, merge: Callable[[Part, Part], Part]) -> list[Part]:
    """The parts with one more; a part more than half as long as the one before it is merged with that.

    Each row is then merged at most about log2(rows) times, and there are no more parts than that.

    Example:
        >>> parts = []
        >>> for n in range(11):
        ...     parts = with_part(parts, [n], lambda a, b: a + b)
        >>> parts
        [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9], [10]]
    """
    found = [*parts, new]
    while len(found) > 1 and 2 * len(found[-1]) > len(found[-2]):
        found[-2:] = [merge(found[-2], found[-1])]
    return found
