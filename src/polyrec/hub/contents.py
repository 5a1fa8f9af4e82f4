"""What stands in files that are to be shared: secrets and addresses, with the file, the line and their kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from polyrec.core.secrets import RE2, named_secret, secret_in, secrets_in
from polyrec.data.processor_files import CONFIG_NAME
from polyrec.hub.files import TOKENIZER_FILES
from polyrec.hub.limits import walk
from polyrec.hub.weights import read_metadata

_TEXTS = (".json", ".md", ".txt", ".jinja", ".yaml", "")
_ROWS = 1 << 16  # read at once
_ADDRESS = "an e-mail address"


def secrets_of_file(path: Path, name: str, addresses: bool = True) -> Iterator[str]:
    """Refusals of a file: each secret of a text, and of what tables and tensors say about themselves.

    Args:
        name: of the file, for messages.
        addresses: refuse e-mail addresses, too. Vocabularies of tokenizers and of encoders have a check of their own.
    """
    if path.suffix == ".parquet":
        yield from _of_schema(path, name)
    elif path.suffix == ".safetensors":
        for key, value in read_metadata(path).items():
            if (kind := secret_in(f"{key}: {value}")) is not None or named_secret(key, value):
                yield f"{name}: its metadata {key!r} hold {kind or 'a secret'}"
    elif path.suffix in _TEXTS:
        yield from _of_text(path, name, addresses and path.name not in TOKENIZER_FILES)
    elif path.suffix in (".png", ".onnx") and (kind := secret_in(path.read_bytes().decode("latin-1"))) is not None:
        yield f"{name} holds {kind}"


def _of_text(path: Path, name: str, addresses: bool) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        yield f"{name} is no text: put a text file there"
        return
    if name == CONFIG_NAME:  # the categories of its encoders are looked at column by column
        yield from _of_json({k: v for k, v in json.loads(text).items() if not k.endswith("_encoders")}, name, addresses)
        addresses = False
    seen = False
    for line, kind in secrets_in(text):
        if addresses or kind != _ADDRESS:
            seen = True
            yield f"{name}, line {line}: {kind}"
    if path.suffix == ".json" and not seen:
        yield from _of_json(json.loads(text), name, addresses)


def _of_json(values: Any, name: str, addresses: bool) -> Iterator[str]:
    """Entries whose names say that they are secrets, and those that escapes hide from a look at the lines."""
    for key, value in walk(values):
        if named_secret(key, value):
            yield f"{name}: {key!r} is a secret"
    written = json.dumps(values, ensure_ascii=False)
    for kind in {kind for _, kind in secrets_in(written)}:
        if addresses or kind != _ADDRESS:
            yield f"{name}: {kind}"


def _of_schema(path: Path, name: str) -> Iterator[str]:
    """Names of columns, and what pandas and Arrow noted about the table."""
    schema = pq.read_schema(path)
    notes = [("a note on the table", schema.metadata or {})]
    notes += [(f"a note on column {field.name!r}", field.metadata or {}) for field in schema]
    for what, metadata in notes:
        for key, value in metadata.items():
            if key.startswith(b"PARQUET:"):
                continue
            text = f"{key.decode('utf-8', 'replace')}: {value.decode('utf-8', 'replace')}"
            for _, kind in secrets_in(text):
                yield f"{name}: {what} holds {kind}"
    for field in schema:
        for _, kind in secrets_in(field.name):
            yield f"{name}: the name of a column holds {kind}"


def secret_cells(path: Path, name: str, column: str) -> Iterator[str]:
    """The first cell of a column that holds a secret; nobody may allow it."""
    first = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS, columns=[column]):
            for values in batch.columns:
                for texts, rows in text_columns(values):
                    likely = pc.indices_nonzero(pc.fill_null(pc.match_substring_regex(texts, RE2), False))
                    for at in likely.to_pylist():
                        if (kind := secret_in(str(texts[at].as_py()))) is not None:
                            row = first + (at if rows is None else rows[at].as_py())
                            yield f"{name}: column {column!r} holds {kind}, first in row {row}"
                            return
            first += batch.num_rows


def text_columns(values: pa.Array, rows: pa.Array | None = None) -> Iterator[tuple[pa.Array, pa.Array | None]]:
    """Texts of a column, whatever they are nested in, each with the rows that they stand in; None: one text a row.

    Example:
        >>> [(texts.to_pylist(), rows.to_pylist()) for texts, rows in text_columns(pa.array([["a"], [], ["b", "c"]]))]
        [(['a', 'b', 'c'], [0, 2, 2])]
    """
    kind = values.type
    if pa.types.is_dictionary(kind):
        yield from text_columns(values.dictionary_decode(), rows)
    elif pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            yield from text_columns(pc.struct_field(values, number), rows)
    elif pa.types.is_map(kind):
        yield from text_columns(values.cast(pa.list_(pa.struct(list(kind)))), rows)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        parents = pc.list_parent_indices(values)
        yield from text_columns(pc.list_flatten(values), parents if rows is None else rows.take(parents))
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        yield values.cast(pa.large_binary()), rows
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield values, rows
