"""The item catalog: ids, attributes and what is shown to users; row r of the item table is catalog entry r - 2."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polyrec.core.schema import VECTOR_FILE, Columns
from polyrec.core.stack import caller_level
from polyrec.data.arrays import column, first_bad_row, is_list, is_text
from polyrec.data.columns import FIRST, UNKNOWN, ColumnEncoder, infer_kind
from polyrec.data.id_match import warn_of_respelled
from polyrec.data.ids import KnownIds, canonical, ids, lookup, normalise_ids, of_one_type
from polyrec.data.vectors import VectorFile

# Of saved items tables.
COUNTS_COLUMN, FIRST_EVENT_COLUMN, RECENT_COLUMN = OWN_COLUMNS = "__training_events__", "__first_event__", "__recent__"


@dataclass(repr=False)
class EntityTable:
    """Ids of items or users with their encoded attributes.

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
    _index: KnownIds | None = field(default=None, init=False, repr=False, compare=False)
    _shortened: pa.Array | None = field(default=None, init=False, repr=False, compare=False)  # see `_canonical`

    def __repr__(self) -> str:
        return f"EntityTable({len(self.ids):,} ids, attributes={list(self.encoders)})"

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
        _warn_of_twins(known, key, name)
        if name == "items" and (reserved := [c for c in OWN_COLUMNS if c in table.column_names]):
            raise ValueError(
                f"items: column {reserved[0]!r} has a name that saved processors use themselves: rename it"
            )
        if declared is None:
            declared = _infer(table, {key, columns.title if name == "items" else None}, name)
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
        """Rows of ids, int64; ids that are not in the table give the unknown row.

        Warns where one is unknown only because digits were lost (663713001 for "0663713001").
        """
        values = normalise_ids(values)
        if self._index is None or self._index.known is not self.ids:
            self._index = KnownIds(self.ids)
        found = self._index.find(values)
        if found.null_count and (is_text(values.type) or is_text(self.ids.type)):
            self._warn_of_digits(pc.unique(values.filter(pc.is_null(found))))
        return np.asarray(found.fill_null(UNKNOWN - FIRST)).astype(np.int64) + FIRST

    def _warn_of_digits(self, unknown: pa.Array) -> None:
        at = pc.index_in(canonical(unknown), value_set=self._canonical)
        if at.null_count == len(at):
            return
        first = int(np.asarray(pc.is_valid(at)).argmax())
        warnings.warn(
            f"id {unknown[first].as_py()!r} is unknown, but {self.ids[at[first].as_py()].as_py()!r} is known: "
            f"{len(at) - at.null_count} of {len(at)} unknown ids differ from known ones in leading zeros or blanks "
            "only; give ids as text, written alike in all tables (pandas: read_csv(..., dtype=str))",
            stacklevel=caller_level(),
        )

    @property
    def _canonical(self) -> pa.Array:
        """Known ids as `canonical` writes them."""
        if self._shortened is None or len(self._shortened) != len(self.ids):
            self._shortened = canonical(self.ids)
        return self._shortened

    def extend(self, table: pa.Table, name: str, key: str, needed: Sequence[str] = ()) -> None:
        """Append rows, whose attributes are encoded with the vocabularies and scales learned before; old rows stay.

        Args:
            table: new items or users. Columns that the table does not have are missing values, further ones are left.
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
        if len(self.ids):
            warn_of_respelled(new, self.ids, f"{name}: {key}")
        for c in dict.fromkeys([*self.encoders, *needed]):
            column(table, c, name, f"attribute of the {name} known so far")
        files = {
            c: file.extended(self.encoders[c].encode(column(table, c, name, "attribute"), file.what))
            for c, file in self.files.items()
        }
        if len(self.ids):
            self.ids, new = of_one_type([self.ids, new])
            kept = self.table.set_column(self.table.column_names.index(key), key, self.ids)
            kinds = {field.name: field.type for field in kept.schema}
            table = table.set_column(table.column_names.index(key), key, new)
            table = pa.table({c: _like(table, c, kind, name) for c, kind in kinds.items()})
            self.table = kept
        added = {
            c: self.encoders[c].encode(column(table, c, name, "attribute"), f"{name}: column {c!r}")
            for c in self.encoded
            if c not in files
        }
        self.encoded = {c: files[c] if c in files else np.concatenate([v, added[c]]) for c, v in self.encoded.items()}
        self.table = pa.concat_tables([self.table, table]).combine_chunks() if len(self.ids) else table
        self.ids = pa.concat_arrays([self.ids, new]) if len(self.ids) else new

    def prepared_change(self, at: np.ndarray, values: Mapping[str, pa.Array], name: str) -> Callable[[], None]:
        """What other values of some rows have to compute; the call of the result puts them into the table.

        They are encoded with the vocabularies and scales learned before. Nothing that is read now is written to.

        Args:
            at: int64 [K], ascending, entries of the catalog.
            values: {column of the table: K values}; other columns stay.
            name: "items" or "users".

        Raises:
            ValueError: a column has another type.
        """
        given = pa.table(dict(values))
        table, encoded, rows = self.table, dict(self.encoded), np.arange(len(self.ids))
        rows[at] = len(self.ids) + np.arange(len(at))
        for c in values:
            new = _like(given, c, table.schema.field(c).type, name)
            both = pa.concat_arrays([table[c].combine_chunks(), new])
            table = table.set_column(table.column_names.index(c), c, both.take(pa.array(rows)))
            if c in encoded:
                found = self.encoders[c].encode(column(given, c, name, "attribute"), f"{name}: column {c!r}")
                encoded[c] = encoded[c].copy()
                encoded[c][at + FIRST] = found

        def apply() -> None:
            self.table, self.encoded = table, encoded

        return apply

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


def _warn_of_twins(known: pa.Array, key: str, name: str) -> None:
    """Warn of ids that differ in blanks only, or, if they are many, in capitals only."""
    if not is_text(known.type):
        return
    for what, least, short in (
        ("blanks", 1, pc.utf8_trim_whitespace(known)),
        ("capital letters", max(1, len(known) // 100), pc.utf8_lower(pc.utf8_trim_whitespace(known))),
    ):
        twins = len(known) - len(pc.unique(short))
        if twins >= least:
            first = int(np.asarray(pc.is_in(short, value_set=_repeated(short))).argmax())
            warnings.warn(
                f"{name}: {twins} values of {key!r} differ from others in {what} only, e.g. {known[first].as_py()!r}: "
                "they are different ids here",
                stacklevel=caller_level(),
            )
            return


def _repeated(values: pa.Array) -> pa.Array:
    counts = pc.value_counts(values)
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1))


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


def _infer(table: pa.Table, skip: set[str | None], name: str) -> dict[str, str]:
    """{column: kind} of the attributes that nobody declared; what no kind can be is left out, with a warning."""
    declared: dict[str, str] = {}
    for c in table.column_names:
        if c in skip:
            continue
        if not c.strip():
            raise ValueError(f"{name}: a column has no name ({c!r}): name it, or drop it")
        values = column(table, c, name, "attribute")
        inner = values.type.value_type if is_list(values.type) else values.type
        if pa.types.is_nested(inner) or pa.types.is_binary(inner) or pa.types.is_large_binary(inner):
            warnings.warn(
                f"{name}: column {c!r} has type {values.type} and is left out: the model reads strings, numbers and "
                "lists of them",
                stacklevel=caller_level(),
            )
            continue
        kind = infer_kind(values)
        if not _looks_like_text(table[c], kind):
            declared[c] = kind
    return declared


def _looks_like_text(values: pa.ChunkedArray, kind: str) -> bool:
    """Strings that are nearly all different carry no category (titles, zip codes, descriptions)."""
    if kind != "categorical" or not is_text(values.type):
        return False
    return len(pc.unique(values)) > max(50, len(values) // 2)
