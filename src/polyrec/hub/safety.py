"""What is not loaded: files of strangers that run code, reach out of their folder or fill the memory.

Everything here looks at names, sizes and headers first; tensors and tables are read only after that.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np

from polyrec.core.files import readable_by_umask
from polyrec.core.manifest import Manifest, check_manifest, fits, refresh_manifest
from polyrec.data.processor_files import CONFIG_NAME, ITEMS_NAME, USERS_NAME, VECTORS_NAME
from polyrec.data.saved_tables import read_saved
from polyrec.hub.files import (
    INDEX_NAME,
    MODEL_CONFIG,
    MODEL_FILES,
    MODEL_RECORDED,
    PROCESSOR_FILES,
    PROCESSOR_RECORDED,
    WEIGHTS_NAME,
    matches,
)
from polyrec.hub.isolated import isolated
from polyrec.hub.limits import check_numbers, walk
from polyrec.hub.parquet import allowance, check_table, count_rows
from polyrec.hub.weights import Stored, check_finite, read_header

_MIB = 1 << 20
_LARGEST_JSON = 64 * _MIB  # of a vocabulary of some million categories
_LARGEST_CONFIG = 4 * _MIB
_LARGEST_FILE = 1 << 40
_LONGEST_PADDING = 1 << 15  # tokens
_MAY_LACK = 64 * _MIB
_MAY_RESERVE = 4 << 30  # address space that allocators take at once
_written_here: set[str] = set()  # SHA-256 of files
_ENCODED = {ITEMS_NAME: "item_encoders", USERS_NAME: "user_encoders"}
_ADAPTER = "adapter_config.json"
_FOREIGN = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")


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


@contextmanager
def permitted() -> Iterator[None]:
    """Inside, a file that may not be read says so, and how its owner lets others read it."""
    try:
        yield
    except PermissionError as error:
        raise PermissionError(
            f"no permission to read {error.filename}: ask its owner for it (chmod a+r; folders a+rx)"
        ) from error


@permitted()
def check_model(folder: Path) -> dict[str, tuple[Path, Stored]]:
    """Refuse a model whose files are not what polyrec writes; returns the tensors they hold, by name.

    Raises:
        ValueError: with the file and what is wrong with it.
    """
    _check_links(folder, MODEL_FILES)
    if (folder / _ADAPTER).exists():  # transformers would load the model that it names, wherever that is
        raise ValueError(f"{folder} has {_ADAPTER}: polyrec keeps adapters in {WEIGHTS_NAME}; delete it")
    check_sizes({p: (folder / p).stat().st_size for p in _present(folder, MODEL_FILES)}, str(folder))
    _check_saved(folder, MODEL_FILES, MODEL_RECORDED)
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
    may_lack: int = _MAY_LACK,
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


def check_made(made: Mapping[str, int], stored: int) -> None:
    """Refuse a configuration whose tensors that no file stores, such as masks of all positions, would fill the memory.

    Args:
        made: {name: bytes} of them.
        stored: bytes of those that files do store.
    """
    if sum(made.values()) > max(_MAY_LACK, stored):
        name = max(made, key=made.__getitem__)
        raise ValueError(
            f"{MODEL_CONFIG} asks for {sum(made.values()):,} bytes beside the {stored:,} of its weights, most of them "
            f"for {name!r}: it is made to fill memory, and is not loaded"
        )


@permitted()
def check_processor(folder: Path) -> None:
    """Refuse a processor whose files are not what polyrec writes.

    Raises:
        ValueError: with the file and what is wrong with it.
    """
    _check_links(folder, PROCESSOR_RECORDED)
    sizes = {p: (folder / p).stat().st_size for p in _present(folder, PROCESSOR_RECORDED)}
    check_sizes(sizes, str(folder))
    saved = _check_saved(folder, PROCESSOR_FILES, PROCESSOR_RECORDED)
    for path in sizes:
        if path.endswith(".json"):
            _check_values(_read_json(folder / path), path)
        elif path.endswith(".safetensors"):
            read_header(folder / path)
    tables = _check_tables(folder, [path for path in sizes if path.endswith(".parquet")], saved)
    for path in _ENCODED:
        if path in tables:
            _check_widths(folder, _ENCODED[path], tables[path], allowance(sizes[path]))
    rows = tables.get(ITEMS_NAME)
    for path in sizes:
        if path.startswith(f"{VECTORS_NAME}/"):
            _check_vectors(folder / path, path, rows)
    if rows is not None and (folder / MODEL_CONFIG).exists():
        _check_config(folder)


def _check_values(values: dict[str, Any], path: str) -> None:
    """Refuse a JSON file of a processor that names code, other files, or sizes that fill the memory."""
    _refuse_code(values, path)
    if path == "tokenizer_config.json":
        _check_tokenizer(values, path)
    elif path == "tokenizer.json":
        _check_padding(values, path)
    elif path.endswith("/statistics.json"):
        _check_names(values.get("files"), path)
    elif path == CONFIG_NAME:
        check_numbers(values, path)
        _check_template(values.get("text"), path)


def record_saved(folder: str | Path, patterns: Sequence[str]) -> None:
    """Put what was just written into the manifest of its folder; files have the mode that the umask allows."""
    for name in _present(Path(folder), tuple(patterns)):
        readable_by_umask(Path(folder) / name)
    held = refresh_manifest(folder, patterns)
    _written_here.update(entry["sha256"] for name, entry in held.files.items() if fits(name, patterns))


def _check_tables(folder: Path, paths: Sequence[str], saved: Manifest | None) -> dict[str, int]:
    """Rows of tables, each of which was read once where that can harm nobody, unless this process has written it."""
    own = {} if saved is None else {n: e["sha256"] in _written_here for n, e in saved.files.items()}
    if all(own.get(path) for path in paths):
        return {path: count_rows(folder / path, path) for path in paths}

    def read() -> dict[str, int]:
        found = {}
        for path in paths:
            found[path] = check_table(folder / path, path, ids=path in (ITEMS_NAME, USERS_NAME))
            read_saved(folder / path, path)
        return found

    largest = max((folder / path).stat().st_size for path in paths)
    return isolated(read, f"{folder}: a table of {', '.join(paths)}", 2 * allowance(largest) + _MAY_RESERVE)


def _present(folder: Path, patterns: tuple[str, ...]) -> Iterator[str]:
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            if path.is_file():
                yield path.relative_to(folder).as_posix()


def _check_links(folder: Path, patterns: tuple[str, ...]) -> None:
    """Links may only lead to files of the folder, or of the cache that the folder is a part of."""
    home = folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if _in_cache(folder) else [home]
    for pattern in patterns:
        for path in folder.glob(pattern):
            steps = [path, *(p for p in path.parents if p != folder and p.is_relative_to(folder))]
            for step in steps:
                if step.is_symlink() and not any(step.resolve().is_relative_to(h) for h in homes):
                    raise ValueError(
                        f"{step.relative_to(folder)} is a link out of its folder, to {os.readlink(step)}: put the file "
                        "itself there"
                    )


def _check_saved(folder: Path, fetched: tuple[str, ...], recorded: tuple[str, ...]) -> Manifest | None:
    """Refuse files that are not those that were saved; of the Hub's, those that are fetched are there."""
    in_cache = _in_cache(folder)
    return check_manifest(folder, fetched if in_cache else recorded, links=in_cache)


def _in_cache(folder: Path) -> bool:
    """Whether a folder is one of huggingface_hub's cache, where snapshots/<commit>/file -> blobs/<hash>."""
    return folder.resolve().parent.name == "snapshots"


def _check_config(folder: Path) -> None:
    path = folder / MODEL_CONFIG
    if not path.exists():
        raise ValueError(f"{folder} has no {MODEL_CONFIG}: it is not a folder saved by save_pretrained")
    check_sizes({MODEL_CONFIG: path.stat().st_size}, str(folder))
    values = _read_json(path)
    _refuse_code(values, MODEL_CONFIG)
    check_numbers(values, MODEL_CONFIG)
    items, table = values.get("num_items"), folder / ITEMS_NAME
    if isinstance(items, int) and table.exists():
        rows = count_rows(table, ITEMS_NAME) + 2
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


def _refuse_code(values: dict[str, Any], where: str) -> None:
    for name, value in walk(values):
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


def _check_padding(values: dict[str, Any], where: str) -> None:
    """Every text is padded to a fixed length that the file names, however short it is."""
    for name, number in walk(values.get("padding")):
        if isinstance(number, int) and number > _LONGEST_PADDING:
            raise ValueError(
                f"{where}: padding has {name} {number:,}, at most {_LONGEST_PADDING:,} is loaded: it fills the memory"
            )


def _check_template(text: Any, where: str) -> None:
    """A template may name columns, no more: a width such as {title:>999999999} would fill the memory."""
    template = text.get("template") if isinstance(text, dict) else None
    if isinstance(template, str) and any(form or conversion for _, _, form, conversion in Formatter().parse(template)):
        raise ValueError(f"{where}: the text template {template!r} formats values, but a template only names columns")


def _check_widths(folder: Path, encoders: str, rows: int, limit: int) -> None:
    """What a column becomes has as many numbers for each row as its encoder says, whatever is in its table."""
    path = folder / CONFIG_NAME
    found = _read_json(path).get(encoders, {}) if path.exists() else {}
    for name, encoder in found.items():
        width = encoder["width"] if encoder.get("kind") == "multi" else 1
        if 8 * rows * width > limit:
            raise ValueError(
                f"{CONFIG_NAME}: {encoders} {name!r} has width {width:,}, which makes {8 * rows * width:,} bytes of "
                f"{rows:,} rows: it is made to fill memory, and is not loaded"
            )


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
