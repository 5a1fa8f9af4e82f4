"""What the training rows of a split say of items: how often each came, and which go together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self

import numpy as np

from polyrec.core.progress import progress
from polyrec.core.schema import REFUSED
from polyrec.data.cooccurrence import cooccurrence_vectors
from polyrec.data.event_log import EventLog
from polyrec.data.neighbours import FOLDS, SMALL, Neighbours, fold_of, neighbours, weighed_neighbours
from polyrec.data.row_lists import sequences
from polyrec.data.storage import MEMORY, Storage


class TrainingEvidence:
    """The items of the training events of all users, and what was counted of them so far.

    Args:
        user, item: int64 [E], the users one after the other, each user's events in order.
        folds: int64 [P], of the users.
        refused: {retrieval task: bool [E], events that say that the item was seen and not taken}.
        ordered: whether the order of a user's events says anything.
    """

    def __init__(
        self, user: np.ndarray, item: np.ndarray, folds: np.ndarray, refused: dict[str, np.ndarray], ordered: bool
    ) -> None:
        self.user, self.item, self.ordered = user, item, ordered
        self._folds, self._refused = folds, refused
        self._neighbours: dict[tuple[str, int, int], list[Neighbours]] = {}
        self._weighed: dict[tuple[str, str, int, int], Neighbours | None] = {}

    @classmethod
    def of(cls, log: EventLog, train: np.ndarray, ordered: bool, storage: Storage = MEMORY) -> Self:
        """That of some rows of a log, bool [R], and of what its users did before it.

        Args:
            storage: where its events go.
        """
        said = {n: v > 0 for n, v in log.event_features.items() if n.startswith(REFUSED)}
        event = np.flatnonzero(train)
        if log.untimed is not None:
            event = sequences(log, train, ~np.logical_and.reduce([*said.values()]) if said else None)
        user, item = log.user[event], log.item[event]
        refused = {n.removeprefix(REFUSED): v[event] for n, v in said.items()}
        if log.prior_history is not None:  # it comes before the users' training events
            user = np.concatenate([log.prior_history.user, user])
            order = np.argsort(user, kind="stable")
            user, item = user[order], np.concatenate([log.prior_history.item, item])[order]
            unknown = np.zeros(len(log.prior_history.item), dtype=bool)
            refused = {name: np.concatenate([unknown, values])[order] for name, values in refused.items()}
        user, item = storage.keep("evidence.user", user), storage.keep("evidence.item", item)
        return cls(user, item, fold_of(log.groups), refused, ordered)

    def item_vectors(self, num_items: int, size: int) -> np.ndarray:
        """Item embeddings from co-occurrence, float32 [N, size]."""
        return cooccurrence_vectors(self.user, self.item, num_items=num_items, size=size)

    def neighbours(self, task: str, num_items: int, size: int) -> Iterable[Neighbours]:
        """What goes with what: of all users, and without those of each fold. Tables of large catalogs are counted one
        by one when they are asked for, and not kept.

        Args:
            task: events whose label of it is known to be 0 do not count.
            size: neighbours kept of each item.
        """
        if num_items > SMALL:
            return self._counted(task, num_items, size)
        key = task, size, num_items
        if key not in self._neighbours:
            self._neighbours[key] = list(self._counted(task, num_items, size))
        return self._neighbours[key]

    def _counted(self, task: str, num_items: int, size: int) -> Iterator[Neighbours]:
        user, item = self._events(task)
        fold = self._folds[user]
        for number in progress(range(FOLDS + 1), "Item neighbours", unit="table"):  # no user is in fold 0
            some = fold != number
            yield neighbours(user[some], item[some], num_items, size, self.ordered)

    def weighed_neighbours(self, task: str, kind: str, num_items: int, size: int) -> Neighbours | None:
        """Item-to-item scores, see [`~polyrec.data.neighbours.weighed_neighbours`]; arguments as of `neighbours`."""
        key = task, kind, size, num_items
        if key not in self._weighed:
            self._weighed[key] = weighed_neighbours(kind, *self._events(task), num_items, size)
        return self._weighed[key]

    def _events(self, task: str) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of the events that a task does not know to be refused."""
        counts = ~self._refused.get(task, np.zeros(len(self.item), dtype=bool))
        return self.user[counts], self.item[counts]
