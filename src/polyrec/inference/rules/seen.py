"""Which items of a history are left out: by kind of event, within a window of time, and once shown too often."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from polyrec.core.expressions import names_in, parse, said_by
from polyrec.core.rules import Seen
from polyrec.core.settings import SettingError, nearest
from polyrec.data.open_requests import OpenRequests
from polyrec.inference.rules.filters import TableRows, matching
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor

_NONE = np.zeros(0, dtype=np.int64)
_DAY = 86_400.0  # seconds


class SeenPolicy:
    """Says which items of users' histories are left out.

    Args:
        hides: true: all; false: none; a condition on events, e.g. "rating >= 4"; or all that a [`Seen`] says.
        processor: of the requests.
    """

    def __init__(self, hides: bool | str | Seen, processor: PolyRecProcessor) -> None:
        self.rule = hides if isinstance(hides, Seen) else Seen(hides)
        self._name = "seen.{}" if isinstance(hides, Seen) else "seen"
        self.columns: list[str] = []
        known = processor.history_values.names
        for field in ("where", "shown"):
            if not isinstance(text := getattr(self.rule, field), str):
                continue
            for name in sorted(names_in(parse(text))):
                if name not in known:
                    where = self._name.format(field)
                    raise SettingError(where, f"names {name!r}, whose values are not kept; {nearest(name, known)}")
                if name not in self.columns:
                    self.columns.append(name)
        if self.rule.days is not None and processor.columns.time is None:
            raise SettingError("seen.days", "is given, but the log has no times: leave it out")

    def rows(self, requests: OpenRequests) -> list[np.ndarray]:
        """Rows of the item table that are left out, of each request."""
        rule, items = self.rule, requests.history_items
        if not self.columns and rule.days is None and rule.impressions is None:
            return [own if rule.where is True else _NONE for own in items]
        ages = requests.event_ages()
        return [self._rows(*own) for own in zip(items, ages, requests.history_values(self.columns), strict=True)]

    def _rows(self, items: np.ndarray, ages: np.ndarray, values: dict[str, pa.Array]) -> np.ndarray:
        """Of one request; of events before the log only the items are known."""
        rule, events = self.rule, pa.table(values or {"": pa.nulls(len(ages))})
        before = len(items) - len(ages)

        def chosen(condition: bool | str | None, field: str) -> np.ndarray:
            found = np.full(len(items), condition is True)
            if isinstance(condition, str):
                with said_by(self._name.format(field)):
                    found[before:] = matching(condition, TableRows(events))
            if rule.days is not None:
                found[:before] = False
                found[before:] &= ages <= rule.days * _DAY
            return items[found]

        hidden = chosen(rule.where, "where")
        if rule.impressions is None:
            return hidden
        shown, counts = np.unique(chosen(rule.shown or True, "shown"), return_counts=True)
        return np.concatenate([hidden, shown[counts >= rule.impressions]])
