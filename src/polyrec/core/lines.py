"""Lines for a terminal."""

from __future__ import annotations

import textwrap

WIDTH = 120


def folded(text: str, indent: int) -> str:
    """A line, broken between words where it is wider than a terminal; what follows is indented.

    Example:
        >>> [len(line) for line in folded("word " * 30, 4).splitlines()]
        [119, 33]
    """
    return textwrap.fill(text, WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
