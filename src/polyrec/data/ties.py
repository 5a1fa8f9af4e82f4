"""Events of one time change places: their order in a file is mostly chance.

Letters: B windows, A candidates of all windows, S events of all windows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ShuffledTies(NamedTuple):
    """Events and candidates of some windows, those of one time exchanged.

    Args:
        rows: int64 [S], which row of the log comes when, one window after the other.
        begins: int64 [B], where each window begins in `rows`.
        positions: int64 [A], how many events of its window each candidate may see.
    """

    rows: np.ndarray
    begins: np.ndarray
    positions: np.ndarray


def shuffle_ties(
    first: np.ndarray,
    events: np.ndarray,
    window: np.ndarray,
    rows: np.ndarray,
    positions: np.ndarray,
    is_own: np.ndarray,
    time: np.ndarray | None,
    draws: list[tuple[int, ...]],
) -> ShuffledTies:
    """Exchange events of one time among each window's events and those scored; nothing else moves.

    Args:
        first, events: int64 [B], row of each window's first event, and how many events it has.
        window: int64 [A], ascending, the window of each candidate.
        rows, positions: int64 [A], the row of each candidate's event, and how many events of the window it may see.
        is_own: bool [A], candidates that see all that the log knew at their time, and so stand beside events of it.
        time: of the log's rows; None: all have one time.
        draws: [B], seeds of each window's draw, so that it is the same in any batch.

    Example:
        >>> found = shuffle_ties(*map(np.array, ([0], [3], [0, 0, 0], [0, 1, 2], [0, 0, 0], [True] * 3)),
        ...                      np.array([5.0, 5.0, 6.0]), [(0, 1)])
        >>> int(found.rows[2]), sorted(found.rows.tolist())
        (2, [0, 1, 2])
    """
    last = first + events
    np.maximum.at(last, window, rows + 1)
    sizes = last - first
    begins = np.cumsum(sizes) - sizes
    span_window = np.repeat(np.arange(len(first)), sizes)
    span = np.arange(len(span_window)) + np.repeat(first - begins, sizes)
    noise = np.concatenate([np.random.default_rng(d).random(n) for d, n in zip(draws, sizes, strict=True)])
    at = np.zeros(len(span)) if time is None else time[span]
    order = np.lexsort((noise, at, span_window))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    # Only candidates of the own view stand beside events of their own time. Whoever may see some of those (the rule
    # `ties="order"`) sees what now comes before; the others see none of them, wherever they come to stand.
    own = (rows >= first[window]) & is_own
    begin = begins[window[own]]
    mine = begin + rows[own] - first[window[own]]
    new = np.ones(len(span), dtype=np.int64)
    new[1:] = (at[1:] != at[:-1]) | (span_window[1:] != span_window[:-1])
    tie = np.cumsum(new) - 1
    most = np.zeros(len(span), dtype=np.int64)
    np.maximum.at(most, tie[mine], positions[own])
    moved = positions.copy()
    moved[own] = np.minimum(rank[mine] - begin, most[tie[mine]])
    return ShuffledTies(span[order], begins, moved)
