"""The item catalog: ids, attributes and what is shown to people; row r of the item table is catalog entry r - 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.data.columns import FIRST, UNKNOWN, ColumnEncoder, infer_kind
from polyrec.data.tables import column, first_bad_row, ids, lookup, normalise_ids
from polyrec.data.vectors import VectorFile
from polyrec.schema import VECTOR_FILE, Columns


@dataclass
class EntityTable:
    """Ids of items or people with their encoded attributes.

    Args:
        ids: Arrow array [N - 2], unique, in the order of the table they come from.
        table: their columns as given, [N - 2] rows.
        encoders: one per attribute.
        encoded: {attribute: [N] or [N, K]}; rows 0 (padding) and 1 (unknown) are missing values. An embedding that was
            declared as a file is not held in memory: its entry is a `VectorFile`.
    """

    ids: pa.Array
    table: pa.Table
    encoders: dict[str, ColumnEncoder]
    encoded: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, encoder in self.encoders.items():
            if encoder.kind != "text" and name not in self.encoded:
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
        files = {
            c: vector_file(kind.removeprefix(VECTOR_FILE), c, table)
            for c, kind in declared.items()
            if kind.startswith(VECTOR_FILE)
        }
        for file in files.values():
            file.check()
        encoders = {
            c: ColumnEncoder(c, "embedding", width=files[c].width)
            if c in files
            else ColumnEncoder.fit(c, column(table, c, name, "attribute"), kind, f"{name}: column {c!r}")
            for c, kind in declared.items()
        }
        return cls(known, table, encoders, dict(files))

    def __len__(self) -> int:
        return len(self.ids) + FIRST

    def rows(self, values: pa.Array) -> np.ndarray:
        """Rows of ids, int64; ids that are not in the table give the unknown row."""
        found = lookup(normalise_ids(values), self.ids).fill_null(UNKNOWN - FIRST)
        return np.asarray(found).astype(np.int64) + FIRST

    def extend(self, table: pa.Table, name: str, key: str, needed: Sequence[str] = ()) -> None:
        """Append rows, whose attributes are encoded with the vocabularies and scales learnt before; old rows stay.

        Args:
            table: new items or people. Columns that the table does not have are missing values, further ones are left.
                Vectors are a column of lists, also where those of the first rows came from a file.
            name: "items" or "users".
            key: the id column.
            needed: columns that must be there beside the attributes.

        Raises:
            ValueError: an id is known already or occurs twice, or a column is missing or of another type.
        """
        new = ids(table, key, name, f"{name[:-1]} id")
        _refuse_duplicates(new, key, name)
        known = np.asarray(pc.is_valid(lookup(new, self.ids))) if len(self.ids) else np.zeros(len(new), dtype=bool)
        if (row := first_bad_row(known)) is not None:
            raise ValueError(
                f"{name}: {key} {new[row]} in row {row} is known already, as {int(known.sum())} of the {len(new)} new "
                "rows are: give new ones only"
            )
        for c in dict.fromkeys([*self.encoders, *needed]):
            column(table, c, name, f"attribute of the {name} known so far")
        files = {
            c: file.extended(self.encoders[c].encode(column(table, c, name, "attribute"), file.what))
            for c, file in self.files.items()
        }
        if len(self.ids):
            table = pa.table(
                {c: _like(table, c, self.table.schema.field(c).type, name) for c in self.table.column_names}
            )
            new = _like(pa.table({key: new}), key, self.ids.type, name)
        added = {
            c: self.encoders[c].encode(column(table, c, name, "attribute"), f"{name}: column {c!r}")
            for c in self.encoded
            if c not in files
        }
        self.encoded = {c: files[c] if c in files else np.concatenate([v, added[c]]) for c, v in self.encoded.items()}
        self.table = pa.concat_tables([self.table, table]).combine_chunks() if len(self.ids) else table
        self.ids = pa.concat_arrays([self.ids, new]) if len(self.ids) else new

    def keys(self) -> dict[str, np.ndarray]:
        """Categories of each attribute for counting, {attribute: int64 [N] or [N, K]}, 0 = missing."""
        countable = {name: values for name, values in self.encoded.items() if self.encoders[name].countable}
        return {name: self.encoders[name].keys(values) for name, values in countable.items()}

    @property
    def files(self) -> dict[str, VectorFile]:
        """Embeddings that lie in files."""
        return {name: values for name, values in self.encoded.items() if isinstance(values, VectorFile)}


def vector_file(path: str | Path, name: str, table: pa.Table) -> VectorFile:
    """The file of an embedding of items; a column of the same name is refused, as nobody could say which is meant."""
    if name in table.column_names:
        raise ValueError(
            f"items: embedding {name!r} is declared as the file {str(path)!r}, but the items table has a column of "
            "that name: rename one of them"
        )
    return VectorFile(path, FIRST, f"items: embedding {name!r}", rows=table.num_rows)


def save_files(items: EntityTable, folder: Path) -> None:
    """Write embeddings that lie in files as <name>.npy, of half precision: a saved processor needs no other files."""
    for name, file in items.files.items():
        file.save(_saved(folder, name))


def read_files(encoders: Mapping[str, ColumnEncoder], table: pa.Table, folder: Path) -> dict[str, VectorFile]:
    """Embeddings that [`save_files`] wrote: those that are no column of the items table."""
    names = [n for n, e in encoders.items() if e.kind == "embedding" and n not in table.column_names]
    return {name: vector_file(_saved(folder, name), name, table) for name in names}


def _saved(folder: Path, name: str) -> Path:
    return folder / f"{quote(name, safe='')}.npy"


def _like(table: pa.Table, name: str, kind: pa.DataType, what: str) -> pa.Array:
    """A column with the type that it had before; nulls if it is not there."""
    if name not in table.column_names:
        return pa.nulls(table.num_rows, kind)
    values = column(table, name, what, "column")
    try:
        return values.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"{what}: column {name!r} has type {values.type} but was {kind} when the processor was fitted ({error}): "
            "give it the same type"
        ) from error


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
