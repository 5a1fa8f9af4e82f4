"""For the documentation: docstrings as this project writes them become what griffe's parser knows.

`Example:` holds doctests, which griffe reads as code only under `Examples:` (else `[0.9, 1.1]` in an output is taken
for a link), and `items, users: text` describes two parameters at once, which griffe takes for one of that name.
"""

import re
from typing import Any

import griffe

_TOGETHER = re.compile(r"^( +)([\w*]+(?:, [\w*]+)+)(:.*)$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)


def readable(docstring: str) -> str:
    """The docstring with sections and parameters named as griffe expects them.

    Example:
        >>> print(readable("Args:\\n    a, b: both.\\n\\nExample:\\n    >>> 1\\n    1"))
        Args:
            a: both.
            b: both.
        <BLANKLINE>
        Examples:
            >>> 1
            1
    """
    head, args, tail = docstring.partition("Args:\n")
    section, blank, rest = tail.partition("\n\n")
    split = _TOGETHER.sub(lambda m: "\n".join(f"{m[1]}{name}{m[3]}" for name in m[2].split(", ")), section)
    return re.sub(r"^Example:$", "Examples:", head + args + split + blank + rest, flags=re.MULTILINE)
