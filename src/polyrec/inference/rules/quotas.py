"""At most so many items with one value: quotas of a list, kept while it is filled.

Letters: N rows of the item table, M items to choose from, V values, E entries (an item with one of its values).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.data.arrays import is_list
from polyrec.data.columns import FIRST


class ColumnValues(NamedTuple):
    """The values of a column of the catalog, numbered.

    Args:
        offsets: int64 [N + 1], where the entries of each row of the item table begin.
        codes: int64 [E], each value of a row once.
        number: V.
    """

    offsets: np.ndarray
    codes: np.ndarray
    number: int

    @classmethod
    def of(cls, values: pa.Array) -> ColumnValues:
        """Number the values of a column [N - 2]; missing ones are none.

        Example:
            >>> found = ColumnValues.of(pa.array([["a", "b"], None, ["b", "b"]]))
            >>> found.offsets.tolist(), found.codes.tolist()
            ([0, 0, 0, 2, 2, 3], [0, 1, 1])
        """
        rows = len(values)
        if is_list(values.type):
            owner, flat = np.asarray(pc.list_parent_indices(values)), pc.list_flatten(values)
        else:
            owner, flat = np.arange(rows), values
        known = ~np.asarray(pc.is_null(flat, nan_is_null=True))
        encoded = flat.filter(pa.array(known)).dictionary_encode()
        number = max(len(encoded.dictionary), 1)
        entries = np.unique(owner[known].astype(np.int64) * number + np.asarray(encoded.indices, dtype=np.int64))
        counts = np.bincount(entries // number, minlength=rows)
        return cls(np.concatenate([np.zeros(FIRST + 1, np.int64), np.cumsum(counts)]), entries % number, number)


class Quotas:
    """What may still be taken of M items.

    Args:
        columns: {column: values}.
        at_most: {column: items with one value}.
        rows: int64 [M], rows of the item table.

    Example:
        >>> genres = ColumnValues.of(pa.array([["a", "b"], ["b"], ["a"]]))
        >>> quotas = Quotas({"genres": genres}, {"genres": 1}, np.array([2, 3, 4]))
        >>> quotas.take(0)
        >>> quotas.blocked.tolist()
        [True, True, True]
    """

    def __init__(self, columns: Mapping[str, ColumnValues], at_most: Mapping[str, int], rows: np.ndarray) -> None:
        owners, codes, left = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        begin = 0
        for name, most in at_most.items():
            column = columns[name]
            first, count = column.offsets[rows], np.diff(column.offsets)[rows]
            entry = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
            owners.append(np.repeat(np.arange(len(rows)), count))
            codes.append(column.codes[entry] + begin)
            left.append(np.full(column.number, most, dtype=np.int64))
            begin += column.number
        self._owner, self._code, self._left = (np.concatenate(parts) for parts in (owners, codes, left))
        self.blocked = np.zeros(len(rows), dtype=bool)
        self.blocked[self._owner[self._left[self._code] <= 0]] = True

    def walk(self, k: int) -> list[int]:
        """Take at most k of the items, in their order."""
        found: list[int] = []
        for index in range(len(self.blocked)):
            if len(found) == k:
                break
            if not self.blocked[index]:
                self.take(index)
                found.append(index)
        return found

    def copy(self) -> Self:
        """The same, which goes its own way."""
        found = copy.copy(self)
        found.blocked, found._left = self.blocked.copy(), self._left.copy()
        return found

    def take(self, index: int) -> None:
        """Take one of the items, which is blocked from now on, as those are whose values are used up."""
        self.blocked[index] = True
        if not len(self._code):
            return
        own = self._code[self._owner == index]
        self._left[own] -= 1
        for code in own[self._left[own] == 0].tolist():
            self.blocked[self._owner[self._code == code]] = True
