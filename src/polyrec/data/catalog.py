"""The item catalog: ids, attributes and what is shown to people; row r of the item table is catalog entry r - 2."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.data.columns import FIRST, UNKNOWN, ColumnEncoder, infer_kind
from polyrec.data.tables import column, ids, lookup, normalise_ids
from polyrec.schema import Columns


@dataclass
class EntityTable:
    """Ids of items or people with their encoded attributes.

    Args:
        ids: Arrow array [N - 2], unique, in the order of the table they come from.
        table: their columns as given, [N - 2] rows.
        encoders: one per attribute.
        encoded: {attribute: [N] or [N, K]}; rows 0 (padding) and 1 (unknown) are missing values.
    """

    ids: pa.Array
    table: pa.Table
    encoders: dict[str, ColumnEncoder]
    encoded: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, encoder in self.encoders.items():
            if encoder.kind != "text":
                values = encoder.encode(self.table[name].combine_chunks(), f"column {name!r}")
                self.encoded[name] = np.concatenate([encoder.missing(FIRST), values])

    @classmethod
    def fit(cls, table: pa.Table | None, events: pa.Table, columns: Columns, name: str) -> EntityTable:
        """Learn ids and attribute vocabularies.

        Args:
            table: the items or users; None: the ids of the events, without attributes.
            name: "items" or "users".
        """
        key = columns.item if name == "items" else columns.user
        declared = columns.item_features if name == "items" else columns.user_features
        if table is None:
            if declared:
                raise ValueError(f"columns.{name[:-1]}_features is given but no {name} table: pass {name}=...")
            found = pc.unique(ids(events, key, "interactions", f"{name[:-1]} id"))
            found = found.take(pc.sort_indices(found))
            return cls(found, pa.table({key: found}), {})
        known = ids(table, key, name, f"{name[:-1]} id")
        _refuse_duplicates(known, key, name)
        if declared is None:
            skip = {key, columns.title if name == "items" else None}
            declared = {c: infer_kind(column(table, c, name, "attribute")) for c in table.column_names if c not in skip}
            declared = {c: k for c, k in declared.items() if not _looks_like_text(table[c], k)}
        encoders = {
            c: ColumnEncoder.fit(c, column(table, c, name, "attribute"), kind, f"{name}: column {c!r}")
            for c, kind in declared.items()
        }
        return cls(known, table, encoders)

    def __len__(self) -> int:
        return len(self.ids) + FIRST

    def rows(self, values: pa.Array) -> np.ndarray:
        """Rows of ids, int64; ids that are not in the table give the unknown row."""
        found = lookup(normalise_ids(values), self.ids).fill_null(UNKNOWN - FIRST)
        return np.asarray(found).astype(np.int64) + FIRST

    def keys(self) -> dict[str, np.ndarray]:
        """Categories of each attribute for counting, {attribute: int64 [N] or [N, K]}, 0 = missing."""
        return {name: self.encoders[name].keys(values) for name, values in self.encoded.items()}


def _refuse_duplicates(known: pa.Array, key: str, name: str) -> None:
    order = np.asarray(pc.sort_indices(known))
    ordered = known.take(pa.array(order))
    same = np.asarray(pc.equal(ordered[1:], ordered[:-1])) if len(known) > 1 else np.zeros(0, dtype=bool)
    if same.any():
        at = int(same.argmax())
        rows = sorted((int(order[at]), int(order[at + 1])))
        raise ValueError(f"{name}: {key} {ordered[at]} occurs in rows {rows[0]} and {rows[1]}: keep one row per id")


def _looks_like_text(values: pa.ChunkedArray, kind: str) -> bool:
    """Strings that are nearly all different carry no category (titles, zip codes, descriptions)."""
    if kind != "categorical" or not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return False
    return len(pc.unique(values)) > max(50, len(values) // 2)
