"""What is not loaded: files of strangers that run code, reach out of their folder or fill the memory.

Everything here looks at names, sizes and headers first; tensors and tables are read only after that.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from polyrec.data.processor_files import CONFIG_NAME, ITEMS_NAME, USERS_NAME, VECTORS_NAME
from polyrec.hub.files import INDEX_NAME, MODEL_CONFIG, MODEL_FILES, PROCESSOR_FILES, WEIGHTS_NAME, matches
from polyrec.hub.weights import Stored, check_finite, read_header

_MIB = 1 << 20
_LARGEST_JSON = 64 * _MIB  # of a vocabulary of some million categories
_LARGEST_CONFIG = 4 * _MIB
_LARGEST_FILE = 1 << 40
_EXPANSION = 200  # bytes of a column in memory for one on disk
_FREE = 64 * _MIB  # that a file may always expand to
_ROWS_PER_BYTE = 4  # ids are all different, so that a table's file grows with its rows
_FOREIGN = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
# Numbers of a configuration that make memory, far above what anybody trains. `num_items` is held against the files.
_LIMITS = {
    "num_items": 2**31,
    "hidden_size": 1 << 16,
    "pair_size": 1 << 16,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1000,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "max_history": 1 << 20,
    "max_position_embeddings": 1 << 24,
    "vocab_size": 1 << 24,
    "numeric_bins": 1 << 16,
    "members": 1 << 12,
}
_DEEPEST = 50
_BATCH = 1 << 14  # rows looked at at once


def check_sizes(sizes: Mapping[str, int], where: str) -> None:
    """Refuse files that are too large for what they are, before they are downloaded or opened."""
    for path, size in sizes.items():
        limit = _LARGEST_FILE
        if path.endswith(".json") or path.endswith((".txt", ".model", ".jinja")):
            limit = _LARGEST_CONFIG if path == MODEL_CONFIG else _LARGEST_JSON
        if size > limit:
            raise ValueError(
                f"{where}: {path} has {size:,} bytes; polyrec reads at most {limit:,} of such a file: it was "
                "not written by polyrec"
            )


def check_model(folder: Path) -> dict[str, tuple[Path, Stored]]:
    """Refuse a model whose files are not what polyrec writes; returns the tensors they hold, by name.

    Raises:
        ValueError: with the file and what is wrong with it.
    """
    _check_links(folder, MODEL_FILES)
    _check_config(folder)
    return {name: (path, tensor) for path in _weight_files(folder) for name, tensor in read_header(path).items()}


def named_as(expected: Collection[str], held: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What files hold by the names that a model gives them: one with heads calls its base `<prefix>.`.

    Example:
        >>> named_as(["encoder.weight"], {"model.encoder.weight": 1, "heads.like.bias": 2}, "model")
        {'encoder.weight': 1}
    """
    names = {name: (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")) for name in expected}
    return {name: held[other] for name, others in names.items() for other in others[::-1] if other in held}


def check_weights(
    held: Mapping[str, tuple[Path, Stored]],
    expected: Mapping[str, tuple[int, ...]],
    parameters: Collection[str],
    may_lack: int = _FREE,
) -> None:
    """Refuse weights that do not fit the configuration, and configurations that ask for memory the files do not fill.

    Args:
        held: what the files hold, of [`check_model`], under the names of `expected`.
        expected: {name: shape} of what the configuration asks for.
        parameters: those of them that must be numbers; in tables of the catalog, NaN = missing.
        may_lack: bytes that may be made anew because the files do not hold them.
    """
    for name, (path, tensor) in held.items():
        if tensor.shape != expected[name]:
            raise ValueError(
                f"{path.name}: {name!r} has shape {list(tensor.shape)}, but {MODEL_CONFIG} asks for "
                f"{list(expected[name])}: these are the weights of another configuration"
            )
    lacking = {name: 4 * math.prod(shape) for name, shape in expected.items() if name not in held}
    if sum(lacking.values()) > may_lack:
        name = max(lacking, key=lacking.__getitem__)
        raise ValueError(
            f"{MODEL_CONFIG} asks for {sum(lacking.values()):,} bytes of weights that the files do not hold, most of "
            f"them for {name!r} {list(expected[name])}: it is not the configuration of these weights"
        )
    for name in parameters:
        if name in held:
            check_finite(*held[name], name)


def check_processor(folder: Path) -> None:
    """Refuse a processor whose files are not what polyrec writes.

    Raises:
        ValueError: with the file and what is wrong with it.
    """
    _check_links(folder, PROCESSOR_FILES)
    sizes = {p: (folder / p).stat().st_size for p in _present(folder, PROCESSOR_FILES)}
    check_sizes(sizes, str(folder))
    for path in sizes:
        if path.endswith(".json"):
            values = _read_json(folder / path)
            _refuse_code(values, path)
            if path == "tokenizer_config.json":
                _check_tokenizer(values, path)
            elif path.endswith("/statistics.json"):
                _check_names(values.get("files"), path)
            elif path == CONFIG_NAME:
                _check_template(values.get("text"), path)
    rows = None
    for path in sizes:
        if path.endswith(".parquet"):
            found = _check_table(folder / path, path, ids=path in (ITEMS_NAME, USERS_NAME))
            rows = found if path == ITEMS_NAME else rows
    for path in sizes:
        if path.startswith(f"{VECTORS_NAME}/"):
            _check_vectors(folder / path, path, rows)
    if rows is not None and (folder / MODEL_CONFIG).exists():
        _check_config(folder)


def _present(folder: Path, patterns: tuple[str, ...]) -> Iterator[str]:
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            if path.is_file():
                yield path.relative_to(folder).as_posix()


def _check_links(folder: Path, patterns: tuple[str, ...]) -> None:
    """Links may only lead to files of the folder, or of the cache that the folder is a part of."""
    home = folder.resolve()
    homes = [home]
    if home.parent.name == "snapshots":  # of huggingface_hub: snapshots/<commit>/file -> blobs/<hash>
        homes.append(home.parent.parent / "blobs")
    for pattern in patterns:
        for path in folder.glob(pattern):
            steps = [path, *(p for p in path.parents if p != folder and p.is_relative_to(folder))]
            for step in steps:
                if step.is_symlink() and not any(step.resolve().is_relative_to(h) for h in homes):
                    raise ValueError(
                        f"{step.relative_to(folder)} is a link out of its folder, to {os.readlink(step)}: put the file "
                        "itself there"
                    )


def _check_config(folder: Path) -> None:
    path = folder / MODEL_CONFIG
    if not path.exists():
        raise ValueError(f"{folder} has no {MODEL_CONFIG}: it is not a folder saved by save_pretrained")
    check_sizes({MODEL_CONFIG: path.stat().st_size}, str(folder))
    values = _read_json(path)
    _refuse_code(values, MODEL_CONFIG)
    for name, number in _numbers(values):
        limit = _LIMITS.get(name)
        if limit is not None and number > limit:
            raise ValueError(f"{MODEL_CONFIG}: {name} is {number:,}; at most {limit:,} is loaded")
    items, table = values.get("num_items"), folder / ITEMS_NAME
    if isinstance(items, int) and table.exists():
        rows = _footer(table, ITEMS_NAME).num_rows + 2
        if items > rows:
            raise ValueError(
                f"{MODEL_CONFIG}: num_items is {items:,} but {ITEMS_NAME} has {rows - 2:,} items (+ 2): the "
                "configuration is not that of this catalog"
            )


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX_NAME
    if index.exists():
        check_sizes({INDEX_NAME: index.stat().st_size}, str(folder))
        names = _check_names(_read_json(index).get("weight_map"), INDEX_NAME)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder} lacks {missing[0]}, which {INDEX_NAME} names: download it again")
        return [folder / name for name in names]
    if not (folder / WEIGHTS_NAME).is_file():
        other = sorted(p.name for p in folder.iterdir() if p.suffix in _FOREIGN)
        because = f"; {other[0]} is not read, as such files can run code" if other else ""
        raise ValueError(f"{folder} has no {WEIGHTS_NAME}{because}: save the model with save_pretrained")
    return [folder / WEIGHTS_NAME]


def _check_names(files: Any, where: str) -> list[str]:
    """Names of files that a file names: plain ones beside it."""
    if not isinstance(files, dict):
        raise ValueError(f"{where} does not say which files there are: it is damaged")
    names = sorted({str(name) for name in files.values()})
    for name in names:
        if not matches(name, ["*.safetensors", "*.parquet"]):
            raise ValueError(f"{where} names the file {name!r}, which is none of its folder: it is not loaded")
    return names


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path.name} is not valid JSON ({type(error).__name__}: {error}): the file is damaged"
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds no mapping: the file is damaged")
    return values


def _walk(value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth > _DEEPEST:
        raise ValueError(f"values are nested more than {_DEEPEST} deep: the file is not polyrec's")
    if isinstance(value, dict):
        for name, entry in value.items():
            yield name, entry
            yield from _walk(entry, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            if isinstance(entry, dict | list):
                yield from _walk(entry, depth + 1)


def _numbers(values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in _walk(values):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def _refuse_code(values: dict[str, Any], where: str) -> None:
    for name, value in _walk(values):
        if name in ("auto_map", "custom_pipelines") and value:
            raise ValueError(
                f"{where} asks for code of its repository ({name}): polyrec runs none and does not load it"
            )


def _check_tokenizer(values: dict[str, Any], where: str) -> None:
    for name, value in values.items():
        if name.endswith("_file") and value is not None and not matches(str(value), ["*"]):
            raise ValueError(
                f"{where} names the file {value!r} as {name}, which is none of its folder: it is not loaded"
            )


def _check_template(text: Any, where: str) -> None:
    """A template may name columns, no more: a width such as {title:>999999999} would fill the memory."""
    template = text.get("template") if isinstance(text, dict) else None
    if isinstance(template, str) and any(form or conversion for _, _, form, conversion in Formatter().parse(template)):
        raise ValueError(f"{where}: the text template {template!r} formats values, but a template only names columns")


def _footer(path: Path, name: str) -> pq.FileMetaData:
    """What a parquet file says about itself."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - 8, 0))
        tail = file.read()
    length = int.from_bytes(tail[:4], "little")
    if size < 12 or tail[4:] != b"PAR1" or length + 12 > size or length > _LARGEST_JSON:
        raise ValueError(f"{name} is no complete parquet file: it may be truncated; download it again")
    try:
        return pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{name} cannot be read ({error}): the file is damaged") from error


def _check_table(path: Path, name: str, ids: bool) -> int:
    about, size = _footer(path, name), path.stat().st_size
    groups = [about.row_group(g) for g in range(about.num_row_groups)]
    unpacked = sum(g.column(c).total_uncompressed_size for g in groups for c in range(g.num_columns))
    limit = max(_FREE, _EXPANSION * size)
    if unpacked > limit or (ids and about.num_rows > max(1 << 16, _ROWS_PER_BYTE * size)):
        raise ValueError(
            f"{name}: {size:,} bytes would become {about.num_rows:,} rows and {unpacked:,} bytes, more than any "
            "catalog does: it is made to fill memory, and is not loaded"
        )
    _check_repeats(path, name, about, limit)
    return about.num_rows


def _check_repeats(path: Path, name: str, about: pq.FileMetaData, limit: int) -> None:
    """Texts are stored once for many rows: count what they would be in memory, without repeating them."""
    columns = [about.schema.column(c) for c in range(about.num_columns)]
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    total = 0
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        for batch in file.iter_batches(_BATCH, columns=texts):
            total += sum(_unpacked(values) for values in batch.columns)
            if total > limit:
                raise ValueError(
                    f"{name}: its texts repeat to more than {limit:,} bytes: it is made to fill memory, and is not "
                    "loaded"
                )


def _unpacked(values: pa.Array) -> int:
    """Bytes of texts that are kept once each."""
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        values = pc.list_flatten(values)
    if not pa.types.is_dictionary(values.type):
        return values.nbytes
    lengths_K = np.asarray(pc.binary_length(values.dictionary).fill_null(0)).astype(np.int64)
    return int(lengths_K[np.asarray(values.indices.drop_null())].sum())


def _check_vectors(path: Path, name: str, rows: int | None) -> None:
    """An array of numbers whose header fits the file; arrays of objects are pickles."""
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except ValueError as error:
            raise ValueError(f"{name} is no array of numpy ({error}): the file is damaged") from error
        left = path.stat().st_size - file.tell()
    if dtype.hasobject or dtype.kind != "f":
        raise ValueError(f"{name} holds {dtype}, not numbers: such files can run code, and are not loaded")
    if len(shape) != 2 or math.prod(shape) * dtype.itemsize != left or rows not in (None, shape[0]):
        raise ValueError(f"{name} has shape {list(shape)}, which fits neither its {left:,} bytes nor {rows} items")
