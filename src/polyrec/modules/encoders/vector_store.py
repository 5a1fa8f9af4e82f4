"""Vectors of what a frozen encoder has read before, kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from polyrec.core.files import replacing


class VectorStore:
    """A safetensors file of vectors by the hash of what they stand for; only what is new is encoded.

    Args:
        path: of the file, which may not exist yet. Its name says which encoder and which of its weights made it.

    Example:
        >>> import tempfile
        >>> store = VectorStore(Path(tempfile.mkdtemp()) / "model-4f1c.safetensors")
        >>> def encode(rows): print("encodes", rows.tolist()); return np.ones((len(rows), 2), dtype=np.float32)
        >>> store.vectors([b"a", b"b"], encode).shape
        encodes [0, 1]
        (2, 2)
        >>> store.vectors([b"b", b"c"], encode).shape
        encodes [1]
        (2, 2)
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def vectors(self, contents: list[bytes], encode: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The vector of each content, float32 [M, W].

        Args:
            encode: makes vectors [K, W] of the contents at some positions, int64 [K].
        """
        keys = [hashlib.sha256(content).digest()[:16] for content in contents]
        held = self._read()
        known = {key.tobytes(): n for n, key in enumerate(held["keys"])} if held else {}
        first: dict[bytes, int] = {}  # of equal contents, one is encoded
        for position, key in enumerate(keys):
            if key not in known:
                first.setdefault(key, position)
        if first:
            new = encode(np.fromiter(first.values(), dtype=np.int64, count=len(first))).astype(np.float32)
            new_keys = np.frombuffer(b"".join(first), dtype=np.uint8).reshape(-1, 16)
            known |= {key: len(known) + n for n, key in enumerate(first)}
            held = {
                "keys": np.concatenate([held["keys"], new_keys]) if held else new_keys,
                "vectors": np.concatenate([held["vectors"], new]) if held else new,
            }
            self._write(held)
        return held["vectors"][[known[key] for key in keys]]

    def _read(self) -> dict[str, np.ndarray]:
        return load_file(self.path) if self.path.exists() else {}

    def _write(self, held: dict[str, np.ndarray]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as draft:  # another process may read or write the file, too
            save_file({name: np.ascontiguousarray(values) for name, values in held.items()}, draft)
