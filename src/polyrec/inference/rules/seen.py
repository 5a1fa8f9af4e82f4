"""Which items of a history are left out: all of them, none, or those whose events match a condition."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from polyrec.core.expressions import names_in, parse, said_by
from polyrec.core.settings import SettingError, nearest
from polyrec.data.open_requests import OpenRequests
from polyrec.inference.rules.filters import TableRows, matching
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor

_NONE = np.zeros(0, dtype=np.int64)


class SeenPolicy:
    """Says which items of users' histories are left out.

    Args:
        hides: true: all; false: none; or a condition on events, e.g. "rating >= 4".
        processor: of the requests.
    """

    def __init__(self, hides: bool | str, processor: PolyRecProcessor) -> None:
        self.hides = hides
        self.columns: list[str] = []
        if isinstance(hides, str):
            self.columns, known = sorted(names_in(parse(hides))), processor.history_values.names
            for name in self.columns:
                if name not in known:
                    raise SettingError("seen", f"names {name!r}, whose values are not kept; {nearest(name, known)}")

    def rows(self, requests: OpenRequests) -> list[np.ndarray]:
        """Rows of the item table that are left out, of each request."""
        items = requests.history_items
        if not isinstance(self.hides, str):
            return [own if self.hides else _NONE for own in items]
        return [self._matching(*own) for own in zip(items, requests.history_values(self.columns), strict=True)]

    def _matching(self, items: np.ndarray, values: dict[str, pa.Array]) -> np.ndarray:
        assert isinstance(self.hides, str)
        events = len(next(iter(values.values()))) if values else len(items)
        table = pa.table(values or {"": pa.nulls(events)})
        with said_by("seen"):
            found = matching(self.hides, TableRows(table))
        return items[len(items) - events :][found]
