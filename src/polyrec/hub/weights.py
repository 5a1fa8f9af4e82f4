"""Headers of safetensors files, read without the tensors and without trust."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_LARGEST_HEADER = 16 << 20
_CHUNK = 4 << 20  # bytes read at once
_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4,
    "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_FLOATS: dict[str, np.dtype] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


@dataclass(frozen=True)
class Stored:
    """A tensor of a file.

    Args:
        dtype: as safetensors writes it.
        shape: of the tensor.
        start, end: bytes in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, Stored]:
    """What a file says that it holds; a header that contradicts the file is refused.

    Raises:
        ValueError: the header is longer than any model's, is no JSON, or does not describe the bytes that follow.
    """
    entries, length = _read_entries(path)
    size = path.stat().st_size
    entries.pop("__metadata__", None)
    try:
        found = {name: _stored(entry, length + 8) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name}: the header cannot be read ({error}): the file is damaged") from error
    at = length + 8
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != at:
            raise ValueError(
                f"{path.name}: tensor {name!r} begins at byte {tensor.start}, not {at}: the file is damaged"
            )
        at = tensor.end
    if at != size:
        raise ValueError(
            f"{path.name}: its tensors end at byte {at} but the file at {size}: it was not copied completely"
        )
    return found


def read_metadata(path: Path) -> dict[str, str]:
    """What a file says about itself beside its tensors, {name: text}."""
    entries, _ = _read_entries(path)
    return {str(name): str(value) for name, value in (entries.get("__metadata__") or {}).items()}


def _read_entries(path: Path) -> tuple[dict[str, Any], int]:
    """The header as it is written, and its length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little") if size >= 8 else size
        if length > _LARGEST_HEADER or length + 8 > size:
            raise ValueError(
                f"{path.name}: the header claims {length:,} bytes of a file of {size:,} (at most "
                f"{_LARGEST_HEADER:,} are read): the file is damaged or made to fill memory; download it again"
            )
        raw = file.read(length)
    try:
        entries = json.loads(raw)
        if not isinstance(entries, dict):
            raise ValueError("not a mapping")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: the header cannot be read ({error}): the file is damaged") from error
    return entries, length


def _stored(entry: dict[str, object], offset: int) -> Stored:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _BYTES:
        raise ValueError(f"unknown dtype {dtype!r}")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError("shape and data_offsets must be lists")
    if not all(type(n) is int and n >= 0 for n in (*shape, *offsets)):
        raise ValueError("shapes and offsets must be whole numbers")
    if offsets[1] - offsets[0] != math.prod(shape) * _BYTES[dtype]:
        raise ValueError(f"{offsets[1] - offsets[0]} bytes for shape {shape} of {dtype}")
    return Stored(dtype, tuple(shape), offsets[0] + offset, offsets[1] + offset)


def check_finite(path: Path, tensor: Stored, name: str) -> None:
    """Refuse weights that are no numbers, read a few MiB at a time.

    Raises:
        ValueError: with the tensor's name.
    """
    if tensor.dtype not in (*_FLOATS, "BF16"):
        return
    with path.open("rb") as file:
        file.seek(tensor.start)
        left = tensor.end - tensor.start
        while left:
            raw = file.read(min(_CHUNK, left))
            if not _finite(raw, tensor.dtype):
                raise ValueError(
                    f"{path.name}: {name!r} holds NaN or infinite numbers, so every prediction would be NaN: the "
                    "training diverged or the file is damaged; take an earlier revision"
                )
            left -= len(raw)


def _finite(raw: bytes, dtype: str) -> bool:
    if dtype == "BF16":  # all bits of the exponent set
        return not ((np.frombuffer(raw, dtype="<u2") & 0x7F80) == 0x7F80).any()
    return bool(np.isfinite(np.frombuffer(raw, dtype=_FLOATS[dtype])).all())
