"""Where a warning is to point."""

from __future__ import annotations

import sys
from pathlib import Path

_PACKAGE = str(Path(__file__).parent.parent)


def caller_level() -> int:
    """`stacklevel` of the nearest caller outside polyrec, for `warnings.warn` in the calling function.

    Example:
        >>> caller_level()  # this example is a caller outside
        1
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    return level
