"""Requests of users as they are given: what `processor.request` reads of them, and which items they may get.

Letters: N rows of the item table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyrec.core.rules import Rules
from polyrec.core.settings import SettingError, check_keys, shown
from polyrec.inference.rules.catalog import CatalogColumns

REQUEST = ("history", "user_id", "user", "context", "time", "query")  # arguments of `processor.request`
OWN_RULES = ("candidates", "exclude", "where")  # what a request of several may have for itself


@dataclass(frozen=True)
class UserRequest:
    """One user's request.

    Args:
        window: arguments of `processor.request`.
        allowed: bool [N], items that it may get; None: all.
        excluded: int64, rows of the item table that it may not get all the same.
    """

    window: Mapping[str, Any]
    allowed: np.ndarray | None
    excluded: np.ndarray

    def listable(self, seen: np.ndarray, number: int) -> np.ndarray:
        """Which of so many rows of the item table it may get, bool [N], but for those that it has seen."""
        found = np.ones(number, dtype=bool) if self.allowed is None else self.allowed.copy()
        found[self.excluded] = False
        found[seen] = False
        return found

    def mask(self, scores_N: np.ndarray, seen: np.ndarray) -> None:
        """Put -inf where an item is not allowed, or was seen (rows of the item table)."""
        if self.allowed is not None:
            scores_N[~self.allowed] = -np.inf
        scores_N[self.excluded] = -np.inf
        scores_N[seen] = -np.inf


class UserRequests:
    """Reads requests; of one call.

    Args:
        catalog: columns of the items.
        rules: of all of them, which hold beside those of each.
    """

    def __init__(self, catalog: CatalogColumns, rules: Rules | None) -> None:
        self.catalog = catalog
        self.allowed, self.excluded = None, np.zeros(0, dtype=np.int64)
        if rules is not None:
            self.allowed = self._allowed(rules.where, rules.candidates, "")
            self.excluded = catalog.rows_of(rules.exclude, "exclude")

    def read(self, request: Any, name: str = "") -> UserRequest:
        """One of them, checked.

        Args:
            name: of the request, for messages.

        Raises:
            ValueError: a key, a column or an id is not known, or a condition cannot be read.
        """
        if not isinstance(request, Mapping):
            raise SettingError(name, f"is {shown(request)}; each request is a dict, e.g. {{'user_id': 'u1'}}")
        check_keys(request, (*REQUEST, *OWN_RULES), name or "a request")
        window = {"history": None, **{key: request[key] for key in REQUEST if key in request}}
        own = self._allowed(request.get("where"), request.get("candidates"), name)
        allowed = own if self.allowed is None else self.allowed if own is None else self.allowed & own
        exclude = request.get("exclude")
        excluded = self.catalog.rows_of(() if exclude is None else exclude, _dotted(name, "exclude"))
        if len(self.excluded):
            excluded = np.concatenate([self.excluded, excluded])
        return UserRequest(window, allowed, excluded)

    def _allowed(self, where: Any, candidates: Any, name: str) -> np.ndarray | None:
        """Items that match and are candidates, bool [N]; None: all. Not to be changed."""
        found = None if where is None else self.catalog.mask(where, _dotted(name, "where"))
        if candidates is None:
            return found
        mask = np.zeros(self.catalog.processor.num_items, dtype=bool)
        mask[self.catalog.rows_of(candidates, _dotted(name, "candidates"))] = True
        return mask if found is None else mask & found


def _dotted(name: str, key: str) -> str:
    return f"{name}.{key}".removeprefix(".")
