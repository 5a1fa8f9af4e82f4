"""Unknown ids of requests: they are ignored, with one warning per call."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from polyrec.core.settings import shown
from polyrec.core.stack import caller_level
from polyrec.data.tables import as_table, ids, normalise_ids
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.modules.encoders.item import FIRST_ITEM

_NAMED = 5


class UnknownIdWarning(UserWarning):
    """Items or users of a request are not known."""


@dataclass
class UnknownIds:
    """What requests have named that the processor does not know, gathered request by request.

    Args:
        processor: knows the items of the catalog and the users with stored events.
    """

    processor: PolyRecProcessor
    _requests: int = 0
    _histories: list[tuple[int, list[Any]]] = field(default_factory=list)  # (items, unknown ones)
    _named_users: int = 0
    _users: list[Any] = field(default_factory=list)

    def add(self, request: Mapping[str, Any], items: np.ndarray) -> None:
        """Look at a request.

        Args:
            request: arguments of `processor.request`, which have been read without an error.
            items: its history as rows of the item table.
        """
        self._requests += 1
        if (items < FIRST_ITEM).any():
            found = self._of_history(request.get("history"))
            if found[1]:
                self._histories.append(found)
        user = request.get("user_id")
        if user is not None:
            self._named_users += 1
            stored = self.processor.stored_events
            if len(items) and request.get("history") is None:
                return  # the history is what is stored of the user
            if stored is None or not stored.has_events(normalise_ids(pa.array([user]), "user_id"))[0]:
                self._users.append(user)

    def _of_history(self, history: Any) -> tuple[int, list[Any]]:
        column = self.processor.columns.item
        table = as_table(history, column)
        if table is None:
            return 0, []
        given = ids(table, column, "history", "item id")
        unknown = self.processor.items.rows(given) < FIRST_ITEM
        return len(given), given.filter(pa.array(unknown)).to_pylist()

    def warn(self) -> None:
        """Warn, if there is something to say, at the calling line outside polyrec."""
        for message in self._messages():
            warnings.warn(message, UnknownIdWarning, stacklevel=caller_level())

    def _messages(self) -> list[str]:
        found = []
        if self._histories:
            items, unknown = sum(n for n, _ in self._histories), [i for _, some in self._histories for i in some]
            where = "the history"
            if self._requests > 1:
                where = f"the histories of {len(self._histories):,} of {self._requests:,} requests"
            found.append(f"{len(unknown):,} of {items:,} items of {where} are not in the catalog: {_some(unknown)}")
        if self._users:
            if self._requests == 1:
                found.append(f"user {shown(self._users[0])} has no stored events: treated as a new user")
            else:
                found.append(
                    f"{len(self._users):,} of {self._named_users:,} users have no stored events: treated as new "
                    f"users: {_some(self._users)}"
                )
        return found


def warn_of_unknown_ids(processor: PolyRecProcessor, request: Mapping[str, Any], items: np.ndarray) -> None:
    """Warn of what one request names and the processor does not know, see [`UnknownIds.add`]."""
    unknown = UnknownIds(processor)
    unknown.add(request, items)
    unknown.warn()


def _some(values: Sequence[Any]) -> str:
    texts = [str(value) if isinstance(value, int) else shown(value) for value in dict.fromkeys(values)]
    return ", ".join(texts[:_NAMED]) + ", ..." * (len(texts) > _NAMED)
