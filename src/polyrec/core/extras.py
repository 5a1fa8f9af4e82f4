"""What is installed only if asked for."""

from __future__ import annotations

import importlib.util


def check_extra(module: str, extra: str, what: str, instead: str = "") -> None:
    """Refuse, with the command that mends it, if an optional package is missing.

    Example:
        >>> check_extra("no_such_module", "report", "plots", ", or pass --no-html")
        Traceback (most recent call last):
            ...
        ValueError: plots need no_such_module: pip install 'polyrec[report]', or pass --no-html
    """
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"{what} need {module}: pip install 'polyrec[{extra}]'{instead}")
