"""Which items of the catalog a ranked list may hold: ONE rule for what is served and for what is measured.

`recommend`, `search`, evaluations, baselines and teachers all use this rule. A metric over other candidates than those
that
users are served flatters: a target that no list can hold must count as a miss.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from polyrec.core.registry import HEADS
from polyrec.core.schema import TaskConfig
from polyrec.data.columns import FIRST
from polyrec.data.histories import Histories, visible_history
from polyrec.data.sequences import SequenceDataset

LeftOut = Literal["history", "own item", "nothing"]

POLICIES: dict[LeftOut, str] = {
    "history": "the catalog without the items of the user's visible history; a target among these is a miss",
    "own item": "the catalog without the item that the query is the text of",
    "nothing": "the whole catalog",
}


def left_out(task: TaskConfig, exclude_seen: bool | None) -> LeftOut:
    """What the lists of a task leave out.

    Args:
        task: a search leaves out the item that its query is the text of, whatever `exclude_seen` says; other tasks the
            items of the user's history.
        exclude_seen: None: True, unless the task models repeated consumption (the option `repeats`).

    Example:
        >>> left_out(TaskConfig("next_item", "retrieval"), None)
        'history'
        >>> left_out(TaskConfig("next_item", "retrieval", options={"repeats": True}), None)
        'nothing'
    """
    head = HEADS.get(task.head)
    if head.excludes == "own item":
        return "own item"
    if exclude_seen is None:
        exclude_seen = not {**head.known_options(), **task.options}.get("repeats", False)
    return "history" if exclude_seen else "nothing"


def excluded_items(
    what: LeftOut, dataset: SequenceDataset, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Items that are no candidates, in pieces: (index into `rows`, row of the item table) of each pair, both int64.

    The history is the whole of it, beyond the window and with the events of `log.prior_history`, as in a request that
    sends it all. A pair may come twice.

    Args:
        what: of [`left_out`].
        rows: int64 [R], candidates of the data set.
    """
    log, event = dataset.log, dataset.candidates.event[rows]
    if what == "own item":
        assert log.queries is not None
        own = log.queries.own_item[event]
        index = np.flatnonzero(own >= FIRST)
        yield index, own[index]
    elif what == "history":
        yield from _pairs(visible_history(dataset, rows))
        if log.prior_history is not None:
            offsets, user = log.prior_history.offsets, log.user[event]
            yield from _pairs(Histories(offsets[user], offsets[user + 1], log.prior_history.item))


def _pairs(histories: Histories) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for rows in histories.blocks():
        offsets, seen = histories.ragged(rows)
        index = np.repeat(np.arange(rows.start, rows.stop), np.diff(offsets))
        yield index[seen >= FIRST], seen[seen >= FIRST]
