"""Columns of the catalog as rules read them: conditions as masks, values as numbers; computed once.

Letters: N rows of the item table.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from polyrec.core.expressions import parse, said_by
from polyrec.core.settings import SettingError, nearest
from polyrec.data.arrays import is_list, is_text, numbers
from polyrec.data.catalog import OWN_COLUMNS, EntityTable
from polyrec.data.columns import FIRST
from polyrec.data.request_reader import read_ids
from polyrec.inference.rules.filters import matching
from polyrec.inference.rules.quotas import ColumnValues
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor

_KEPT = 64  # conditions and columns
_Found = TypeVar("_Found")


class CatalogRows:
    """The items as rows of conditions, see `filters.Rows`.

    Args:
        items: ids and attributes.
        key: the column of the ids.
    """

    def __init__(self, items: EntityTable, key: str) -> None:
        self.items, self.key = items, key

    @property
    def names(self) -> Collection[str]:
        """Columns of the items table, and that of the ids."""
        return [name for name in dict.fromkeys([self.key, *self.items.table.column_names]) if name not in OWN_COLUMNS]

    def __len__(self) -> int:
        return len(self.items.ids)

    def column(self, name: str) -> pa.Array:
        """A column; what an attribute's encoder reads as numbers or lists from texts is that here, too."""
        if name == self.key:
            return self.items.ids
        values, encoder = self.items.table[name].combine_chunks(), self.items.encoders.get(name)
        if encoder is not None and encoder.kind == "multi" and not is_list(values.type):
            return encoder.lists(values, f"column {name!r}")
        if encoder is not None and encoder.kind == "numeric" and is_text(values.type):
            return pa.array(numbers(values, f"column {name!r}"), from_pandas=True)
        return values


class CatalogColumns:
    """What rules read of a catalog, kept until the catalog changes; threads may share it.

    Args:
        processor: of the catalog.
    """

    def __init__(self, processor: PolyRecProcessor) -> None:
        self.processor = processor
        self._of: pa.Table | None = None
        self._found: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def mask(self, condition: str, rule: str = "where") -> np.ndarray:
        """Items that match, bool [N], not to be changed.

        Args:
            rule: whose condition it is, for messages.
        """

        def find() -> np.ndarray:
            return np.concatenate([np.zeros(FIRST, dtype=bool), matching(condition, self._rows)])

        with said_by(rule):
            parse(condition)
            return self._kept(("mask", condition), find)

    def values(self, name: str) -> ColumnValues:
        """The values of a column, numbered."""

        def find() -> ColumnValues:
            rows = self._rows
            if name not in rows.names:
                raise SettingError("at_most", f"has the unknown column {name!r}; {nearest(name, sorted(rows.names))}")
            return ColumnValues.of(rows.column(name))

        return self._kept(("values", name), find)

    def rows_of(self, given: Any, name: str) -> np.ndarray:
        """Rows of the item table of ids, int64.

        Args:
            name: of the argument that they come from, for messages.
        """
        ids = read_ids(given, name)
        if not ids:
            return np.zeros(0, dtype=np.int64)
        rows = self.processor.items.rows(pa.array(ids))
        if unknown := [i for i, row in zip(ids, rows, strict=True) if row < FIRST]:
            raise ValueError(f"{name}: {len(unknown)} are not in the catalog, e.g. {unknown[:5]}: leave them out")
        return rows

    @property
    def _rows(self) -> CatalogRows:
        return CatalogRows(self.processor.items, self.processor.columns.item)

    def _kept(self, key: tuple[str, str], find: Callable[[], _Found]) -> _Found:
        with self._lock:
            if self._of is not self.processor.items.table:
                self._of = self.processor.items.table
                self._found.clear()
            if key not in self._found:
                self._found[key] = find()
                if len(self._found) > _KEPT:
                    self._found.popitem(last=False)
            self._found.move_to_end(key)
            return self._found[key]
