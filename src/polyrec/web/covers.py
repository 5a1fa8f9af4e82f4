"""Pictures of items, where the catalog has a column of them."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from polyrec.data.arrays import is_text

_NAMES = re.compile(r"(?:^|_)(?:covers?|images?|img|posters?|thumbnails?|pictures?|photos?|artwork)(?:_|$)")
_STORED = re.compile(r"data:image/(?:png|jpeg|gif|webp|avif);base64,[A-Za-z0-9+/=\s]+")
_FORMATS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}
_MOST_BYTES = 1 << 20  # a page of ten larger ones would take seconds to send
_LOOKED_AT = 1000  # first rows of a column by which it is judged


class Covers:
    """The pictures of a catalog.

    Pictures that the catalog stores itself (bytes, or "data:image/...") are always shown. Addresses are shown on
    request: the browser of each visitor then loads them from there, and whoever made the catalog chose them.

    Args:
        table: the catalog.
        addresses: show pictures that are named by an http or https address.

    Example:
        >>> table = pa.table({"poster_url": ["https://pictures.example/1.jpg", None, "file:///etc/passwd"]})
        >>> covers = Covers(table, addresses=True)
        >>> covers.column, covers.source(0), covers.source(1), covers.source(2)
        ('poster_url', 'https://pictures.example/1.jpg', None, None)
        >>> covers = Covers(table)
        >>> covers.shown, covers.hosts, covers.source(0)
        (False, ['pictures.example'], None)
    """

    def __init__(self, table: pa.Table, addresses: bool = False) -> None:
        self._addresses = True
        self.column = next((name for name in table.column_names if self._has_pictures(name, table[name])), None)
        self._values = None if self.column is None else table[self.column]
        first = [] if self._values is None else self._values.slice(0, _LOOKED_AT).to_pylist()
        self.hosts: Sequence[str] = sorted({urlsplit(value).netloc for value in first if _is_address(value)})
        self._addresses = addresses
        self.shown = any(map(self._source, first))

    def source(self, row: int) -> str | None:
        """`src` of the picture of a row of the catalog; None = it has none."""
        return None if self._values is None else self._source(self._values[row].as_py())

    def _has_pictures(self, name: str, values: pa.ChunkedArray) -> bool:
        binary = pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type)
        if not _NAMES.search(name.lower()) or not (binary or is_text(values.type)):
            return False
        return any(map(self._source, pc.drop_null(values.slice(0, _LOOKED_AT)).to_pylist()))

    def _source(self, value: Any) -> str | None:
        if value is None or len(value) > _MOST_BYTES:
            return None
        if isinstance(value, bytes):
            kind = next((kind for start, kind in _FORMATS.items() if value.startswith(start)), None)
            if value[:4] == b"RIFF" and value[8:12] == b"WEBP":
                kind = "webp"
            return None if kind is None else f"data:image/{kind};base64,{b64encode(value).decode()}"
        if _STORED.fullmatch(value):
            return str(value)
        return value if self._addresses and _is_address(value) else None


def _is_address(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)
